"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from planner.errors import BadInput


def write_whole(folder: Path, files: Mapping[str, str]) -> list[Path]:
    """Writes every text beside its place, then moves all in; returns their paths.

    Raises ``BadInput`` where the folder cannot be made or written; then no file of it has changed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as staged:
            for name, text in files.items():
                (Path(staged) / name).write_text(text, encoding="utf-8")
            for name in files:
                os.replace(Path(staged) / name, folder / name)
    except OSError as error:
        raise BadInput(
            f"cannot write to {str(folder)[:200]!r}: {error.strerror or error}; name another place"
        ) from error
    return [folder / name for name in files]
