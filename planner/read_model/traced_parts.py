"""What ranks of tp work on in parts, and whose gradients therefore add up over them.

Columns give each rank its own part, rows give the whole again. Whole data that meets parts on the way (the one rotated
key of latent attention, which all heads read; the keys of a single KV head) has a part of its gradient on each rank,
and so have parameters there (norms of heads). A whole product whose output is such data is where its gradient is
added up: all before it is alike on every rank again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from planner.read_model.traced import Op, Trace, Value
from planner.read_model.traced_heads import sections

Interval = tuple[int, int]
"""Where a slice begins in its root, and its elements."""


@dataclass(frozen=True, slots=True)
class Entered:
    """A whole module whose output, or the ``marked`` of its ``sections``, ranks go on with differently."""

    module: str
    sections: tuple[int, ...]
    marked: tuple[bool, ...]


@dataclass
class Sums:
    """Parameters whose gradients add up, by the modules that read them, and modules whose outputs' do.

    ``refused`` are words for a parameter, or an output, that ranks go on with both in parts and whole, which leaves
    them without a gradient that could be added up.
    """

    parameters: dict[str, set[str]] = field(default_factory=dict)
    entered: list[Entered] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def module_of(op: Op) -> str:
    """The module that holds a product's weight; the parameter itself where that has no module's usual name."""
    owner, _, name = (op.product.weight or "").rpartition(".")
    return owner if name == "weight" else op.product.weight


def sums_of(trace: Trace, styles: dict[str, str]) -> Sums:
    """The sums over ranks that modules split by ``styles`` need besides those of their own."""
    return _Backward(trace, styles).sums()


class _Backward:
    """Walks a trace backwards, from what is read in parts to what made it."""

    def __init__(self, trace: Trace, styles: dict[str, str]) -> None:
        self.trace, self.styles = trace, styles
        self.split = {name for name, style in styles.items() if style != "experts"}
        self.parts = self._parts()
        self.uses: dict[int, list[tuple[Interval | None, bool]]] = {}
        self.whole: set[str] = set()
        self.found = Sums()

    def _is_split(self, op: Op) -> bool:
        return op.product is not None and module_of(op) in self.split

    def _roots(self, values: tuple[int, ...]) -> set[int]:
        return {self.trace.values[v].place[0] for v in values}

    def _parts(self) -> set[int]:
        """Roots of what columns made, and of what was made of it before rows have summed it."""
        parts: set[int] = set()
        for op in self.trace.ops:
            split = self._is_split(op)
            if self.styles[module_of(op)] == "colwise" if split else self._roots(op.inputs) & parts:
                parts |= self._roots(op.outputs)
        return parts

    def sums(self) -> Sums:
        for op in reversed(self.trace.ops):
            self._visit(op)
        for name in sorted(self.found.parameters.keys() & self.whole):
            self._refuse(f"parameter {name!r} works")
        return self.found

    def _refuse(self, what: str) -> None:
        self.found.refused.append(f"{what} on whole data and on parts of it under tp; pin tp=1")

    def _visit(self, op: Op) -> None:
        """Note how an operator uses what it reads: whose gradient it gives a part of on each rank, or all of."""
        made = self._roots(op.outputs)
        partial = bool(made & self.parts)
        if not partial or self._is_split(op):
            kinds = {kind for root in made - self.parts for _, kind in self.uses.get(root, ())}
            if op.product is not None and op.product.weight:
                partial = False
                if True in kinds:
                    self._enter(op)
            else:
                partial = kinds == {True}
                if len(kinds) > 1 and op.needs:
                    self._refuse(f"what {op.name} in {op.path!r} makes is worked with")
        self._note(op, partial)

    def _note(self, op: Op, partial: bool) -> None:
        values = [self.trace.values[v] for v in op.inputs]
        names = {it.parameter for it in values} - {None}
        names = {name for name in names if name not in self.split and name.rpartition(".")[0] not in self.split}
        if partial:
            for name in names:
                self.found.parameters.setdefault(name, set()).add(op.path)
        elif op.needs:
            self.whole |= names
        for it in values:
            if it.needs and it.parameter is None and it.place[0] not in self.parts:
                self.uses.setdefault(it.place[0], []).append((_interval(it), partial))

    def _enter(self, op: Op) -> None:
        """Have the gradient of a product's output, or of the sections that are used in parts, added up."""
        module, widths = module_of(op), sections(self.trace, op) or (int(op.product.n),)
        marked = [set() for _ in widths]
        for root in self._roots(op.outputs):
            for interval, partial in self.uses.get(root, ()):
                for i in _overlapped(interval, widths, op):
                    marked[i].add(partial)
        if module in self.split or module not in self.trace.linear or any(len(kinds) > 1 for kinds in marked):
            self._refuse(f"what {module!r} makes is worked with")
            return
        self.found.entered.append(Entered(module, widths, tuple(True in kinds for kinds in marked)))


def _interval(it: Value) -> Interval | None:
    return it.place[1] if len(it.place) > 1 else None


def _overlapped(interval: Interval | None, widths: tuple[int, ...], op: Op) -> list[int]:
    """The sections of a product's output that a slice lies in; all of them where it is in no one."""
    every = list(range(len(widths)))
    if interval is None:
        return every
    rows, start = op.product.m * op.product.count, interval[0] % int(op.product.n)
    end = start + interval[1] / rows
    inside = [i for i in every if sum(widths[:i]) <= start and end <= sum(widths[: i + 1])]
    return inside or every
