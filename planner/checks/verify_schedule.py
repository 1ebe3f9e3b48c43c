"""A schedule run again by other code than the search's: one piece of work after the other, in plain whole numbers.

``F``, ``B`` and ``W`` of (virtual stage, micro-batch) are forwards, backwards (or inputs' gradients) and weights'
gradients. The orders are those of :mod:`cost_models.pipeline` and :mod:`cost_models.schedules`, written another way:

    1f1b, eager, interleaved    forwards ahead, then one backward and one forward in turn, then backwards
    zb-h1                       the same, and after a backward of micro-batch i the weights' of i - device
    V-shaped                    a block of six pieces, six units later for each micro-batch
    DualPipe                    micro-batches by number in each of its phases; on all devices, also where two are alike
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

Node = tuple[str, int, int]
Piece = tuple[Node, ...]
Order = list[list[Piece]]
APART = {"zbv": (4, 2, 4, 2), "v-half": (2, 1, 2, 1), "v-min": (1, 1, 1, 1)}
"""Units by which F0, F1, B1 and B0 of one micro-batch begin later from device to device, on their way down or up."""


def run_order(
    order: Order, forward: list[int], backward: list[int], weights: list[int] | None, hop: int | list[int],
    tail: list[int], hidden: tuple[list[int], list[int]] | None = None,
) -> int:  # fmt: skip
    """Ticks until the last device has done its tail, each piece run as soon as its device and all its data are ready.

    ``forward``, ``backward`` and ``weights``, a part of ``backward``, are per stage in model order, ``tail`` per
    device; where micro-batches go both ways, stages count on for those that enter at the last device. Of a forward and
    a backward in one piece ``hidden`` is saved. ``hop`` is one for all, or, of stages that each have a device to
    themselves, by the boundary that is crossed.
    """
    work = _Durations(forward, backward, weights, hidden)
    where = {stage: device for device, pieces in enumerate(order) for piece in pieces for _, stage, _ in piece}
    clock, position = [0] * len(order), [0] * len(order)
    done: dict[Node, int] = {}
    asleep: dict[Node, int] = {}
    awake = deque(range(len(order)))
    while awake:
        device = awake.popleft()
        while position[device] < len(order[device]):
            piece = order[device][position[device]]
            sources = [source for node in piece if (source := _needs(node, len(forward))) not in (None, *piece)]
            missing = next((source for source in sources if source not in done), None)
            if missing is not None:
                asleep[missing] = device
                break
            ready = max((done[it] + _hop(hop, where[it[1]], device) for it in sources), default=0)
            clock[device] = max(clock[device], ready) + work.of(piece)
            done |= dict.fromkeys(piece, clock[device])
            position[device] += 1
            awake.extend(asleep.pop(node) for node in piece if node in asleep)
    return max(end + last for end, last in zip(clock, tail, strict=True))


def _hop(hop: int | list[int], one: int, other: int) -> int:
    """Ticks from one device to another."""
    if one == other:
        return 0
    return hop if isinstance(hop, int) else hop[min(one, other)]


@dataclass(frozen=True)
class _Durations:
    """Ticks of pieces, by stage."""

    forward: list[int]
    backward: list[int]
    weights: list[int] | None
    hidden: tuple[list[int], list[int]] | None

    def of(self, piece: Piece) -> int:
        """Ticks of a piece: its parts, less what they hide where a forward is beside a backward."""
        kinds, saved = [kind for kind, _, _ in piece], 0
        if self.hidden is not None and "F" in kinds and "B" in kinds:
            saved = sum(self.hidden[kind == "B"][s % len(self.forward)] for kind, s, _ in piece if kind != "W")
        return sum(self._part(kind, stage % len(self.forward)) for kind, stage, _ in piece) - saved

    def _part(self, kind: str, stage: int) -> int:
        late = 0 if self.weights is None else self.weights[stage]
        return {"F": self.forward[stage], "B": self.backward[stage] - late, "W": late}[kind]


def _needs(node: Node, stages: int) -> Node | None:
    """The work whose result ``node`` waits for; of several ways through the stages each has ``stages`` of them."""
    kind, stage, batch = node
    if kind == "W":
        return ("B", stage, batch)
    if kind == "F":
        return ("F", stage - 1, batch) if stage % stages else None
    return ("B", stage + 1, batch) if (stage + 1) % stages else ("F", stage, batch)


def work_order(kind: str, pp: int, virtual: int, micro_batches: int, in_flight: int = 0) -> Order:
    """The work of every device in order, in pieces that are not interrupted."""
    if kind == "dualpipev":
        return [list(_beside(pp, micro_batches, d, d, 2 * pp - 1 - d)) for d in range(pp)]
    if kind == "dualpipe":
        return [list(_beside(pp // 2, micro_batches // 2, min(d, pp - 1 - d), *_both_ways(pp, d))) for d in range(pp)]
    if kind in APART:
        block = _block(pp, APART[kind])
        singly = [_repeated(pp, device, [row[device] for row in block], micro_batches) for device in range(pp)]
    else:
        singly = [list(_in_turn(kind, pp, virtual, micro_batches, device, in_flight)) for device in range(pp)]
    singly = [_with_weights(work, device) for device, work in enumerate(singly)] if kind == "zb-h1" else singly
    return [[(node,) for node in work] for work in singly]


def _both_ways(pp: int, device: int) -> tuple[int, int]:
    """The stages of a device, of micro-batches from the first device and, counted on, of those from the last.

    First comes the one that is nearer to where its micro-batches enter.
    """
    there, back = device, pp + pp - 1 - device
    return (there, back) if device < pp // 2 else (back, there)


def _beside(p: int, n: int, d: int, near: int, far: int) -> Iterator[Piece]:
    """DualPipe: ``n`` micro-batches pass ``near`` first and, ``2 (p - d) - 1`` stages later, ``far``."""
    late = [("W", far, n - d - 1 + i) for i in range(d + 1) if _late(i, d, "far")]
    late += [("W", near, n - p + i) for i in range(d + 1) if _late(i, d, "near")]
    late.sort(key=lambda node: (node[2] - (n - d - 1 if node[1] == far else n - p), node[1] == near))
    late += [("W", near, n - p + d + 1 + i) for i in range(p - d - 1)]

    def back(stage: int, i: int, *, whole: bool = True) -> Piece:
        return (("B", stage, i), ("W", stage, i)) if whole else (("B", stage, i),)

    yield from ((("F", near, i),) for i in range(2 * (p - d - 1)))
    for i in range(d + 1):
        yield from ((("F", near, 2 * (p - d - 1) + i),), (("F", far, i),))
    for i in range(p - d - 1):
        yield from (back(far, i, whole=False), (("W", far, i),), (("F", far, d + 1 + i),))
    for i in range(n - 2 * p + d + 1):
        first = (("F", near, 2 * p - d - 1 + i),), back(far, p - d - 1 + i)
        yield from first if (i, d) == (0, p - 1) else (first[0] + first[1],)
        yield (("F", far, p + i), *back(near, i))
    for i in range(p - d - 1):
        yield back(far, n - p + i)
        yield (("F", far, n - p + d + 1 + i), *back(near, n - 2 * p + d + 1 + i))
    for i in range(d + 1):
        yield back(far, n - d - 1 + i, whole=not _late(i, d, "far"))
        yield back(near, n - p + i, whole=not _late(i, d, "near"))
    for i in range(p - d - 1):
        yield (late[i],)
        yield back(near, n - p + d + 1 + i, whole=False)
    yield from ((node,) for node in late[p - d - 1 :])


def _late(i: int, d: int, which: str) -> bool:
    """Whether the ``i``-th of the last ``d + 1`` pairs of backwards leaves the weights' gradients for later."""
    half = (d + 1) // 2
    return i > half or (i == half and (which == "near" or d % 2 == 1))


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
