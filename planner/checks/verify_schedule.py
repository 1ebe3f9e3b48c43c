"""A schedule run again by other code than the search's: one piece of work after the other, in plain whole numbers.

``F``, ``B`` and ``W`` of (virtual stage, micro-batch) are forwards, backwards (or inputs' gradients) and weights'
gradients. The orders are those of :mod:`cost_models.pipeline` and :mod:`cost_models.schedules`, written another way:

    1f1b, eager, interleaved    forwards ahead, then one backward and one forward in turn, then backwards
    zb-h1                       the same, and after a backward of micro-batch i the weights' of i - device
    V-shaped                    a block of six pieces, six units later for each micro-batch
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator

Node = tuple[str, int, int]
Order = list[list[Node]]
APART = {"zbv": (4, 2, 4, 2), "v-half": (2, 1, 2, 1), "v-min": (1, 1, 1, 1)}
"""Units by which F0, F1, B1 and B0 of one micro-batch begin later from device to device, on their way down or up."""


def run_order(
    order: Order, forward: list[int], backward: list[int], weights: list[int] | None, hop: int, tail: list[int]
) -> int:
    """Ticks until the last device has done its tail, each piece run as soon as its device and its data are ready.

    ``forward``, ``backward`` and ``weights``, a part of ``backward``, are per virtual stage, ``tail`` per device.
    """
    late = weights or [0] * len(forward)
    ticks = {"F": forward, "B": [b - w for b, w in zip(backward, late, strict=True)], "W": late}
    where = {stage: device for device, work in enumerate(order) for _, stage, _ in work}
    clock, position = [0] * len(order), [0] * len(order)
    done: dict[Node, int] = {}
    asleep: dict[Node, int] = {}
    awake = deque(range(len(order)))
    while awake:
        device = awake.popleft()
        while position[device] < len(order[device]):
            node = order[device][position[device]]
            source = _needs(node, len(forward))
            if source is not None and source not in done:
                asleep[source] = device
                break
            travel = 0 if source is None or where[source[1]] == device else hop
            ready = 0 if source is None else done[source] + travel
            clock[device] = done[node] = max(clock[device], ready) + ticks[node[0]][node[1]]
            position[device] += 1
            if node in asleep:
                awake.append(asleep.pop(node))
    return max(end + last for end, last in zip(clock, tail, strict=True))


def _needs(node: Node, stages: int) -> Node | None:
    """The work whose result ``node`` waits for."""
    kind, stage, batch = node
    if kind == "W":
        return ("B", stage, batch)
    if kind == "F":
        return ("F", stage - 1, batch) if stage else None
    return ("B", stage + 1, batch) if stage < stages - 1 else ("F", stage, batch)


def work_order(kind: str, pp: int, virtual: int, micro_batches: int, in_flight: int = 0) -> Order:
    """The work of every device in order."""
    if kind in APART:
        block = _block(pp, APART[kind])
        return [_repeated(pp, device, [row[device] for row in block], micro_batches) for device in range(pp)]
    plain = [list(_in_turn(kind, pp, virtual, micro_batches, device, in_flight)) for device in range(pp)]
    return [_with_weights(work, device) for device, work in enumerate(plain)] if kind == "zb-h1" else plain


def _in_turn(kind: str, pp: int, virtual: int, micro_batches: int, device: int, in_flight: int) -> Iterator[Node]:
    stages = range(device, pp * virtual, pp)
    group = micro_batches if virtual == 1 else pp
    batches = [range(start, start + group) for start in range(0, micro_batches, group)]
    forwards = [("F", stage, b) for some in batches for stage in stages for b in some]
    backwards = [("B", stage, b) for some in batches for stage in reversed(stages) for b in some]
    ahead = pp - device if virtual == 1 else 2 * (pp - device - 1) + (virtual - 1) * pp + 1
    if kind == "eager-1f1b":
        ahead = min(in_flight - device, 2 * (pp - device) - 1)
    yield from forwards[:ahead]
    for k, node in enumerate(backwards):
        yield node
        if ahead + k < len(forwards):
            yield forwards[ahead + k]


def _with_weights(work: list[Node], device: int) -> list[Node]:
    """The weights' gradients put in, each ``device`` backwards after its own, the rest at the end."""
    order: list[Node] = []
    batches = deque[int]()
    for node in work:
        order.append(node)
        if node[0] == "B":
            batches.append(node[2])
            if len(batches) > device:
                order.append(("W", device, batches.popleft()))
    return order + [("W", device, batch) for batch in batches]


def _block(pp: int, apart: tuple[int, ...]) -> list[list[int]]:
    """When F0, F1, B1 and B0 of the first micro-batch begin on every device: the least waits at the turns, in order."""
    for waits in sorted(itertools.product(range(6), repeat=3), key=lambda waits: (sum(waits), waits)):
        rows, at = [], 0
        for k, (step, wait) in enumerate(zip(apart, (0, *waits), strict=True)):
            begin = at + wait if k else 0
            way = [begin + step * d for d in range(pp)]
            rows.append(way if k % 2 == 0 else way[::-1])
            at = way[-1] + 1 if k != 1 else rows[-1][0] + 1
        if all(len({row[d] % 6 for row in rows}) == 4 for d in range(pp)):
            return rows
    raise RuntimeError(f"no block of {pp} devices {apart} units apart repeats every six")


def _repeated(pp: int, device: int, begins: list[int], micro_batches: int) -> list[Node]:
    """The pieces of all micro-batches by time; weights' gradients follow their backwards in the slots left."""
    far = 2 * pp - 1 - device
    pieces = list(zip(begins, "FFBB", (device, far, far, device), strict=True))
    for slot, (back, stage) in zip(
        sorted(set(range(6)) - {begin % 6 for begin in begins}), ((begins[2], far), (begins[3], device)), strict=True
    ):
        pieces.append((next(t for t in range(back + 1, back + 7) if t % 6 == slot), "W", stage))
    timed = sorted(
        (begin + 6 * batch, kind, stage, batch) for begin, kind, stage in pieces for batch in range(micro_batches)
    )
    return [(kind, stage, batch) for _, kind, stage, batch in timed]
