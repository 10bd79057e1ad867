"""Which model, which texts and how much of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moesaic import CompressOptions
from moesaic.quantize import RTN

from ..held_out import Blocks, read_blocks, split

QUANTIZER = RTN(group_size=64, symmetric=True)


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        length: tokens of a block, of held-out and calibration text alike.
        truth_tokens: held-out tokens on which single experts are rounded.
        plan_tokens: other held-out tokens, on which plans are measured.
        calibration_tokens: of the text on which experts are observed.
        random_plans: plans by lot, the yardstick of the ablations.
        draws: bootstrap resamples.
    """

    length: int = 256
    truth_tokens: int = 8192
    plan_tokens: int = 16384
    calibration_tokens: int = 32768
    random_plans: int = 10
    draws: int = 2000


QUICK = Sizes(length=128, truth_tokens=1024, plan_tokens=2048, calibration_tokens=4096, random_plans=5, draws=300)


@dataclass(frozen=True)
class Setting:
    """A model with its texts.

    Attributes:
        model: checkpoint folder.
        work: where finished pieces are kept.
        held_out: text files of which truth and plans are measured.
        calibration: text files on which experts are observed; none for the bundled text.
        initial: routers before training, None where they are not known.
        run: folder of the training run, with `routers/` and `tokens.safetensors`, None without one.
        sizes: how much.
    """

    model: Path
    work: Path
    held_out: tuple[Path, ...]
    calibration: tuple[Path, ...]
    initial: Path | None
    run: Path | None
    sizes: Sizes

    @classmethod
    def find(
        cls,
        model: Path,
        work: Path,
        *,
        corpus: Path | None = None,
        domains: tuple[str, ...] = (),
        text: Path | None = None,
        sizes: Sizes,
    ) -> Setting:
        """Look for what belongs to a model.

        Args:
            model: checkpoint folder; `initial_routers.safetensors` and `heldout.txt` in it are used. Where the folder
                around it holds `routers/`, it is taken for the training run.
            work: folder for finished pieces.
            corpus: folder of `DOMAIN.train.txt`, `DOMAIN.valid.txt` and `DOMAIN.test.txt`.
            domains: of the corpus; all that have the three files where none are named.
            text: held-out text; else the model's own, else the corpus' test files.
            sizes: how much.

        Raises:
            ValueError: no held-out text.
        """
        names = domains or _domains(corpus)
        own = text or (model / "heldout.txt")
        held_out = tuple(corpus / f"{name}.test.txt" for name in names) if corpus else ()
        if text or own.exists():
            held_out = (own,)
        if not held_out:
            raise ValueError(f"no held-out text for {model}: give --corpus or --text")
        initial = model / "initial_routers.safetensors"
        around = model.resolve().parent
        return cls(
            model,
            work,
            held_out,
            tuple(corpus / f"{name}.valid.txt" for name in names) if corpus else (),
            initial if initial.exists() else None,
            around if (around / "routers").is_dir() else None,
            sizes,
        )

    def blocks(self) -> tuple[Blocks, Blocks]:
        """Held-out blocks for the truth and for the plans; no token is in both."""
        both = self.sizes.truth_tokens + self.sizes.plan_tokens
        blocks = read_blocks(self.model, self.held_out, tokens=both, length=self.sizes.length)
        return split(blocks, self.sizes.truth_tokens / both)

    def options(self) -> CompressOptions:
        """Calibration by the project's pipeline: the same text, errors at 2 bits alone."""
        return CompressOptions(
            bits=2.5,
            levels=(2,),
            initial=self.initial,
            calibration=self.calibration,
            sequences=self.sizes.calibration_tokens // self.sizes.length,
            sequence_length=self.sizes.length,
        )

    def settings(self) -> dict[str, Any]:
        """What results depend on, for journals and records."""
        return {
            "model": self.model.resolve().parent.name if self.run else self.model.name,
            "held_out": [path.name for path in self.held_out],
            "calibration": [path.name for path in self.calibration] or ["bundled"],
            "quantizer": str(QUANTIZER),
            "sizes": asdict(self.sizes),
        }


def _domains(corpus: Path | None) -> tuple[str, ...]:
    if corpus is None:
        return ()
    names = sorted(path.name.split(".")[0] for path in corpus.glob("*.train.txt"))
    return tuple(n for n in names if all((corpus / f"{n}.{part}.txt").exists() for part in ("valid", "test")))
