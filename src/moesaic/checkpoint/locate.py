"""From what the user calls a model to a folder on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from moesaic.errors import NotACheckpoint

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "LICENSE*", "NOTICE*", "*.py"]


def locate(model: str | Path) -> Path:
    """A local folder as it is; a hub id `owner/name` downloaded into the Hugging Face cache (resumable).

    Raises:
        NotACheckpoint: neither.
    """
    path = Path(model).expanduser()
    if path.exists():
        return path
    text = str(model)
    if not _HUB_ID.fullmatch(text) or text.startswith("."):
        raise NotACheckpoint(f"{text}: no such folder, and not a hub id of the form owner/name")
    try:
        return Path(snapshot_download(text, allow_patterns=_WANTED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotACheckpoint(f"{text}: no such folder here, and the hub did not give it: {reason}") from None
