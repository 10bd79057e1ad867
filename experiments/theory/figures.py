"""The figures of a saved record: `docs/figures/theory_*.svg`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.figures import COLOURS, curve, dots, panels
from matplotlib.axes import Axes

from .cases import SHARES, TRACKS, VARIED, VARIED_SHARE
from .summary import as_interval

Case = Mapping[str, Any]
GROUP_COLOUR = {"prevalent": 0, "rarer": 1, "both": 3, "none": 5}
MOMENTS = {"learnt": "when just learnt", "end": "at the end of training"}
RULES = (
    "small change",
    "small change + MaxVar",
    "small change, idle experts last",
    "large change",
    "frequently used",
    "large routing weight",
    "large MaxVar",
    "small final norm",
    "random",
)


def draw(record: Mapping[str, Any], folder: Path) -> None:
    """Draw every figure whose cases are in the record."""
    sweeps = {
        track: sorted((c for c in record["cases"] if c["track"] == track and not c["change"]), key=_share)
        for track in TRACKS
    }
    _changes(sweeps, folder / "theory_change.svg")
    _activations(sweeps, folder / "theory_activation.svg")
    _over_time(sweeps, folder / "theory_time.svg")
    _gaps(sweeps, folder / "theory_bits.svg")
    _plans(sweeps, folder / "theory_plans.svg")
    _variance(record["cases"], folder / "theory_variance.svg")


def _share(case: Case) -> float:
    return float(case["setting"]["a"])


def _line(axes: Axes, cases: Sequence[tuple[float, Any]], label: str, number: int) -> None:
    """A curve through the places that have a value."""
    known = [(x, as_interval(row)) for x, row in cases if row is not None]
    if known:
        curve(axes, [x for x, _ in known], [y for _, y in known], label, number)


def _ticks(axes: Axes, places: Sequence[float]) -> None:
    """A logarithmic axis with the measured places as its only ticks."""
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.minorticks_off()


def _step(case: Case, moment: str) -> str:
    return str(case[moment] or case["end"])


def _changes(sweeps: Mapping[str, Sequence[Case]], path: Path) -> None:
    """Router change by group against a."""
    with panels(path, 2, len(VARIED)) as axes:
        for at, (track, moment) in enumerate((t, m) for t in VARIED for m in MOMENTS):
            for group in ("prevalent", "rarer", "none"):
                rows = [
                    (_share(c), c["steps"][_step(c, moment)]["groups"][group]["router_change"]) for c in sweeps[track]
                ]
                _line(axes[at], rows, group, GROUP_COLOUR[group])
            axes[at].set(title=f"{track}, {MOMENTS[moment]}", xlabel="share a", ylabel="router change Λ")
            axes[at].set(yscale="log", ylim=(1e-6, 1))
            _ticks(axes[at], SHARES)
            axes[at].legend(frameon=False)


def _activations(sweeps: Mapping[str, Sequence[Case]], path: Path) -> None:
    """Ratio of activations against (1-a)/a."""
    with panels(path, 2) as axes:
        for panel, moment in zip(axes, MOMENTS, strict=True):
            for number, (track, cases) in enumerate(sweeps.items()):
                rows = [((1 - _share(c)) / _share(c), c["steps"][_step(c, moment)]["activation_ratio"]) for c in cases]
                _line(panel, rows, track, number)
            panel.plot([1, 49], [1, 49], color="#555555", linestyle="--", linewidth=1, label="(1-a)/a")
            panel.set(xscale="log", yscale="log", title=MOMENTS[moment], xlabel="(1-a)/a")
            panel.set_ylabel("activation, prevalent over rarer")
        axes[0].legend(frameon=False, fontsize=8)


def _over_time(sweeps: Mapping[str, Sequence[Case]], path: Path) -> None:
    """Order of the changes and ratio of activations over the steps, at one share."""
    steps_shown: list[int] = []
    with panels(path, 3) as axes:
        for number, (track, cases) in enumerate(sweeps.items()):
            for case in _at_share(cases):
                steps = {int(step): state for step, state in case["steps"].items()}
                steps_shown = max(steps_shown, list(steps), key=len)
                label = f"{track}, a = {_share(case):g}"
                order = "router_change: prevalent > rarer"
                _line(axes[0], [(s, state["order"][order]) for s, state in steps.items()], label, number)
                _line(axes[1], [(s, state["activation_ratio"]) for s, state in steps.items()], label, number)
                _line(axes[2], [(s, state["errors"]["balanced"]) for s, state in steps.items()], label, number)
        for panel in axes:
            panel.set_xlabel("SGD steps")
            _ticks(panel, steps_shown)
        axes[0].axhline(0.5, color="#555555", linestyle="--", linewidth=1)
        axes[0].set(title="order of the router changes", ylabel="P(Λ prevalent > Λ rarer)")
        axes[1].set(title="ratio of activations", ylabel="prevalent over rarer", yscale="log")
        axes[2].set(title="full precision", ylabel="balanced test error")
        axes[2].legend(frameon=False, fontsize=8)


def _at_share(cases: Sequence[Case]) -> list[Case]:
    """The case of the share that is varied, or the nearest above it."""
    return [case for case in cases if _share(case) >= VARIED_SHARE][:1]


def _gaps(sweeps: Mapping[str, Sequence[Case]], path: Path) -> None:
    """Bits that the rarer feature's experts need more, and the noise by width."""
    with panels(path, 3) as axes:
        for panel, kind in zip(axes, ("noise", "error"), strict=False):
            for number, (track, cases) in enumerate(sweeps.items()):
                rows = [(c["log2_ratio"], c["at"]["learnt"]["gap"][f"by_{kind}: rarer - prevalent"]) for c in cases]
                _line(panel, rows, track, number)
            panel.plot([0, 5.6], [0, 5.6], color="#555555", linestyle="--", linewidth=1, label="log2((1-a)/a)")
            panel.set(title=f"bits needed, by {kind}", xlabel="log2((1-a)/a)", ylabel="rarer minus prevalent, bits")
        axes[0].legend(frameon=False, fontsize=8)
        for case in _at_share(sweeps[VARIED[1]]):
            for group in ("prevalent", "rarer", "none"):
                noise = case["at"]["learnt"]["noise"][group]
                _line(axes[2], list(enumerate(noise, 1)), group, GROUP_COLOUR[group])
            axes[2].set(yscale="log", xlabel="bits of the group", ylabel="noise over margin", title=case["case"])
            axes[2].legend(frameon=False)


