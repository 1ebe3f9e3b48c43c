"""A value with where it came from, as everything that is read carries it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
CLOSE = 0.02
"""Figures that differ by less are the same."""


@dataclass(frozen=True, slots=True)
class Fact(Generic[T]):
    """A value, the file or option that it came from, how sure it is, and what was made of it."""

    value: T
    source: str
    kind: Literal["published", "derived", "measured", "assumed"] = "published"
    note: str = ""
