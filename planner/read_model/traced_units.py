"""A trace cut into the pieces between which a pipeline may be cut.

Containers whose modules run one after the other, each fed by the one before, are opened; what is inside is a unit.
Modules that hold such a container (backbones, stages of a network) are opened too. Experts, which all read the same
tokens, and the parts of a block, which differ in class, stay together. Where nothing repeats, the direct children
of the module are the units. What runs between units belongs to the unit before it.
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass, field
from functools import cached_property

from planner.read_model.traced import Call, Op, Trace


@dataclass
class Piece:
    """Operators of one run of a unit, in order. ``place`` is embedding, layer, between or head."""

    path: str
    ops: list[Op] = field(default_factory=list)
    repeated: bool = False
    modules: list[str] = field(default_factory=list)


class Units:
    """The units of a trace, found from its calls."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.calls: dict[str, list[Call]] = {}
        for call in trace.calls:
            if call.last >= 0:
                self.calls.setdefault(call.path, []).append(call)
        self.repeated: set[str] = set()

    def pieces(self) -> list[Piece]:
        """The trace in pieces, in the order they ran."""
        paths = self._opened("", deep=True)
        if not self.repeated:
            paths = self._opened("", deep=False)
        runs = sorted((call.first, path) for path in paths for call in self.runs(path) if call.last > call.first)
        if not runs:
            return [Piece("", list(self.trace.ops))]
        starts = [first for first, _ in runs]
        found = [Piece(path, repeated=path in self.repeated, modules=[path]) for _, path in runs]
        for op in self.trace.ops:
            found[max(0, bisect.bisect_right(starts, op.index) - 1)].ops.append(op)
        return [piece for piece in found if piece.ops]

    def runs(self, path: str) -> list[Call]:
        """The times that a module ran; for a container, which is never called, all its modules together."""
        if path in self.calls:
            return self.calls[path]
        inner = [run for child in self.trace.children.get(path, ()) for run in self.runs(child)]
        if not inner:
            return []
        first, last = min(inner, key=lambda run: run.first), max(inner, key=lambda run: run.last)
        return [Call(path, first.first, last.last, first.inputs, last.outputs)]

    def _opened(self, path: str, deep: bool) -> list[str]:
        """Units below ``path``; ``deep`` opens what holds repeated blocks, else containers of any modules."""
        children = self.trace.children.get(path, ())
        repeats = deep and self._repeats(path)
        if repeats:
            self.repeated.update(child for child in children if not self._opens(child))
        opens = path == "" or (self._opens(path) if deep else path in self.trace.containers)
        if not opens or not children:
            return [path] if path else []
        return [unit for child in children for unit in self._opened(child, deep)]

    def _opens(self, path: str) -> bool:
        """Whether blocks repeat in ``path`` or somewhere below it."""
        return self._repeats(path) or any(self._opens(child) for child in self.trace.children.get(path, ()))

    def _repeats(self, path: str) -> bool:
        """Whether ``path`` is a container of blocks that run one after the other, some of one class."""
        if path not in self.trace.containers:
            return False
        if path not in self._known:
            self._known[path] = self._chain(path)
        return self._known[path]

    @cached_property
    def _known(self) -> dict[str, bool]:
        return {}

    def _chain(self, path: str) -> bool:
        blocks = [child for child in self.trace.children[path] if self.trace.children.get(child) and self.runs(child)]
        classes = [self.trace.classes[child] for child in blocks]
        if len(blocks) < 2:
            return bool(blocks) and len(self.trace.children[path]) == 1
        if max(map(classes.count, classes)) < 2 or self._skipped(path):
            return False
        runs = sorted((self.runs(child)[0] for child in blocks), key=lambda run: run.first)
        fed = [self._feeds(one, other) for one, other in itertools.pairwise(runs)]
        return 2 * sum(fed) >= len(fed)

    def _skipped(self, path: str) -> bool:
        """Whether the module around a container reads its own input behind it again: it is inside a block."""
        outer = path.rpartition(".")[0]
        while outer and outer not in self.calls:
            outer = outer.rpartition(".")[0]
        if not outer:
            return False
        around, inside = self.calls[outer][0], self.runs(path)[0]
        entered = {self.trace.values[v].place[0] for v in around.inputs if self.trace.values[v].needs}
        after = self.trace.ops[inside.last : around.last]
        return any(self.trace.values[v].place[0] in entered for op in after for v in op.inputs)

    def _feeds(self, one: Call, other: Call) -> bool:
        """Whether what ``one`` gave reaches ``other`` through what ran between them."""
        if other.first < one.last:
            return False
        reached = {self.trace.values[v].place[0] for v in one.outputs if self.trace.values[v].needs}
        for op in self.trace.ops[one.last : other.first]:
            if any(self.trace.values[v].place[0] in reached for v in op.inputs):
                reached.update(self.trace.values[v].place[0] for v in op.outputs if self.trace.values[v].needs)
        return any(self.trace.values[v].place[0] in reached for v in other.inputs if self.trace.values[v].needs)


def placed(trace: Trace) -> tuple[Piece, list[Piece], Piece]:
    """Embedding, layers in order, and head.

    Repeated units are layers, and so is what runs between them if it has parameters; what runs before the first is
    the embedding, after the last the head. Where nothing repeats every unit is a layer, and the ends are empty.
    """
    pieces = _with_parameters(trace, Units(trace).pieces())
    at = [i for i, piece in enumerate(pieces) if piece.repeated]
    if not at:
        return Piece(""), pieces, Piece("")
    before, inner, after = pieces[: at[0]], pieces[at[0] : at[-1] + 1], pieces[at[-1] + 1 :]
    layers: list[Piece] = []
    for piece in inner:
        if not piece.repeated and layers and not layers[-1].repeated:
            layers[-1] = _joined([layers[-1], piece])
        else:
            layers.append(piece)
    return _joined(before), layers, _joined(after)


def _with_parameters(trace: Trace, pieces: list[Piece]) -> list[Piece]:
    """Pieces with every one that has no parameter and multiplies nothing put behind the one before it."""
    kept: list[Piece] = []
    for piece in pieces:
        weighty = any(op.product or op.attending for op in piece.ops) or any(
            trace.values[v].parameter for op in piece.ops for v in op.inputs
        )
        if kept and not weighty and not piece.repeated:
            kept[-1].ops.extend(piece.ops)
            kept[-1].modules.extend(piece.modules)
        else:
            kept.append(piece)
    if len(kept) > 1 and not any(_weighty(trace, op) for op in kept[0].ops) and not kept[0].repeated:
        kept[1].ops[:0] = kept[0].ops
        kept[1].modules[:0] = kept[0].modules
        kept = kept[1:]
    return kept


def _weighty(trace: Trace, op: Op) -> bool:
    return op.product is not None or op.attending is not None or any(trace.values[v].parameter for v in op.inputs)


def _joined(pieces: list[Piece]) -> Piece:
    whole = Piece(pieces[0].path if pieces else "")
    for piece in pieces:
        whole.ops.extend(piece.ops)
        whole.modules.extend(piece.modules)
    return whole
