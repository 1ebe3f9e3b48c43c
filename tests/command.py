"""The ``meshwright`` command run in this process, as a shell would see it."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import sys
from dataclasses import dataclass
from typing import Any
from unittest import mock

import typer.main

from planner.cli import main

ONCE = functools.cache(typer.main.get_command)
"""Typer's command of an app, which it makes anew at each call: a process of the command's own calls it once."""


@dataclass(frozen=True)
class Answer:
    """What a command left behind: its exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output as one JSON object; fails where anything else stands there."""
        return json.loads(self.out)


def meshwright(*words: str) -> Answer:
    """Run ``meshwright WORDS``. Anything but a clean exit is raised: a traceback fails the test."""
    out, err = io.StringIO(), io.StringIO()
    code: int | str | None = 0
    argv = mock.patch.object(sys, "argv", ["meshwright", *words])
    once = mock.patch.object(typer.main, "get_command", ONCE)
    with argv, once, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    return Answer(code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())


def refused(*words: str) -> str:
    """The message of a command that must end with 2: nothing on stdout, one message on stderr, no traceback."""
    answer = meshwright(*words)
    assert answer.code == 2, answer
    assert answer.out == "", answer
    assert "Traceback" not in answer.err
    return answer.err
