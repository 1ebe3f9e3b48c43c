"""What a stack of fused kernels keeps of a piece of a trace for the backward pass.

Neighbouring operators that are not linear run as one kernel, which keeps what it reads; linear ones (sums, shifts,
rotations by constants) keep nothing, and join a kernel only where all they read comes from it or is kept for it
anyway. A function with a backward of its own keeps what it says it saves. A product keeps both
sides, unless the other one is not trained; attention keeps queries, keys, values, output and log-sum-exp. Each
tensor counts once, a cast or a repeated copy as what it was made from.

Under selective recompute a tensor goes that kernels other than products and attention can make again from what is
kept besides: outputs of norms and activation functions, sums of tensors that are kept.

Source: Korthikanti et al., arXiv:2205.05198, section 4, for the transformer layer that this gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.read_model.traced import Op, Trace
from planner.read_model.traced_attention import operands

LOG_SUM_EXP_BYTES = 4.0
ROUTES = {"index", "index_select", "gather", "embedding", "_unsafe_index"}
"""Copies of rows that may come from other devices: never made again."""


@dataclass(frozen=True, slots=True)
class Kept:
    """``elements`` of a tensor, or of one part of it; ``op`` first reads it, ``again`` says it can be made again."""

    root: int
    place: tuple
    elements: float
    op: int
    again: bool


class Kernels:
    """The fused kernels of some operators: a region for every tensor that one of them makes."""

    def __init__(self, trace: Trace, ops: list[Op]) -> None:
        self.trace, self.ops = trace, ops
        self.parent: dict[int, int] = {}
        self.entered: dict[int, set[int]] = {}
        self.sources: dict[int, frozenset[int]] = {}
        self.region: dict[int, int] = {}
        self.made: dict[int, Op] = {}
        self._reads: dict[int, list[int]] = {}
        for op in ops:
            if op.needs:
                self._place(op)

    def reads(self, op: Op) -> list[int]:
        """Values that an operator reads and a gradient reaches, without parameters."""
        if op.index not in self._reads:
            values = self.trace.values
            self._reads[op.index] = [v for v in op.inputs if values[v].needs and values[v].parameter is None]
        return self._reads[op.index]

    def root(self, value: int) -> int:
        """The tensor that a value lies in."""
        return self.trace.values[value].place[0]

    def of(self, root: int) -> int | None:
        """The region that makes a tensor."""
        return None if root not in self.region else self._top(self.region[root])

    def _place(self, op: Op) -> None:
        roots = [self.root(v) for v in self.reads(op)]
        regions = {self.of(root) for root in roots} - {None}
        outside = [root for root in roots if self.of(root) is None]
        found: int | None = None
        if op.kind == "nonlinear":
            found = op.index
            self.parent[found], self.entered[found] = found, set()
        elif op.kind in ("linear", "moving") and regions:
            known = set().union(*(self.entered[region] for region in regions))
            found = next(iter(regions)) if self._made_of(outside, known) else None
        if found is not None:
            for region in regions:
                self._join(region, found)
            self.entered[self._top(found)].update(outside)
        for value in op.outputs:
            self.made.setdefault(self.root(value), op)
            if self.trace.values[value].place != (value,):
                continue
            if found is not None:
                self.region[value] = found
            elif op.kind in ("linear", "moving"):
                self.sources[value] = frozenset().union(*(self.sources.get(root, {root}) for root in roots))

    def _made_of(self, roots: list[int], known: set[int]) -> bool:
        return all(root in known or (root in self.sources and self.sources[root] <= known) for root in roots)

    def has(self, region: int, root: int) -> bool:
        """Whether a region has a tensor from outside without keeping it: it is linear in others that are kept."""
        known = self.entered[region]
        return root in self.sources and self.sources[root] <= known - {root}

    def _join(self, region: int, other: int) -> None:
        one, two = self._top(region), self._top(other)
        if one != two:
            self.parent[one] = two
            self.entered[two] |= self.entered.pop(one)

    def _top(self, region: int) -> int:
        while self.parent[region] != region:
            self.parent[region] = region = self.parent[self.parent[region]]
        return region


def kept_tensors(trace: Trace, ops: list[Op], elsewhere: set[int]) -> list[Kept]:
    """Tensors that the kernels of ``ops`` keep when nothing is recomputed.

    What an activation function keeps of its own output counts where a product reads it; roots in ``elsewhere`` are
    read by products of other pieces.
    """
    kernels = Kernels(trace, ops)
    found: dict[tuple, tuple[int, int]] = {}
    for op in ops:
        for value in _kept_by(kernels, op):
            if op.output_kept and trace.values[value].place[0] in elsewhere:
                continue
            found.setdefault(trace.values[value].place, (value, op.index))
    sums = [op for op in ops if op.attending is not None]
    return [*_sized(kernels, found), *(_log_sums(trace, op) for op in sums)]


def _log_sums(trace: Trace, op: Op) -> Kept:
    it = op.attending
    elements = it.batch * it.heads * it.queries * LOG_SUM_EXP_BYTES / min(trace.element_bytes, 2.0)
    root = trace.values[op.outputs[0]].place[0]
    return Kept(root, ("log_sum_exp", op.index), elements, op.index, again=False)


def _kept_by(kernels: Kernels, op: Op) -> Iterator[int]:
    """Values that one operator has to keep."""
    values = kernels.trace.values
    if not op.needs:
        return
    if op.function is not None:
        yield from (v for v in kernels.trace.saved.get(op.function, ()) if values[v].parameter is None)
        return
    if op.product is not None:
        one, other = operands(op)
        yield from (a for a, b in ((one, other), (other, one)) if values[b].needs and values[a].parameter is None)
    elif op.attending is not None:
        yield from (v for v in op.inputs[:3] if values[v].parameter is None)
        yield op.outputs[0]
    elif op.kind == "nonlinear":
        mine = kernels.of(kernels.root(op.outputs[0])) if op.outputs else None
        outside = [v for v in kernels.reads(op) if kernels.of(kernels.root(v)) != mine or mine is None]
        outside = [v for v in outside if mine is None or not kernels.has(mine, kernels.root(v))]
        yield from (op.outputs if op.output_kept and outside else outside)


def _sized(kernels: Kernels, found: dict[tuple, tuple[int, int]]) -> Iterator[Kept]:
    """Elements of each part, those of one tensor together at most the tensor's own."""
    trace, left, whole = kernels.trace, {}, {place[0] for place in found if len(place) == 1}
    again = _made_again(kernels, set(found))
    for place, (value, op) in found.items():
        root = trace.values[place[0]]
        if root.parameter is not None or (len(place) > 1 and place[0] in whole):
            continue
        own = place[-1][1] if len(place) > 1 else root.elements
        elements = min(own, trace.values[value].elements, left.setdefault(place[0], root.elements))
        left[place[0]] -= elements
        wide = max(1.0, min(root.bytes, trace.values[value].bytes) / trace.element_bytes) / root.copies
        yield Kept(place[0], place, elements * wide, op, place[0] in again)


def _made_again(kernels: Kernels, kept: set[tuple]) -> set[int]:
    """Roots that cheap kernels can make from tensors that are kept for good, or made again themselves."""
    again: set[int] = set()
    for op in kernels.ops:
        if op.kind not in ("nonlinear", "linear", "moving") or op.name in ROUTES or not op.needs:
            continue
        if all(_there(kernels.trace.values[v].place, kept, again) for v in kernels.reads(op)):
            again.update({kernels.root(v) for v in op.outputs} - {kernels.root(v) for v in op.inputs})
    return again


def _there(place: tuple, kept: set[tuple], again: set[int]) -> bool:
    """Whether backward has a tensor or the part of it at ``place``: it is kept, or made again."""
    return place[0] in again or any(place[:end] in kept for end in range(1, len(place) + 1))
