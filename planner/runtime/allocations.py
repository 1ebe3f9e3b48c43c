"""The most bytes that a step's tensors take at once, from the allocations and releases that torch's profiler saw.

The profiler sees what happens on the threads that it follows: this one and autograd's. Of a tensor that a thread of
gloo's drops last, such as the copy that a reduce-scatter works on, it sees the allocation alone, and a sum of what it
saw would hold that tensor for ever: 9 to 28 % too much under FSDP. Addresses tell which these are. Each is counted
until the collective that made it returned, since that waits for gloo, or else until the operator did that made it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

COLLECTIVE = "c10d::"
"""How the names of torch's collectives begin."""


@dataclass(frozen=True)
class Change:
    """An allocation of ``size_bytes`` at an address, or the release of as many below zero.

    ``returned_ns`` is when what allocated it returned.
    """

    at_ns: int
    size_bytes: int
    address: int
    returned_ns: int


def highest_bytes(changes: Iterable[Change]) -> int:
    """The most bytes above the beginning's."""
    moves = sorted(_moves(sorted(changes, key=lambda it: it.at_ns)))
    return max(itertools.accumulate((size for _, size in moves), initial=0))


def _moves(changes: list[Change]) -> Iterator[tuple[int, int]]:
    """When how many bytes came or went; allocations whose release was not seen go when what made them returned."""
    live: dict[int, Change] = {}
    for it in changes:
        yield it.at_ns, it.size_bytes
        before = live.pop(it.address, None)
        if it.size_bytes > 0:
            live[it.address] = it
            if before is not None:
                yield before.returned_ns, -before.size_bytes
    yield from ((it.returned_ns, -it.size_bytes) for it in live.values())


def changes_of(profile: Any) -> Iterator[Change]:
    """What a profile (``profile_memory=True``) saw of this process's allocator."""
    for root in profile.profiler.kineto_results.experimental_event_tree():
        yield from _changes(root, None)


def _changes(event: Any, collective: Any, outermost: Any = None) -> Iterator[Change]:
    if event.tag.name == "Allocation":
        made, what = collective or outermost, event.extra_fields
        yield Change(event.start_time_ns, what.alloc_size, what.ptr, made.end_time_ns if made else event.start_time_ns)
        return
    collective = collective or (event if event.name.startswith(COLLECTIVE) else None)
    for child in event.children:
        yield from _changes(child, collective, outermost or event)
