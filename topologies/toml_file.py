"""TOML files from anywhere: their text and tables, or what is wrong with them, in one line."""

from __future__ import annotations

import tomllib
from pathlib import Path

from topologies.errors import BadInput

LARGEST_BYTES = 2_000_000


def read_toml(path: Path) -> dict:
    """The tables of a TOML file. Raises ``BadInput`` for a file that is missing, too large, not text or not TOML."""
    text = file_text(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{_shown(path)} is not TOML: {error}") from error


def file_text(path: Path) -> str:
    """The text of a TOML file. Raises ``BadInput`` for a file that is missing, no file, too large or not text."""
    shown = _shown(path)
    try:
        if path.exists() and not path.is_file():
            raise BadInput(f"{shown} is not a file but a directory or a device; give the path of a TOML file")
        if path.stat().st_size > LARGEST_BYTES:
            raise BadInput(
                f"{shown} is {path.stat().st_size} bytes; a description in TOML is at most {LARGEST_BYTES:,}"
            )
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{shown} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise BadInput(f"{shown} cannot be read: {error.strerror}") from error
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput(f"{shown} cannot be read: {error}; give the path of a TOML file") from error


def _shown(path: Path) -> str:
    """The path's first 200 characters, control characters escaped."""
    text = str(path)[:200]
    return text if text.isprintable() else repr(text)
