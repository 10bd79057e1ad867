"""`moesaic evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moesaic.cli import parameters as p
from moesaic.cli.bundles import Output, takes

_TASKS = "Tasks"


@takes(output=Output)
def command(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A packed folder, or an ordinary checkpoint.")],
    output: Output,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Held-out text, UTF-8. May be given several times, such as once a domain: each is measured."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="The full-precision checkpoint to compare with: folder or hub id.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a window.  [default: 2048, or what the model can]")
    ] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Tokens between windows.  [default: the window]")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=2, help="Use only the first tokens of each text.")] = None,
    speed: Annotated[bool, typer.Option(help="Measure speed and memory, in a process of its own.")] = True,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate for the speed.")] = 32,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Evaluation sets: JSONL files or names such as arc_easy, with commas.", rich_help_panel=_TASKS
        ),
    ] = None,
    task_folder: Annotated[
        Path | None, typer.Option(help="Where the files of named sets are: NAME*.jsonl.", rich_help_panel=_TASKS)
    ] = None,
    task_limit: Annotated[
        int | None, typer.Option(min=1, help="Use only the first items of each task.", rich_help_panel=_TASKS)
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(help="Tasks of lm-eval, with commas; needs moesaic[lm-eval].", rich_help_panel=_TASKS),
    ] = None,
    lm_eval_include: Annotated[
        Path | None, typer.Option(help="Folder with task definitions for lm-eval.", rich_help_panel=_TASKS)
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", "--records", help="Write run records to this JSON file.")
    ] = None,
    pruning: p.SkipExperts = True,
    threads: p.Threads = None,
    trust_remote_code: p.TrustRemoteCode = False,
) -> None:
    """Measure a model: perplexity, divergence from full precision, routing, tasks, sizes, speed, memory."""
    from moesaic.checkpoint.locate import locate
    from moesaic.cli.console import set_threads
    from moesaic.errors import UsageError
    from moesaic.evaluate.run import EvaluateOptions, evaluate, records
    from moesaic.records import write_json

    if save is not None and not save.parent.is_dir():  # said now, not after hours of measuring
        raise UsageError(f"--save {save}: no folder {save.parent}; make it first")
    output.begin()
    set_threads(threads)
    options = EvaluateOptions(
        window=window,
        stride=stride,
        max_tokens=max_tokens,
        speed=speed,
        new_tokens=new_tokens,
        threads=threads,
        pruning=pruning,
        trust_remote_code=trust_remote_code,
        tasks=_names("--tasks", tasks),
        task_folder=task_folder,
        task_limit=task_limit,
        lm_eval=_names("--lm-eval", lm_eval),
        lm_eval_include=lm_eval_include,
    )
    if lm_eval_include is not None and not lm_eval_include.is_dir():
        raise UsageError(f"--lm-eval-include {lm_eval_include}: no such folder")
    reference = None if against is None else locate(against)
    with output.bar() as bar:
        found = evaluate(folder, text, reference=reference, options=options, progress=bar)
    if save is not None:
        write_json(save, {"format": "moesaic-records/1", "records": [record.to_json() for record in records(found)]})
    output.print(found, lambda: _print(found))


def _names(option: str, text: str | None) -> tuple[str, ...]:
    """`"a,b"` -> `("a", "b")`"""
    from moesaic.errors import UsageError

    names = () if text is None else tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise UsageError(f"{option} {text!r}: a name is empty; write them as a,b,c")
    return names


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=str(found["model"]), title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("", style="dim")
    for row in [*_text_rows(found), *_routing_rows(found), *_size_rows(found)]:
        table.add_row(*row)
    Console().print(table)
    if found["text"] is not None:
        Console().print(
            f"{found['tokens']} tokens of {found['text']}, window {found['window']}, stride {found['stride']}",
            style="dim",
        )
    if found["texts"]:
        Console().print(_table_of_texts(found))
    if found["tasks"] or found["lm_eval"]:
        Console().print(_task_table(found))
    for task in found["tasks"]:
        if task["cut"]:
            words = f"{task['task']}: the beginning of the context was cut off in {task['cut']} items"
            Console().print(f"{words} that are longer than what the model reads", style="dim")


def _table_of_texts(found: dict[str, Any]) -> Any:
    """A line for each text: quality, and the share of the expert activations that ran."""
    from rich.table import Table

    table = Table(title="texts", title_justify="left")
    table.add_column("text")
    columns = {"tokens": "tokens", "perplexity": "perplexity", "kl": "KL", "expert_share": "expert activations"}
    shown = [key for key in columns if found[key] is not None]
    for key in shown:
        table.add_column(columns[key], justify="right")
    form = {"tokens": "{:,}", "perplexity": "{:.3f}", "kl": "{:.4f}", "expert_share": "{:.1%}"}
    for part in [*found["texts"], {**found, "text": "all"}]:
        table.add_row(part["text"], *(form[key].format(part[key]) for key in shown))
    return table


def _text_rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    if found["perplexity"] is None:
        return []
    low, high = found["perplexity_interval"]
    rows = [("perplexity", f"{found['perplexity']:.3f}", f"95 % interval {low:.3f} to {high:.3f}")]
    if found["perplexity_reference"] is not None:
        rows += [
            ("  full precision", f"{found['perplexity_reference']:.3f}", ""),
            ("KL divergence", f"{found['kl']:.4f}", "nats a token, from full precision"),
            ("top-1 agreement", f"{100 * found['top1_agreement']:.2f} %", "with full precision"),
        ]
    if found["expert_share"] is not None:
        low, high = min(found["expert_share_layers"].values()), max(found["expert_share_layers"].values())
        between = f"run ({found['pruning']}); {100 * low:.1f} to {100 * high:.1f} % by layer"
        rows.append(("expert activations", f"{100 * found['expert_share']:.1f} %", between))
    return rows


def _routing_rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    if found["routing_layers"] is None:
        return []
    layers = [
        (f"  {name}", f"{100 * layer['same_set']:.2f} %", f"overlap {100 * layer['overlap']:.2f} %")
        for name, layer in found["routing_layers"].items()
    ]
    words = f"of tokens, as in full precision; overlap {100 * found['routing_overlap']:.2f} %"
    return [("same experts", f"{100 * found['routing_same_set']:.2f} %", words), *layers]


def _size_rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    from moesaic.cli.console import size_text

    rows = [
        ("code bits", f"{found['code_bits']:.3f}", "a weight of the experts"),
        ("stored bits", f"{found['stored_bpw']:.3f}", "a weight of the experts, all metadata included"),
        ("experts", size_text(found["expert_bytes"]), ""),
        ("whole folder", size_text(found["total_bytes"]), ""),
    ]
    if found["decode_tokens_per_second"] is not None:
        rows += [
            ("decode", f"{found['decode_tokens_per_second']:.1f}", f"tokens/s, backend {found['backend']}"),
            ("prefill", f"{found['prefill_tokens_per_second']:.1f}", "tokens/s"),
            ("peak memory", size_text(found["peak_memory_bytes"]), "of the process, libraries included"),
        ]
    return rows


def _task_table(found: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title="tasks", title_justify="left")
    table.add_column("measure", no_wrap=True)
    for name in ("value", "95 % interval", "reference"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("difference, 95 % interval", justify="right")  # two lines in a narrow terminal
    for task in [*found["tasks"], *found["lm_eval"]]:
        table.add_row(task["task"], f"{task['items']} items")
        for measure, figure in task["figures"].items():
            table.add_row(
                f"  {measure.replace('_', ' ')}",
                _number(figure["value"]),
                _numbers(figure["value_interval"]),
                "" if figure["reference"] is None else _number(figure["reference"]),
                "" if figure["difference"] is None else _difference(figure),
            )
    return table


def _number(value: float) -> str:
    """A share with three decimals, a large number with four digits."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def _numbers(interval: list[float] | None) -> str:
    return "" if interval is None else " to ".join(map(_number, interval))


def _difference(figure: dict[str, Any]) -> str:
    low, high = figure["difference_interval"]
    return f"{figure['difference']:+.3f}, {low:+.3f} to {high:+.3f}"
