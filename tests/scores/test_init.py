"""The registries of rules: what is reordered by MaxVar is made of the rule itself."""

from __future__ import annotations

from moesaic.scores import COSTS, SCORERS, ActivationFrequency, FisherError, MaxVar, Reorder, ReorderCosts, needs_stats


def test_reordered_rules_are_built_of_the_plain_ones() -> None:
    """`NAME+max_var` is the rule NAME under MaxVar, for scores and for costs, and nothing is reordered by itself."""
    assert SCORERS["rarity+max_var"]() == Reorder(base=ActivationFrequency(rare_first=True), by=MaxVar())
    assert COSTS["fisher_error+max_var"]() == ReorderCosts(base=FisherError(), by=MaxVar())
    assert "max_var+max_var" not in SCORERS


def test_statistics_are_asked_for_through_the_wrapping() -> None:
    """A reordered rule needs what its parts need."""
    assert needs_stats(SCORERS["rarity+max_var"]())
    assert needs_stats(COSTS["fisher_error+max_var"]())
    assert not needs_stats(SCORERS["kurtosis+max_var"]())
