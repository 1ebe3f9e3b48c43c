"""Even cuts and runs of layers, for the oracle."""

from __future__ import annotations

import itertools


def even_cuts(layers: int, pp: int, virtual: int) -> list[list[int]]:
    """Cuts into equal virtual stages, embedding, head, both or neither counted as a layer."""
    found = []
    for first, last in itertools.product((0, 1), repeat=2):
        size, rest = divmod(layers + first + last, pp * virtual)
        if rest == 0 and size > max(first, last):
            sizes = [size] * (pp * virtual)
            sizes[0] -= first
            sizes[-1] -= last
            found.append([0, *itertools.accumulate(sizes)])
    return found


def runs_of(i: int, j: int, full: int, selective: int) -> list[tuple[str, int, int]]:
    a = min(i + full, j)
    b = min(a + selective, j)
    return [(kind, x, y) for kind, x, y in (("full", i, a), ("selective", a, b), ("none", b, j)) if y > x]
