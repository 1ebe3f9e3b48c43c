"""Answers on stdout: tables for people, one JSON object for programs."""

from __future__ import annotations

import json
from typing import Any

import typer

PIPED_WIDTH = 120


def show(content: Any) -> None:
    """Tables as wide as the terminal, or 120 columns without trailing blanks in a pipe or a file."""
    from rich.console import Console

    from planner.report import as_text

    console = Console()
    if console.is_terminal:
        console.print(content)
    else:
        typer.echo(as_text(content, width=PIPED_WIDTH), nl=False)


def print_json(data: dict[str, Any]) -> None:
    """One JSON object, indented."""
    typer.echo(json.dumps(data, indent=2, allow_nan=False))
