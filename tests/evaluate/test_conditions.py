"""The conditions that measurements carry."""

from __future__ import annotations

import json

import torch

from moesaic.evaluate.conditions import conditions, processor_name
from moesaic.kernels import describe


def test_conditions_say_machine_and_versions() -> None:
    """Machine, threads, backend and versions are there, more can be added, and all of it is JSON."""
    found = conditions(seed=3)
    assert found["seed"] == 3
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == torch.__version__
    assert found["machine"] == processor_name()
    assert found["machine"]
    assert found["kernels"] == describe()
    assert found["kernels"]["backend"] == found["backend"]
    assert json.loads(json.dumps(found)) == found
