"""Answers on stdout: tables for people, one JSON object for programs. On stderr, what is going on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def status_line(at_first: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is going on, with what changes it; nothing where stderr is not a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status(at_first) as status:
        yield lambda text: status.update(text)
