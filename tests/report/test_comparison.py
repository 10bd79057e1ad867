"""What was measured of several runs under one setting."""

from __future__ import annotations

from moesaic.report.comparison import (
    compared,
    folder_bytes,
    packed_runs,
    reference_perplexity,
    setting_text,
    value_text,
)
from moesaic.report.sources import Material, Run
from tests.report.made_up import measurement, run, three_runs


def test_only_one_setting_is_compared() -> None:
    """Runs measured on other text or windows are not put beside each other; the setting that most have is taken."""
    runs = [
        run("a", "2 2", measurement("kl", 1.0), measurement("kl", 9.0, window=32)),
        run("b", "2 2", measurement("kl", 2.0)),
        run("c", "2 2", measurement("kl", 3.0, text="other.txt")),
    ]
    found = compared("kl", runs)
    assert found is not None
    assert {label: each.value for label, each in found.values.items()} == {"a": 1.0, "b": 2.0}
    assert compared("perplexity", runs) is None


def test_words_for_settings_and_values() -> None:
    """Text, window, and a stride that differs are said; an interval of no width is not."""
    assert setting_text(("t.txt", 256, 256, 4080)) == "4,080 tokens of t.txt, window 256"
    assert setting_text(("t.txt", 256, 128, 4080)).endswith("stride 128")
    assert setting_text((None, None, None, 7)) == "7 tokens"
    assert value_text(measurement("kl", 0.5, 0.4, 0.6)) == "0.5 (0.4 to 0.6)"
    assert value_text(measurement("kl", 0.5, 0.5, 0.5)) == "0.5"
    assert value_text(None) == "–"


def test_sizes_and_references() -> None:
    """A folder's size comes from its manifest, else from a record; full precision from any run that met it."""
    assert folder_bytes(run("a")) == 2_000_000
    assert folder_bytes(Run("full", "", {}, (measurement("total_bytes", 7.0),))) == 7
    assert folder_bytes(Run("full", "", {})) is None
    material = three_runs()
    found = compared("perplexity", material.runs)
    assert found is not None
    reference = reference_perplexity(material, found.setting)
    assert reference is not None
    assert reference.value == 25
    assert reference_perplexity(material, ("other", 1, 1, 1)) is None
    assert len(packed_runs(Material((*material.runs, Run("full", "", {}))))) == 3
