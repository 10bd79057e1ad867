"""`moesaic allocate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesaic.cli import parameters as p
from moesaic.cli.bundles import Output, takes

if TYPE_CHECKING:
    from moesaic.records import CostTable, LayerShape, Scores


@takes(output=Output)
def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Scores (`moesaic score`) or costs, JSON.")],
    output: Output,
    bits: Annotated[float, typer.Option(help="Average code bits of an expert's weight.")],
    model: Annotated[
        str | None, typer.Option("--model", help="The checkpoint that they are of.  [default: needed for scores only]")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Plan file to write.  [default: print]")] = None,
    allocator: p.Method = None,
    levels: p.Levels = None,
    at_least: p.AtLeast = None,
    form: p.Form = None,
    solver: p.Solver = None,
    trust_remote_code: p.TrustRemoteCode = False,
) -> None:
    """Turn scores or costs and a budget into a bit plan, which can be edited and given to `compress --plan`."""
    from moesaic.allocate.choices import shapes_of
    from moesaic.errors import UsageError
    from moesaic.options import CompressOptions
    from moesaic.records import CostTable, write_json

    output.begin(libraries=model is not None)
    given = _read(file)
    name = allocator or ("global" if isinstance(given, CostTable) else None)
    by_matrix = isinstance(given, CostTable) and given.per_matrix
    rule = "router_norm"  # one of scores: where no allocator is named, the rule decides it, and this file is of scores
    options = CompressOptions(bits=bits, rule=rule, allocator=name, levels=p.parse_levels(levels), per_matrix=by_matrix)
    knobs = {"at_least_one": p.parse_at_least(at_least), "form": form, "solver": solver}
    made = options.make_allocator(**{knob: value for knob, value in knobs.items() if value is not None})
    if model is not None:
        shapes = _shapes_of_model(model, trust_remote_code=trust_remote_code)
    elif isinstance(given, CostTable):
        shapes = shapes_of(given)
    else:
        raise UsageError(f"{file} holds scores: give their checkpoint with --model")
    plan = made(shapes, options.budget, given)
    if isinstance(given, CostTable):
        output.note(f"{plan.method}: {plan.reached_bits(shapes):.6g} bits")
    if out is not None:
        write_json(out, plan.to_json(shapes))
    output.print(plan.to_json(shapes), None if out else lambda: print(json.dumps(plan.to_json(shapes), indent=2)))


def _shapes_of_model(model: str, *, trust_remote_code: bool) -> list[LayerShape]:
    """The MoE layers of a checkpoint."""
    from moesaic.checkpoint.locate import locate
    from moesaic.checkpoint.reader import Checkpoint

    checkpoint = Checkpoint.open(locate(model), trust_remote_code=trust_remote_code)
    return [layer.shape for layer in checkpoint.layers]


def _read(file: Path) -> Scores | CostTable:
    """Scores or costs, whichever the file says it holds."""
    from moesaic.errors import CorruptFile
    from moesaic.records import CostTable, Scores, read_json

    data = read_json(file)
    forms: dict[str, type[Scores] | type[CostTable]] = {"moesaic-scores/1": Scores, "moesaic-costs/1": CostTable}
    noun = forms.get(str(data.get("format")))
    if noun is None:
        raise CorruptFile(f'{file}: its "format" is {data.get("format")!r}, not {" or ".join(map(repr, forms))}')
    try:
        return noun.from_json(data)
    except CorruptFile as error:
        raise CorruptFile(f"{file}: {error}") from None
