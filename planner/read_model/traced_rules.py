"""Which modules tensor parallelism splits, and how, as a trace shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.read_model.traced import Op, Trace
from planner.read_model.traced_attention import fuse_attention, without_hints
from planner.read_model.traced_experts import mark_experts
from planner.read_model.traced_split import split_of
from planner.read_model.traced_units import Piece, placed
from topologies.errors import BadInput

Style = Literal[
    "colwise", "rowwise", "colwise_gathered", "rowwise_sliced", "vocabulary", "experts", "replicated"
]  # fmt: skip
Source = Literal["user", "hugging face", "inferred"]


@dataclass(frozen=True, slots=True)
class Rule:
    """How one module is split.

    ``colwise`` gives each rank part of the outputs, ``rowwise`` sums what ranks made of their part of the inputs,
    ``colwise_gathered`` puts the parts together again, ``rowwise_sliced`` takes its part of whole inputs,
    ``vocabulary`` splits the rows of an embedding, ``experts`` gives each rank whole experts. ``sections`` are the
    outputs of matrices fused into one, each split for itself. ``before`` are the modules whose outputs a ``rowwise``
    one reads.
    """

    module: str
    style: Style
    source: Source
    sections: tuple[int, ...] = ()
    before: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TensorRules:
    """Rules by module, and the whole numbers on modules (heads, sizes of slices) that ranks divide with them.

    ``summed`` are parameters that stay whole and work on a part of the data on each rank, such as norms of heads, each
    behind the module that reads it: every rank has a part of their gradient.
    """

    rules: tuple[Rule, ...]
    divided: tuple[tuple[str, str], ...] = ()
    summed: tuple[tuple[str, str], ...] = ()

    @property
    def styles(self) -> dict[str, str]:
        """Style by module name."""
        return {rule.module: rule.style for rule in self.rules}


def inferred_rules(trace: Trace) -> list[Rule]:
    """Rules for the products and tables of a trace: columns before rows, experts, the vocabulary at both ends."""
    fuse_attention(trace)
    without_hints(trace)
    mark_experts(trace)
    embedding, layers, head = placed(trace)
    readers = _readers(trace)
    found: dict[str, Rule] = {}
    for piece in (embedding, *layers, head):
        found |= {rule.module: rule for rule in _of_piece(trace, piece, readers) if rule.module not in found}
    rows = {name for name, rule in found.items() if rule.style == "rowwise"}
    ends = {rule.module: rule for rule in _of_ends(trace, embedding, head)}
    return list((found if rows & ends.keys() else found | ends).values())


def read_in_part(trace: Trace, rules: tuple[Rule, ...]) -> tuple[tuple[str, str], ...]:
    """Whole parameters that read what columns made before rows have summed it, each behind the module that reads it.

    Raises ``BadInput`` for one that whole data is multiplied with too, of which no rank has a part of the gradient.
    """
    styles = {rule.module: rule.style for rule in rules}
    split = {name for name, style in styles.items() if style != "experts"}
    parts: set[int] = set()
    found: dict[str, set[str]] = {}
    whole: set[str] = set()
    for op in trace.ops:
        style = styles.get(_module(op)) if op.product else None
        made, read = ({trace.values[v].place[0] for v in values} for values in (op.outputs, op.inputs))
        if style == "colwise":
            parts |= made
        elif style is None or style == "experts":
            names = {trace.values[v].parameter for v in op.inputs} - {None}
            names = {name for name in names if name not in split and name.rpartition(".")[0] not in split}
            if read & parts:
                parts |= made
                for name in names:
                    found.setdefault(name, set()).add(op.path)
            elif op.needs:
                whole |= names
    for name in found.keys() & whole:
        raise BadInput(f"parameter {name!r} works on whole data and on parts of it under tp; pin tp=1")
    return tuple(sorted((path, name) for name, paths in found.items() for path in _outermost(paths)))


def _outermost(paths: set[str]) -> set[str]:
    """The modules that are inside none of the others."""
    return {path for path in paths if not any(path.startswith(f"{it}.") or (path and not it) for it in paths - {path})}


def _readers(trace: Trace) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for op in trace.ops:
        for value in op.inputs:
            found.setdefault(trace.values[value].place[0], set()).add(op.index)
    return found


def _of_piece(trace: Trace, piece: Piece, readers: dict[int, set[int]]) -> list[Rule]:
    ops = [op for op in piece.ops if op.needs or op.product]
    mine = {op.index for op in piece.ops}
    made = {trace.values[v].place[0] for op in ops for v in op.outputs}
    returned = {trace.values[v].place[0] for v in trace.outputs}
    split = split_of(trace, ops, {root for root in made if root in returned or readers.get(root, set()) - mine})
    at = {op.index: op for op in ops}
    found = []
    for index, role in split.roles.items():
        module = _module(at[index])
        if role == "expert":
            found.append(Rule(module, "experts", "inferred"))
        elif module not in trace.linear:
            continue
        elif role == "column":
            found.append(Rule(module, "colwise", "inferred", _sections(trace, at[index])))
        elif role == "row":
            before = tuple(sorted(_module(at[i]) for i in split.columns_of.get(index, ())))
            found.append(Rule(module, "rowwise", "inferred", before=before))
    linear = {rule.module for rule in found}
    return [rule for rule in found if rule.style != "rowwise" or set(rule.before) <= linear]


def _module(op: Op) -> str:
    """The module that holds a product's weight; the parameter itself where that has no module's usual name."""
    owner, _, name = (op.product.weight or "").rpartition(".")
    return owner if name == "weight" else op.product.weight


def _sections(trace: Trace, op: Op) -> tuple[int, ...]:
    """Widths of the slices that a product's output is cut into along its last dimension, if they make up all of it."""
    root, rows = trace.values[op.outputs[0]].place[0], op.product.m * op.product.count
    parts = {
        it.place[1][0]: it.shape[-1]
        for it in trace.values
        if it.place[0] == root and len(it.place) == 2 and it.shape and it.shape[-1] * rows == it.place[1][1]
    }
    sizes = tuple(parts[offset] for offset in sorted(parts))
    return sizes if len(sizes) > 1 and sum(sizes) == op.product.n else ()


def _of_ends(trace: Trace, embedding: Piece, head: Piece) -> list[Rule]:
    """The vocabulary's table by rows, the head's product by columns, gathered; a table that no module multiplies with
    stays whole.

    A head of as many classes as some other table has rows looks the same; it is told by its rows behind columns. So
    does a table of as many positions as there are tokens; it is told by what is looked up, which is no input.
    """
    lookups = [op for op in embedding.ops if op.name == "embedding"]
    given = [op for op in lookups if trace.values[trace.values[op.inputs[1]].place[0]].origin == "input"]
    tables = [trace.values[op.inputs[0]] for op in given or lookups]
    products = [op for op in head.ops if op.product and op.product.weight]
    if not products or products[-1].product.n not in {table.shape[0] for table in tables}:
        return []
    rows = products[-1].product.n
    looked_up = [t.parameter for t in tables if t.shape[0] == rows and t.parameter is not None]
    found = [Rule(name.rpartition(".")[0], "vocabulary", "inferred") for name in looked_up]
    last = products[-1].path
    if last in trace.linear:
        return [*found, Rule(last, "colwise_gathered", "inferred")]
    return [] if products[-1].product.weight in looked_up else found
