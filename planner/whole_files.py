"""Files that appear whole or not at all: written beside their places, then moved in."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from planner.errors import BadInput


def replace_whole(folder: Path, files: Mapping[str, str | bytes], modes: Mapping[str, int] | None = None) -> list[Path]:
    """Writes every content beside its place in ``folder``, then moves all in; returns their paths. Text is UTF-8.

    ``modes`` are permissions by name; the others' are the user's own. Raises ``OSError`` before any file has changed.
    """
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as staged:
        for name, content in files.items():
            beside = Path(staged) / name
            beside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
            if modes:
                beside.chmod(modes[name])
        for name in files:
            os.replace(Path(staged) / name, folder / name)
    return [folder / name for name in files]


def write_whole(folder: Path, files: Mapping[str, str]) -> list[Path]:
    """:func:`replace_whole` in a folder that is made where it is missing.

    Raises ``BadInput`` where the folder cannot be made or written; then no file of it has changed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return replace_whole(folder, files)
    except OSError as error:
        raise BadInput(
            f"cannot write to {str(folder)[:200]!r}: {error.strerror or error}; name another place"
        ) from error
