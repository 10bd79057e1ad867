"""Held-out texts: one or several, such as one a domain, each measured by itself and all together."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from moesaic.evaluate.flat import quality_figures, routing_figures, share_figures
from moesaic.evaluate.quality import Scored, score_windows
from moesaic.evaluate.routing import RoutingComparison
from moesaic.families import MoeLayer
from moesaic.progress import SILENT, Progress
from moesaic.runtime.skipping import Counted, Skipping, skipping_of
from moesaic.text import Window, read_text, windows


@dataclass(frozen=True)
class Text:
    """A text that was read.

    Attributes:
        name: of its file; of two files with the same name, the whole path.
        content: the characters.
    """

    name: str
    content: str


def read_texts(text: Path | Sequence[Path] | None) -> list[Text]:
    """The texts of these files; none for None.

    Raises:
        InvalidText: a file that cannot be read, is not UTF-8 or holds nothing.
    """
    paths = [] if text is None else [text] if isinstance(text, Path) else list(text)
    names = Counter(path.name for path in paths)
    return [Text(path.name if names[path.name] == 1 else str(path), read_text(path)) for path in paths]


@dataclass(frozen=True)
class Cut:
    """A text as windows of tokens."""

    name: str
    windows: list[Window]

    @classmethod
    def of(cls, text: Text, tokens: list[int], *, length: int, stride: int, limit: int | None) -> Cut:
        """Cut the tokens of a text; see `moesaic.text.windows`."""
        return cls(text.name, windows(tokens, length=length, stride=stride, limit=limit))


def text_figures(
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    cuts: list[Cut],
    *,
    layers: list[MoeLayer],
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure all texts.

    Args:
        model: what is measured; with a skipping policy, its shares are counted.
        reference: what it is compared with.
        cuts: the texts.
        layers: expert layers that both models have, whose routers are compared.
        progress: told of every scored token.

    Returns:
        The figures of all texts together, and under `texts` those of each, where there are several. All are None
        where there is no text.
    """
    skipping = skipping_of(model)
    if not cuts:
        return {**quality_figures(None), **share_figures(None), **routing_figures(None), "texts": []}
    progress.start("evaluate", sum(window.scored for cut in cuts for window in cut.windows))
    scored, counted, parts = Scored(), Counted(), []
    with contextlib.ExitStack() as stack:
        routing = None
        if reference is not None and layers:
            routing = stack.enter_context(RoutingComparison(model, reference, layers))
        after = None if routing is None else routing.add
        for cut in cuts:
            _count(skipping)
            own = score_windows(model, cut.windows, reference=reference, progress=progress, after=after)
            ran = Counted() if skipping is None else skipping.counted()
            shares = share_figures(None if skipping is None else ran)
            parts.append({"text": cut.name, **quality_figures(own.quality()), **shares})
            scored, counted = scored + own, counted + ran
    return {
        **quality_figures(scored.quality()),
        **share_figures(None if skipping is None else counted),
        **routing_figures(routing),
        "texts": parts if len(parts) > 1 else [],
    }


def _count(skipping: Skipping | None) -> None:
    if skipping is not None:
        skipping.count()
