"""Tables as TOML text with comments; what is written reads back as the same tables."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]{1,200}")


@dataclass(frozen=True, slots=True)
class Commented:
    """A value and the comment that stands behind it."""

    value: Any
    comment: str


def toml_text(tables: Mapping[str, Any], heads: Sequence[str] = ()) -> str:
    """``tables`` as a TOML file: plain values first, then tables; a mapping two tables deep is one line."""
    lines = [f"# {_plain(head)}" for head in heads]
    _write(lines, tables, ())
    return "\n".join(lines) + "\n"


def _write(lines: list[str], table: Mapping[str, Any], path: tuple[str, ...]) -> None:
    nested = {key: value for key, value in table.items() if _is_table(value, path)}
    for key, value in table.items():
        if key not in nested:
            lines.append(f"{_key(key)} = {_text(value)}{_comment(value)}")
    for key, value in nested.items():
        here = (*path, key)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(value, list):
                lines += ["", f"[[{'.'.join(map(_key, here))}]]"]
            elif not each or not all(_is_table(inner, here) for inner in each.values()):
                lines += ["", f"[{'.'.join(map(_key, here))}]"]
            _write(lines, each, here)


def _is_table(value: Any, path: tuple[str, ...]) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, Mapping) for each in value)
    return isinstance(value, Mapping) and path[-1:] != ("figures",)


def _text(value: Any) -> str:
    if isinstance(value, Commented):
        return _text(value.value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_text(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, date):
        return value.isoformat()
    return repr(value) if isinstance(value, int | float) else _quoted(str(value))


def _quoted(text: str) -> str:
    clean = text.encode("utf-8", "replace").decode()
    return json.dumps(clean, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _quoted(key)


def _comment(value: Any) -> str:
    return f"  # {_plain(value.comment)}" if isinstance(value, Commented) and value.comment else ""


def _plain(text: str) -> str:
    """Text that cannot end a comment or hide in it."""
    return "".join(c if c.isprintable() else "?" for c in text.encode("utf-8", "replace").decode())[:400]
