"""Which modules tensor parallelism splits, and how, as a trace shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.read_model.traced import Trace
from planner.read_model.traced_attention import fuse_attention, without_hints
from planner.read_model.traced_experts import mark_experts
from planner.read_model.traced_heads import key_value_heads, sections
from planner.read_model.traced_parts import Entered, module_of, sums_of
from planner.read_model.traced_split import split_of
from planner.read_model.traced_units import Piece, placed

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
    one reads. ``kv_heads`` are the heads of keys or values in each section (of all outputs, without sections), 0 in
    one of queries: where ranks outnumber them, the section is gathered and each rank takes the head that it needs.
    """

    module: str
    style: Style
    source: Source
    sections: tuple[int, ...] = ()
    before: tuple[str, ...] = ()
    kv_heads: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Divided:
    """A whole number ``name`` on module ``path`` that ranks divide: heads, or the width of a slice of a fused product.

    ``kv_heads`` is not 0 where it counts, or is the width of, that many heads of keys or values, of which a rank has
    one at least. ``shared`` says that it is how many heads of queries share one of these.
    """

    path: str
    name: str
    kv_heads: int = 0
    shared: bool = False

    def among(self, tp: int) -> int:
        """What ``tp`` ranks divide the number by."""
        if self.shared:
            return max(1, tp // self.kv_heads)
        return min(tp, self.kv_heads) if self.kv_heads else tp


@dataclass(frozen=True, slots=True)
class TensorRules:
    """Rules by module, and the whole numbers on modules (heads, sizes of slices) that ranks divide with them.

    ``summed`` are parameters that stay whole and work on a part of the data on each rank, such as norms of heads, each
    behind the module that reads it: every rank has a part of their gradient. ``entered`` are whole modules of whose
    outputs it has, such as the one rotated key of latent attention. ``refused`` says
    why they cannot add up what they would have to, if that is so.
    """

    rules: tuple[Rule, ...]
    divided: tuple[Divided, ...] = ()
    summed: tuple[tuple[str, str], ...] = ()
    entered: tuple[Entered, ...] = ()
    refused: str = ""

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


def added_up(trace: Trace, rules: tuple[Rule, ...], divided: tuple[Divided, ...]) -> TensorRules:
    """``rules`` with what ranks add up besides."""
    sums = sums_of(trace, {rule.module: rule.style for rule in rules})
    read = ((path, name) for name, paths in sums.parameters.items() for path in _outermost(paths))
    entered = tuple(dict.fromkeys(reversed(sums.entered)))
    return TensorRules(rules, divided, tuple(sorted(read)), entered, next(iter(sums.refused), ""))


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
    kv_heads = key_value_heads(trace)
    at = {op.index: op for op in ops}
    found = []
    for index, role in split.roles.items():
        module = module_of(at[index])
        if role == "expert":
            found.append(Rule(module, "experts", "inferred"))
        elif module not in trace.linear:
            continue
        elif role == "column":
            heads = kv_heads.get(index, ())
            widths = sections(trace, at[index]) if len(heads) != 1 else ()
            found.append(Rule(module, "colwise", "inferred", widths, kv_heads=heads))
        elif role == "row":
            before = tuple(sorted(module_of(at[i]) for i in split.columns_of.get(index, ())))
            found.append(Rule(module, "rowwise", "inferred", before=before))
    linear = {rule.module for rule in found}
    return [rule for rule in found if rule.style != "rowwise" or set(rule.before) <= linear]


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
