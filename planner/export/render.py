"""Templates of launch files: missing values are errors, and every word for a shell passes ``quote``."""

from __future__ import annotations

import json
import re
import shlex
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

Files = dict[str, tuple[str, int]]
"""Text and file mode by file name."""

SCRIPT, DOCUMENT = 0o755, 0o644


def render(template: str, **values: Any) -> str:
    """The text of ``templates/<template>`` with its values filled in."""
    return _environment().get_template(template).render(**values)


def comment(text: object) -> str:
    """``text`` on one line of printable ASCII, so that it cannot leave a comment."""
    return json.dumps(str(text))[1:-1]


def job_name(text: object) -> str:
    """``text`` as one word of letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", str(text)).strip("-") or "model"


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"quote": lambda word: shlex.quote(str(word)), "comment": comment, "job_name": job_name}
    return environment
