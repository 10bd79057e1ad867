"""From a folder and a text to a policy in the folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from moesaic import load, verify
from moesaic.errors import InvalidText, MoesaicError, UnknownName, UsageError
from moesaic.fit.mask_routers import Training
from moesaic.fit.run import FitOptions, fit_policy
from moesaic.packing.pruning import PRUNING
from moesaic.prune import POLICIES
from moesaic.runtime.skipping import skipping_of
from tests.talking import write_text

TRAINING = Training(layer_steps=10, steps=2, batch_tokens=128, checks=1)


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    """A packed folder of the test's own."""
    return Path(shutil.copytree(packed, tmp_path / "packed"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of 1,500 tokens."""
    return write_text(tmp_path / "text.txt", 1500)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_is_saved_and_applied(policy: str, folder: Path, text: Path) -> None:
    """A loaded folder runs its policy, skips about the share, and does without it when asked; the rest is untouched."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    options = FitOptions(policy=policy, target=0.75, window=32, training=TRAINING)
    found = fit_policy(folder, text, options=options)
    assert found.reached == pytest.approx(0.75, abs=0.05)
    assert {name: (folder / name).read_bytes() for name in before} == before
    verify(folder)
    tokens = torch.randint(2, 100, (2, 30))
    with torch.inference_mode():
        model = load(folder)
        skipping = skipping_of(model)
        assert skipping is not None
        skipping.count()
        model(tokens)
        assert 0.5 < skipping.share() < 1
        plain = load(folder, pruning=False)
        assert skipping_of(plain) is None
        (folder / PRUNING).unlink()
        assert torch.equal(plain(tokens).logits, load(folder)(tokens).logits)


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"policy": "otps"}, UnknownName, "did you mean"),
        ({"knobs": {"mu": 1}}, UsageError, "mu means nothing"),
        ({"policy": "odp", "knobs": {"protect": 2}}, UsageError, "protect"),
        ({"target": 0.5}, UsageError, "above 0.5"),
        ({"target": 1.5}, UsageError, "--target 1.5"),
        ({"target": 0.0}, UsageError, "--target"),
        ({"window": 500}, UsageError, "--window"),
        ({"window": 100}, InvalidText, "at least 16"),
    ],
)
def test_refusals_leave_the_folder_alone(
    options: dict, error: type[MoesaicError], word: str, folder: Path, text: Path
) -> None:
    """A wrong option is one clear error, and the policy that was there stays."""
    fit_policy(folder, text, options=FitOptions(policy="threshold", window=32))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(error, match=word):
        fit_policy(folder, text, options=FitOptions(**{"training": TRAINING, "window": 32, **options}))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_text_is_used_up_to_the_limit(folder: Path, text: Path) -> None:
    """`max_tokens` and the window say how much is read, and the seed which part."""
    options = FitOptions(policy="threshold", window=20, max_tokens=200)
    found = fit_policy(folder, text, options=options)
    assert found.details == {"tokens": 200, "window": 20}
    other = fit_policy(folder, text, options=FitOptions(policy="threshold", window=20, max_tokens=200, seed=1))
    first, second = (next(iter(each.layers.values()))["threshold"] for each in (found, other))
    assert float(first) != float(second)


def test_the_text_that_comes_along_is_the_default(folder: Path) -> None:
    """Without a text the bundled one is used."""
    found = fit_policy(folder, options=FitOptions(policy="top_p", window=64, max_tokens=640))
    assert found.details["tokens"] == 640
