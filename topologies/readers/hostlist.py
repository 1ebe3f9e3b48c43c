"""Slurm's lists of hosts: ``tux[0-3,12],gpu7`` as names, never more than a bound."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from topologies.errors import BadInput

MOST_NAMES = 200_000
_PIECE = re.compile(r"\[([0-9,\-]{1,4000})\]|([^\[\],\s]{1,128})")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def expand(text: str, origin: str) -> tuple[str, ...]:
    """Every name of a list, in order. Raises ``BadInput`` for a list that is malformed or holds too many names."""
    names: list[str] = []
    for word in _words(text, origin):
        pieces = _pieces(word, origin)
        count = 1
        for choices in pieces:
            count *= len(choices)
        if count + len(names) > MOST_NAMES:
            raise BadInput(f"{origin}: the list {word[:60]!r} holds more than {MOST_NAMES} names")
        names += ["".join(parts) for parts in itertools.product(*pieces)]
    return tuple(names)


def _words(text: str, origin: str) -> Iterator[str]:
    """Words between commas that are outside brackets."""
    depth, start = 0, 0
    for k, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if not 0 <= depth <= 1:
            raise BadInput(f"{origin}: brackets of the list {text[:60]!r} do not match")
        if letter == "," and depth == 0:
            if text[start:k].strip():
                yield text[start:k].strip()
            start = k + 1
    if depth:
        raise BadInput(f"{origin}: the list {text[:60]!r} ends inside a bracket; was it broken off?")
    if text[start:].strip():
        yield text[start:].strip()


def _pieces(word: str, origin: str) -> list[list[str]]:
    pieces, at = [], 0
    while at < len(word):
        match = _PIECE.match(word, at)
        if match is None or len(pieces) >= 8:
            raise BadInput(f"{origin}: {word[:60]!r} is no list of hosts like tux[0-3,12]")
        pieces.append(_numbers(match[1], origin) if match[1] is not None else [match[2]])
        at = match.end()
    return pieces


def _numbers(text: str, origin: str) -> list[str]:
    """The numbers of a bracket, with leading zeros as they stand."""
    numbers: list[str] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise BadInput(f"{origin}: {part[:40]!r} is no number or range of a list of hosts")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first + len(numbers) >= MOST_NAMES:
            raise BadInput(f"{origin}: the range {part[:40]!r} runs backwards or holds more than {MOST_NAMES} names")
        numbers += [str(n).zfill(len(match[1])) for n in range(first, last + 1)]
    return numbers
