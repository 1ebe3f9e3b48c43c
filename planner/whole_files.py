"""Files that appear whole or not at all: written beside their places, then moved in."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from planner.errors import BadInput


def replace_whole(folder: Path, files: Mapping[str, str | bytes], modes: Mapping[str, int] | None = None) -> list[Path]:
    """Writes every content beside its place in ``folder``, then moves all in; returns their paths. Text is UTF-8.

    ``modes`` are permissions by name; the others' are the user's own. Raises ``OSError`` before any file has changed,
    unless a move itself fails, which is within a directory and onto no other.
    """
    if taken := [name for name in files if (folder / name).is_dir() and not (folder / name).is_symlink()]:
        raise IsADirectoryError(errno.EISDIR, f"{taken[0]} is a directory there")
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as staged:
        for name, content in files.items():
            beside = Path(staged) / name
            beside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
            if modes:
                beside.chmod(modes[name])
        for name in files:
            os.replace(Path(staged) / name, folder / name)
    return [folder / name for name in files]


def write_whole(
    folder: Path, files: Mapping[str, str], modes: Mapping[str, int] | None = None, what: str = ""
) -> list[Path]:  # fmt: skip
    """:func:`replace_whole` in a folder that is made where it is missing.

    Raises ``BadInput`` that says ``what`` (the files' names, where nothing is said) cannot be written, and why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return replace_whole(folder, files, modes)
    except OSError as error:
        raise BadInput(
            f"cannot write {what or ', '.join(files)} to {str(folder)[:200]!r}: {error.strerror or error}; name a "
            "place that you may write to"
        ) from error


def check_writable(folder: Path) -> None:
    """Raises ``BadInput`` for what cannot become a directory that this user may write in, before time is spent."""
    said = repr(str(folder)[:200])
    try:
        if "\0" in str(folder) or (folder.exists() and not folder.is_dir()):
            raise BadInput(f"--out {said} is no directory and cannot become one; name a new or existing one")
        parent = next(it for it in (folder, *folder.absolute().parents) if it.exists())
    except OSError as error:
        raise BadInput(f"--out {said} cannot be a directory: {error.strerror}; name another place") from error
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise BadInput(f"--out {said}: {str(parent)[:200]!r} cannot be written; name another place")
