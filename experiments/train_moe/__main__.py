"""Command line: `python -m experiments.train_moe --recipe FILE --corpus FOLDER --work FOLDER`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import PreTrainedModel

from .data import prepare_tokenizer, prepare_tokens
from .evaluate import Streams, evaluate, unigram_log_probabilities
from .export import export_model
from .model import build_model
from .recipe import Recipe, load_recipe
from .train import Workspace, train


def measure(model: PreTrainedModel, streams: Streams, recipe: Recipe) -> dict[str, Any]:
    """Size of the run and its held-out results."""
    unigram = unigram_log_probabilities(streams, recipe)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": recipe.steps,
        "tokens_per_step": recipe.batch_size * recipe.seq_len,
        "tokens_seen": recipe.steps * recipe.batch_size * recipe.seq_len,
        "training_tokens": {domain: len(streams[f"{domain}.train"]) for domain in recipe.domains},
        "valid": evaluate(model, streams, recipe, "valid", unigram),
        "test": evaluate(model, streams, recipe, "test", unigram),
    }


def run(recipe: Recipe, corpus: Path, space: Workspace, stop_after: int | None = None) -> bool:
    """Train, export and evaluate; returns False if stopped before the last step."""
    torch.set_num_threads(recipe.threads)
    space.root.mkdir(parents=True, exist_ok=True)
    tokenizer = prepare_tokenizer(corpus, recipe, space.tokenizer)
    streams = prepare_tokens(corpus, recipe, tokenizer, space.tokens)
    model = build_model(recipe, tokenizer)
    if not train(model, streams, recipe, space, stop_after):
        return False
    export_model(model, tokenizer, space)
    metrics = measure(model.float(), streams, recipe)
    space.metrics.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return True


def main(
    recipe: Annotated[Path, typer.Option(help="JSON recipe of the run.", exists=True, dir_okay=False)],
    corpus: Annotated[Path, typer.Option(help="Folder of DOMAIN.{train,valid,test}.txt files.", exists=True)],
    work: Annotated[Path, typer.Option(help="Folder for checkpoints and results.")],
    stop_after: Annotated[int | None, typer.Option(help="Stop after this step, to go on later.")] = None,
) -> None:
    """Train a small mixture-of-experts language model; run again to go on after an interruption."""
    space = Workspace(work)
    if run(load_recipe(recipe), corpus, space, stop_after):
        typer.echo(f"finished: {space.export}, {space.metrics}")
    else:
        typer.echo("stopped before the last step; the same command goes on from the last checkpoint")


if __name__ == "__main__":
    typer.run(main)
