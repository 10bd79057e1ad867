"""Looking up names, with help for typing errors."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from moesaic import registry
from moesaic.errors import UnknownName

KNOWN = {"router_norm": 1, "max_var": 2, "random": 3}


def test_known_name_is_returned() -> None:
    """A registered name gives its value."""
    assert registry.look_up("max_var", KNOWN, kind="scoring rule") == 2


def test_miss_names_the_nearest_and_all() -> None:
    """A typing error is answered with the closest name and the whole list."""
    with pytest.raises(UnknownName, match=r"scoring rule 'router_nrom'; did you mean 'router_norm'\?") as caught:
        registry.look_up("router_nrom", KNOWN, kind="scoring rule")
    assert "Known: max_var, random, router_norm" in str(caught.value)


def test_far_miss_makes_no_guess() -> None:
    """A name that is like nothing gets no silly suggestion."""
    with pytest.raises(UnknownName) as caught:
        registry.look_up("zzzz", KNOWN, kind="scoring rule")
    assert "did you mean" not in str(caught.value)


def test_empty_registry_is_refused_politely() -> None:
    """Even with nothing registered the answer is an UnknownName."""
    with pytest.raises(UnknownName):
        registry.look_up("a", {}, kind="thing")


def test_entry_points_of_other_packages_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that another package registers in the group `moesaic.scores` is loaded; ours come first."""
    points = EntryPoints(
        [
            EntryPoint(name="theirs", value="math:tau", group="moesaic.scores"),
            EntryPoint(name="random", value="math:pi", group="moesaic.scores"),
        ]
    )
    monkeypatch.setattr(registry, "entry_points", lambda group: points.select(group=group))
    assert registry.look_up("theirs", KNOWN, kind="rule", group="scores") == pytest.approx(6.2831853)
    assert registry.look_up("random", KNOWN, kind="rule", group="scores") == 3
    with pytest.raises(UnknownName, match="'theirs'"):
        registry.look_up("their", KNOWN, kind="rule", group="scores")


def test_nearest() -> None:
    """Spelling distance decides, and there may be nothing near."""
    assert registry.nearest("hqqq", ["rtn", "hqq"]) == "hqq"
    assert registry.nearest("xyz", ["rtn", "hqq"]) is None
