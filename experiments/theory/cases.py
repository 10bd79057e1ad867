"""The settings that are run: sweeps of the share a, and one change at a time of what the paper does not give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .setting import Setting

SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
TRACKS = {  # data and loss, the two choices that decide most
    "two features, hinge": {"features": 2, "loss": "hinge"},
    "four features, logistic": {"features": 4, "loss": "logistic"},
    "two features, logistic": {"features": 2, "loss": "logistic"},
    "four features, hinge": {"features": 4, "loss": "hinge"},
}
VARIED = ("two features, hinge", "four features, logistic")
CHANGES: dict[str, dict[str, float | int | str | bool]] = {
    "narrow neurons (spread 0.01)": {"spread": 0.01},
    "linear loss (no margin satisfies it)": {"loss": "linear", "rate": 0.05, "router_rate": 0.05},
    "balanced sampling": {"balanced": True},
    "token noise 0.05, P = 64": {"noise": 0.05, "patterns": 64, "batch": 16},
    "expert init 0.03": {"init": 0.03},
    "expert init 0.003": {"init": 0.003},
    "router init 0.1": {"router_init": 0.1},
    "router rate 0.04": {"router_rate": 0.04},
    "router rate 1": {"router_rate": 1.0},
    "l = 4": {"chosen": 4},
    "patterns along the axes": {"axis_aligned": True},
}
VARIED_SHARE = 0.1
FEWER_SHARES = (0.05, 0.2, 0.5)  # of the tracks that are not varied
QUICK = {"seeds": 20, "steps": 100, "batch": 16, "patterns": 64, "dimension": 128}


@dataclass(frozen=True)
class Case:
    """A setting with its place in the record.

    Attributes:
        track: key of `TRACKS`.
        change: key of `CHANGES`, or empty for the sweep of a.
        setting: what is run.
        variance: whether variance is injected as well.
    """

    track: str
    change: str
    setting: Setting
    variance: bool

    @property
    def name(self) -> str:
        """The case in words."""
        return f"{self.track}, a = {self.setting.a:g}" + (f", {self.change}" if self.change else "")

    @property
    def key(self) -> str:
        """Names the case in the folder of finished work."""
        return f"{self.setting.key}-{self.track}-{self.change}-{self.variance}"


def cases(*, quick: bool = False) -> Iterator[Case]:
    """All cases, the sweeps first; with `quick` a few small ones."""
    if quick:
        for track in ("two features, hinge", "four features, logistic"):
            for a in (0.1, 0.5):
                yield Case(track, "", Setting(a=a, **TRACKS[track], **QUICK), variance=a == 0.1)
        return
    for track, choice in TRACKS.items():
        for a in SHARES if track in VARIED else FEWER_SHARES:
            yield Case(track, "", Setting(a=a, **choice), variance=track in VARIED and a == VARIED_SHARE)
    for change, knobs in CHANGES.items():
        for track in VARIED:
            yield Case(track, change, replace(Setting(a=VARIED_SHARE, **TRACKS[track]), **knobs), variance=False)
