"""`import moesaic` makes transformers understand packed folders, in whatever order the two are imported."""

from __future__ import annotations

import subprocess
import sys

import pytest
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from moesaic.runtime.on_import import register_when_imported

ORDERS = {
    "moesaic first": "import moesaic, transformers",
    "transformers first": "import transformers.quantizers.auto, moesaic",
}
CHECK = """
{order}
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as known, AutoQuantizationConfig
assert 'gptq' in known and 'nonsense' not in known
config = AutoQuantizationConfig.from_dict({{'quant_method': 'moesaic', 'group_size': 32}})
print(type(config).__name__, config.group_size)
"""


@pytest.mark.parametrize("order", ORDERS)
def test_method_is_known_in_any_order(order: str) -> None:
    """The quantization method is registered whichever package came first."""
    code = CHECK.format(order=ORDERS[order])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "MoesaicConfig 32", done.stderr


def test_registering_again_does_no_harm() -> None:
    """A second registration neither fails nor leaves a second finder behind."""
    before = list(sys.meta_path)
    register_when_imported()
    register_when_imported()
    assert sys.meta_path == before
    assert "moesaic" in AUTO_QUANTIZATION_CONFIG_MAPPING
