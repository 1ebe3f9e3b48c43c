"""What answers have in common: printed, and at the end of a notebook's cell, they show their summary."""

from __future__ import annotations

import abc
import html


class Summarised(abc.ABC):
    """An answer with a ``summary()``: ``print(answer)`` prints it, and a notebook shows it as it stands."""

    __slots__ = ()

    @abc.abstractmethod
    def summary(self) -> str:
        """The answer as text for a terminal."""

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.summary())}</pre>"
