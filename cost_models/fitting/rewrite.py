"""Puts fitted numbers into calibration files and leaves everything else in them as it stands, comments too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def rewrite(path: Path, table: str, name: str, fields: Mapping[str, float]) -> None:
    """Replaces ``fields`` in the line ``name = { value = ..., residual = ..., ... }`` of a table."""
    text = path.read_text(encoding="utf-8")
    line = re.compile(rf'(?m)^"?{re.escape(name)}"? = \{{.*$').search(text, _header(text, table))
    new = line[0]
    for field, value in fields.items():
        new = re.sub(rf"\b{field} = [-+\d.e]+", f"{field} = {_number(value)}", new)
    path.write_text(text[: line.start()] + new + text[line.end() :], encoding="utf-8")


def rewrite_table(path: Path, table: str, fields: Mapping[str, float]) -> None:
    """Replaces the lines ``field = number`` of a table."""
    text = path.read_text(encoding="utf-8")
    start = _header(text, table)
    after = text.find("\n[", start)
    body, rest = (text[start:], "") if after < 0 else (text[start:after], text[after:])
    for field, value in fields.items():
        body = re.sub(rf"(?m)^{field} = [-+\d.e]+$", f"{field} = {_number(value)}", body)
    path.write_text(text[:start] + body + rest, encoding="utf-8")


def _number(value: float) -> str:
    """Four digits; 0 for what is nothing beside any constant's unit."""
    return f"{0.0 if abs(value) < 1e-9 else value:.4g}"


def _header(text: str, table: str) -> int:
    """Where the table's header ends."""
    return re.compile(rf"(?m)^\[(?:{re.escape(table)}|\"{re.escape(table)}\")\]$").search(text).end()
