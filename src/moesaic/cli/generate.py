"""`moesaic generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesaic.cli import parameters as p
from moesaic.cli.bundles import Output, takes


@takes(output=Output)
def command(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A packed folder, or an ordinary checkpoint.")],
    output: Output,
    prompt: Annotated[str, typer.Option(help="What to go on from.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most likely token each time.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed for temperatures above 0.")] = 0,
    pruning: p.SkipExperts = True,
    threads: p.Threads = None,
    trust_remote_code: p.TrustRemoteCode = False,
) -> None:
    """Generate text."""
    import torch
    from transformers import TextStreamer

    from moesaic.cli.console import set_threads
    from moesaic.errors import InvalidText, UsageError
    from moesaic.runtime.hf import open_any, open_tokenizer

    output.begin()
    set_threads(threads)
    torch.manual_seed(seed)
    model = open_any(folder, trust_remote_code=trust_remote_code, pruning=pruning)
    tokenizer = open_tokenizer(folder, trust_remote_code=trust_remote_code)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    if not inputs["input_ids"].numel():
        raise UsageError("--prompt holds no tokens: give at least a word to go on from")
    largest = int(inputs["input_ids"].max())
    if largest >= model.get_input_embeddings().num_embeddings:
        raise InvalidText(f"{folder}: its tokenizer makes token {largest}, which the model does not have")
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    streamer = None if output.json_ else TextStreamer(tokenizer, skip_special_tokens=True)
    with torch.inference_mode():
        tokens = model.generate(
            **inputs, max_new_tokens=max_new_tokens, streamer=streamer, pad_token_id=tokenizer.pad_token_id, **sampling
        )
    text = tokenizer.decode(tokens[0], skip_special_tokens=True)
    output.print({"prompt": prompt, "text": text, "tokens": int(tokens.shape[1])})
