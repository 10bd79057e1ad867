"""What was measured of all runs, under one setting: the numbers that comparing figures and the table are made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from moesaic.report.numbers import number_text
from moesaic.report.sources import Material, Measurement, Run, Setting


@dataclass(frozen=True)
class Compared:
    """A measure that several runs have under the same setting.

    Attributes:
        name: of the measure, such as `kl`.
        setting: text, window, stride, samples.
        values: label of the run -> its measurement; runs without it are left out.
    """

    name: str
    setting: Setting
    values: dict[str, Measurement]


def compared(name: str, runs: Iterable[Run]) -> Compared | None:
    """A measure of all runs that have it, under the setting that most of them have; None where none has it.

    Ties go to the setting with more samples, then to the one that came first.
    """
    found = [(run.label, each) for run in runs for each in run.named(name)]
    if not found:
        return None
    counts = Counter(each.setting for _, each in found)
    best = max(counts, key=lambda setting: (counts[setting], setting[3]))
    return Compared(name, best, {label: each for label, each in found if each.setting == best})


def setting_text(setting: Setting) -> str:
    """The setting for people: `4,080 tokens of heldout.txt, window 256`."""
    text, window, stride, n = setting
    words = f"{n:,} tokens" + (f" of {text}" if text else "")
    if window:
        words += f", window {window:,}"
    return words + (f", stride {stride:,}" if stride and stride != window else "")


def value_text(measured: Measurement | None, digits: int = 4) -> str:
    """A measurement with its interval, such as `35.71 (28.93 to 44.09)`; a dash for none."""
    if measured is None:
        return "–"
    text = number_text(measured.value, digits)
    if measured.low is None or measured.high is None or measured.low == measured.high:
        return text
    return f"{text} ({number_text(measured.low, digits)} to {number_text(measured.high, digits)})"


def folder_bytes(run: Run) -> int | None:
    """Size of the whole folder: the manifest's word, else the record's; None where neither has it."""
    if "total_bytes" in run.manifest:
        return int(run.manifest["total_bytes"])
    measured = run.named("total_bytes")
    return int(measured[-1].value) if measured else None


def reference_perplexity(material: Material, setting: Setting) -> Measurement | None:
    """Perplexity of the full-precision model under that setting, from any run that was compared with it."""
    found = [each for run in material.runs for each in run.named("perplexity_reference") if each.setting == setting]
    return found[0] if found else None


def packed_runs(material: Material) -> list[Run]:
    """The runs that have a folder."""
    return [run for run in material.runs if run.manifest]
