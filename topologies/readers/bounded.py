"""Text, XML, JSON and YAML from files nobody vouches for: bounded in size and depth, no entities, no aliases."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from xml.parsers import expat

import yaml

from topologies.errors import BadInput

MOST_BYTES = 32_000_000
MOST_YAML_BYTES = 2_000_000
MOST_ELEMENTS = 200_000
DEEPEST = 96
_WHOLE = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]{1,16}|[0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class Element:
    """An XML element: what stands between its tags is ``text``."""

    tag: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def get(self, name: str) -> str:
        """The attribute, empty where there is none."""
        return self.attributes.get(name, "")

    @property
    def text(self) -> str:
        """The character data directly inside."""
        return "".join(self.words)


def read_text(path: str | Path) -> str:
    """The file's text. Raises ``BadInput`` for what is no file, too large, empty, or not UTF-8 text."""
    file = Path(path)
    try:
        if file.exists() and not file.is_file():
            raise BadInput(f"{file} is not a file but a directory or a device; give the path of a file")
        with file.open("rb") as open_file:
            content = open_file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise BadInput(f"{file} is larger than {MOST_BYTES} bytes, the limit of a description")
        return text_of(content, str(file))
    except (OSError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{str(file)[:200]!r} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def text_of(content: bytes, origin: str) -> str:
    """Bytes as text, without a byte-order mark. Raises ``BadInput`` for what is empty or not UTF-8 text."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{origin} is not UTF-8 text: {error.reason} at byte {error.start}; is it packed?") from error
    if "\0" in text:
        raise BadInput(f"{origin} holds a NUL character, so it is no text; is it packed or broken off?")
    if not text.strip():
        raise BadInput(f"{origin} is empty: the command that should have written it printed nothing")
    return text


def xml_root(text: str, origin: str) -> Element:
    """The root of an XML text; a DTD is skipped unread.

    Raises ``BadInput`` for anything malformed or broken off, for an entity of any kind, and past the limits.
    """
    builder = _Builder(origin)
    parser = expat.ParserCreate("UTF-8")
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = builder.entity
    parser.SkippedEntityHandler = builder.entity
    try:
        parser.Parse(text.encode("utf-8", "replace"), True)
    except expat.ExpatError as error:
        raise BadInput(f"{origin} is not whole XML: {error}; was it broken off?") from error
    return builder.root[0]


class _Builder:
    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.root: list[Element] = []
        self.open: list[Element] = []
        self.count = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        element = Element(tag, attributes)
        self.count += 1
        if self.count > MOST_ELEMENTS or len(self.open) >= DEEPEST:
            raise BadInput(f"{self.origin} has more than {MOST_ELEMENTS} elements or {DEEPEST} levels: no real machine")
        (self.open[-1].children if self.open else self.root).append(element)
        self.open.append(element)

    def end(self, tag: str) -> None:
        self.open.pop()

    def data(self, text: str) -> None:
        self.open[-1].words.append(text)

    def entity(self, name: str, *_: Any) -> NoReturn:
        raise BadInput(f"{self.origin} declares or uses the XML entity {name[:40]!r}; entities are refused: remove it")


def json_root(text: str, origin: str) -> Any:
    """A JSON text's value. Raises ``BadInput`` for anything malformed, for NaN and infinities, and for deep nesting."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{origin} is not whole JSON: {str(error)[:120]}; was it broken off?") from error


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def yaml_root(text: str, origin: str) -> Any:
    """A YAML text's value. Raises ``BadInput`` for anything malformed, and for aliases, tags and depth."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if len(text) > MOST_YAML_BYTES:
        raise BadInput(f"{origin} is {len(text)} characters of YAML; the limit is {MOST_YAML_BYTES}; give it as JSON")
    try:
        _check_events(text, loader, origin)
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{origin} is not whole YAML: {' '.join(str(error).split())[:160]}") from error


def _check_events(text: str, loader: Any, origin: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.AliasEvent):
            raise BadInput(f"{origin} uses the YAML alias {event.anchor[:40]!r}; aliases are refused: write it out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise BadInput(f"{origin} is nested more than {DEEPEST} levels deep; no description is")


def whole(text: str, what: str, origin: str, most: int = 2**31) -> int:
    """A whole number, decimal or hexadecimal, from -1. Raises ``BadInput`` naming what it should have been."""
    if _WHOLE.fullmatch(text) is None or not -1 <= int(text, 0 if "x" in text.lower() else 10) <= most:
        raise BadInput(f"{origin}: {what} is a whole number from -1 to {most}; got {text[:40]!r}")
    return int(text, 0 if "x" in text.lower() else 10)


def real(text: str | float, what: str, origin: str, most: float = 1e18) -> float:
    """A finite number from 0. Raises ``BadInput`` naming what it should have been."""
    try:
        value = float(text)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not 0 <= value <= most:
        raise BadInput(f"{origin}: {what} is a number from 0 to {most:g}; got {str(text)[:40]!r}")
    return value