def _plans(sweeps: Mapping[str, Sequence[Case]], path: Path) -> None:
    """Balanced error of every rule at equal average bits."""
    with panels(path, 2, width=5.4, height=3.4) as axes:
        for panel, track in zip(axes, VARIED, strict=True):
            for case in _at_share(sweeps[track]):
                for number, pair in enumerate(("3/1 at 2", "4/2 at 3")):
                    rows = {rule: as_interval(case["plans"][f"{pair}: {rule}"]["balanced"]) for rule in RULES}
                    dots(panel, rows, number, f"{pair} bits", shift=0.25 * number)
                full = case["plans"]["full"]["balanced"][0]
                panel.axvline(full, color=COLOURS[5], linestyle="--", linewidth=1, label="full precision")
                panel.set(title=case["case"], xlabel="balanced test error")
        axes[0].legend(frameon=False, fontsize=8)


def _variance(cases: Sequence[Case], path: Path) -> None:
    """Errors with and without the reordering where some experts are wide."""
    chosen = [case for case in cases if "variance" in case]
    rules = ("small change", "small change + MaxVar, zeta 3", "MaxVar alone")
    with panels(path, max(1, len(chosen)), width=5.4, height=3.0) as axes:
        for panel, case in zip(axes, chosen, strict=False):
            for number, rule in enumerate(rules):
                rows = {}
                for where in ("largest change", "random", "smallest change"):
                    for pair in ("4/2 at 3", "5/3 at 4"):
                        rows[f"{where}, {pair}"] = as_interval(case["variance"][f"{where}; {pair}: {rule}"]["balanced"])
                dots(panel, rows, number, rule, shift=0.2 * number)
            panel.set(title=case["case"], xlabel="balanced test error")
        axes[0].legend(frameon=False, fontsize=8)
