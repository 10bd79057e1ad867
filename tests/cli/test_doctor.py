"""`moesaic doctor`."""

from __future__ import annotations

import json

from tests.processes import call_cli


def test_for_people_and_as_json() -> None:
    """Both forms have the same findings."""
    shown, found = call_cli("doctor"), json.loads(call_cli("doctor", "--json").out)
    assert shown.code == 0
    names = [each["name"] for each in found["findings"]]
    assert {"kernels", "threads", "memory", "torch"} <= set(names)
    assert all(name in shown.out for name in names)
