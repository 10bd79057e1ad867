"""The table of options is that of the library."""

from __future__ import annotations

import dataclasses

from moesaic.cli.compress_flags import CompressFlags
from moesaic.options import CompressOptions


def test_every_option_of_the_library_is_on_the_command_line() -> None:
    """Names and defaults agree, so that nothing is forgotten when an option is added."""
    flags = {field.name: field.default for field in dataclasses.fields(CompressFlags)}
    options = {field.name: field.default for field in dataclasses.fields(CompressOptions)}
    assert flags.pop("recipe") is None
    assert flags.pop("shard_size") * 1e9 == options.pop("shard_bytes")
    assert (flags.pop("calibration"), options.pop("calibration")) == (None, ())  # files with commas
    assert flags == options


def test_flags_become_options() -> None:
    """Values that have another form on the command line are turned into the library's."""
    made = CompressFlags(bits=2.5, levels="2,3", shard_size=0.5).options()
    assert (made.bits, made.levels, made.shard_bytes) == (2.5, (2, 3), 500_000_000)
    assert CompressFlags().options(bits=3.0) == CompressOptions(bits=3.0)


def test_a_recipe_has_the_names_of_the_flags() -> None:
    """What is saved as a recipe can be given again."""
    recipe = CompressOptions(bits=2.5, levels=(2, 3)).recipe()
    assert set(recipe) <= {field.name for field in dataclasses.fields(CompressFlags)}
    assert (recipe["shard_size"], recipe["levels"]) == (5.0, [2, 3])
