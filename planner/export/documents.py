"""YAML for people: texts of several lines as blocks, everything else as PyYAML's safe dumper quotes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


class _Blocks(yaml.SafeDumper):
    """The safe dumper with literal blocks."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Blocks.add_representer(str, _text)


def as_yaml(*documents: Mapping[str, Any]) -> str:
    """The documents as YAML, in the order of their keys, one behind the other."""
    return yaml.dump_all(documents, Dumper=_Blocks, sort_keys=False, width=120)
