"""A piece of a trace as a ``Layer``: products that read the same tensor merged, pointwise work fused, all per token.

The names are those of the readers of configurations where a part plays the same role there (``qkv``, ``output``,
``gate_up``, ``activation``, ``down``, the norms, ``router``, ``dispatch``, ``combine``), since stacks and adapters
speak of them; other operators have the last part of their module's name.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass, field

from cost_models.model_graph import Attention, Layer, Operator
from planner.read_model.traced import Op, Trace
from planner.read_model.traced_attention import operands
from planner.read_model.traced_kept import Kept, Kernels, kept_tensors
from planner.read_model.traced_split import split_of

CLASSES = {"stream": "sequence", "inner": "columns", "whole": "whole", "experts": "experts", "routed": "routed"}
POINTWISE = ("nonlinear", "linear")


@dataclass
class Whole:
    """What all pieces of one trace share: tokens of the example, and who reads each tensor."""

    trace: Trace
    tokens: float
    seq_len: float
    readers: dict[int, list[int]]
    parameters: dict[str, int]
    owned: dict[str, list[str]] = field(default_factory=dict)
    vocab: int = 0

    def outside(self, ops: list[Op]) -> set[int]:
        """Roots of what ``ops`` make and others read, or the module returns."""
        mine = {op.index for op in ops}
        values = self.trace.values
        made = {values[v].place[0] for op in ops for v in op.outputs}
        returned = {values[v].place[0] for v in self.trace.outputs}
        return {root for root in made if root in returned or any(i not in mine for i in self.readers.get(root, ()))}


class LayerBuilder:
    """Operators of one piece."""

    def __init__(self, whole: Whole, ops: list[Op], kind: str) -> None:
        self.whole, self.trace, self.kind = whole, whole.trace, kind
        self.ops = [op for op in ops if op.needs or op.product or op.kind == "lookup" or self._parameters_of(op)]
        self.outside = whole.outside(ops)
        self.split = split_of(self.trace, self.ops, self.outside)
        self.kernels = Kernels(self.trace, self.ops)
        self.built: list[tuple[int, Operator]] = []

    def layer(self) -> Layer:
        """The layer, with every parameter of its operators and everything that they keep."""
        self._products()
        self._lookups()
        self._pointwise()
        self._keep(kept_tensors(self.trace, self.ops, self._multiplied_elsewhere()))
        operators = tuple(op for _, op in sorted(self.built, key=lambda it: it[0]))
        it, end = self.split, self.kind in ("embedding", "head")
        active = next((op.active for op in operators if op.kind == "expert_matmul"), 0.0)
        return Layer(
            self.kind, _routed(_merged(operators)), 0 if end else it.boundaries, it.experts,
            max(1, round(active)) if it.experts else 0,
        )  # fmt: skip

    def _parameters_of(self, op: Op) -> list[str]:
        names = (self.trace.values[v].parameter for v in op.inputs)
        return [name for name in names if name is not None]

    def _take(self, op: Op) -> int:
        """Parameters that an operator is the first to read."""
        return sum(self.whole.parameters.pop(name, 0) for name in dict.fromkeys(self._parameters_of(op)))

    def _root(self, value: int) -> int:
        return self.trace.values[value].place[0]

    def _multiplied_elsewhere(self) -> set[int]:
        """Roots of what this piece makes and products of other pieces read."""
        mine = {op.index for op in self.ops}
        readers, ops = self.whole.readers, self.trace.ops
        return {root for root in self.outside if any(i not in mine and ops[i].product for i in readers.get(root, ()))}

    def _products(self) -> None:
        """Products, those of one kind that read the same tensor as one; and attention."""
        merged: dict[tuple, list[Op]] = defaultdict(list)
        for op in self.ops:
            if op.attending is not None:
                self.built.append((op.index, self._attention(op)))
            elif op.product is not None:
                role, weight = self.split.roles.get(op.index), op.product.weight
                together = role in ("column", "expert") and weight is not None
                place = self.trace.values[operands(op)[0]].place
                key = (place, role, op.product.k, op.product.m) if together else (op.index,)
                if op.experts:
                    key = (op.experts, op.product.k, self.split.state(place[0]))
                merged[key].append(op)
        for ops in merged.values():
            self.built.append((ops[0].index, self._product(ops)))

    def _product(self, ops: list[Op]) -> Operator:
        first, role = ops[0].product, self.split.roles.get(ops[0].index, "whole")
        n = sum(op.product.n for op in ops)
        rows = sum(op.product.m for op in ops)
        if first.groups > 1 and ops[0].experts:
            n, rows = n / first.groups, rows / (len(ops) / first.groups)
        else:
            rows = first.groups * first.m
        parameters = sum(self._take(op) for op in ops)
        name = self._product_name(ops, role, n)
        if role == "expert":
            active = rows / self.whole.tokens
            return Operator(
                name, "expert_matmul", "experts", parameters, n=int(n), k=int(first.k), groups=first.groups,
                active=_round(active),
            )  # fmt: skip
        split = {"column": "columns", "row": "columns", "router": "sequence"}.get(role, "whole")
        if first.weight is None:
            split = "columns" if self.split.state(self._root(ops[0].outputs[0])) == "inner" else "whole"
        if name == "logits":
            split = "columns"
        rows = _round(first.m * first.count / self.whole.tokens)
        return Operator(name, "matmul", split, parameters, n=int(n), k=int(first.k), rows=rows)

    def _product_name(self, ops: list[Op], role: str, n: float) -> str:
        leaf = _leaf(ops[0])
        if self.kind == "head" and n == self.whole.vocab:
            return "logits"
        if role == "router":
            return "router"
        attends = self._leads_to_attention(ops)
        prefix = "experts_" if role == "expert" else "shared_" if self.split.experts and not attends else ""
        if role == "expert":
            down = self.split.state(self._root(operands(ops[0])[0])) == "experts"
            return "experts_down" if down else "experts_gate_up" if self._gated(ops, n) else "experts_up"
        if role == "row":
            return "output" if self._comes_from_attention(ops[0]) else prefix + "down"
        if role == "column":
            if attends and self.split.state(self._root(operands(ops[0])[0])) == "stream":
                return "qkv"
            return leaf if attends else prefix + ("gate_up" if self._gated(ops, n) else "up")
        return leaf

    def _gated(self, ops: list[Op], n: float) -> bool:
        """Whether what a product makes is halved before the next product reads it."""
        reached = {self._root(v) for op in ops for v in op.outputs}
        for op in self.ops:
            if op.index > ops[0].index and any(self._root(v) in reached for v in op.inputs):
                if op.product is not None:
                    return 2 * op.product.k == n
                reached.update(self._root(v) for v in op.outputs)
        return False

    def _leads_to_attention(self, ops: list[Op]) -> bool:
        reached = {self._root(v) for op in ops for v in op.outputs}
        for op in self.ops:
            if op.index > ops[0].index and any(self._root(v) in reached for v in op.inputs):
                if op.attending is not None:
                    return True
                if op.product is None:
                    reached.update(self._root(v) for v in op.outputs)
        return False

    def _comes_from_attention(self, row: Op) -> bool:
        attentions = [op for op in self.ops if op.attending is not None]
        reached = {self._root(v) for op in attentions for v in op.outputs}
        for op in self.ops[: self.ops.index(row)]:
            if op.product is None and any(self._root(v) in reached for v in op.inputs):
                reached.update(self._root(v) for v in op.outputs)
        return self._root(operands(row)[0]) in reached

    def _attention(self, op: Op) -> Operator:
        it, tokens = op.attending, self.whole.tokens
        split = "columns" if self.split.state(self._root(op.inputs[0])) == "inner" else "whole"
        scores = Attention(
            it.heads, it.kv_heads, it.qk_dim, it.v_dim, it.window, it.causal,
            queries=_round(it.batch * it.queries / tokens), keys=_round(it.keys / self.whole.seq_len),
        )  # fmt: skip
        return Operator("attention", "attention", split, parameters=self._take(op), attention=scores)

    def _lookups(self) -> None:
        """Rows of tables; the table of the vocabulary is divided."""
        for op in self.ops:
            if op.kind != "lookup" and not (op.name == "embedding" and self._parameters_of(op)):
                continue
            table = self.trace.values[op.inputs[0]]
            tokens = bool(self.whole.vocab) and table.shape[0] == self.whole.vocab
            moved = 2.0 * sum(self.trace.values[v].elements for v in op.outputs) / self.whole.tokens
            name, split = ("tokens", "columns") if tokens else ("positions", "whole")
            self.built.append((op.index, Operator(name, "lookup", split, self._take(op), moved=_round(moved))))

    def _pointwise(self) -> None:
        """One operator for each group of neighbouring pointwise operators and class of what they work on."""
        for ops in self._groups():
            made = {self._root(v) for op in ops for v in op.outputs}
            mine = {op.index for op in ops}
            read = {self._root(v) for op in ops for v in self.kernels.reads(op)} - made
            written = {
                root for root in made
                if root in self.outside or any(i not in mine for i in self.whole.readers.get(root, ()))
            }  # fmt: skip
            moved: dict[str, float] = defaultdict(float)
            for root in read | written:
                moved[CLASSES[self.split.state(root)]] += self.trace.size(root)
            held = self._of_experts(self._scales(ops))
            for split in sorted(set(moved) | set(held)):
                per_token = _round(moved.get(split, 0.0) / self.whole.tokens)
                name = self._pointwise_name(ops, split)
                self.built.append(
                    (ops[0].index, Operator(name, "elementwise", split, held.get(split, 0), moved=per_token))
                )

    def _groups(self) -> list[list[Op]]:
        """Pointwise operators joined where one reads what another made, and no product lies between."""
        leader: dict[int, int] = {}
        depth: dict[int, int] = {}
        groups: dict[int, list[Op]] = {}
        for op in self.ops:
            read = [self._root(v) for v in self.kernels.reads(op)]
            deep = max((depth.get(root, 0) for root in read), default=0)
            pointwise = op.kind in POINTWISE or (op.kind == "constant" and op.name != "embedding")
            depth.update({self._root(v): deep + (not pointwise) for v in op.outputs})
            if not pointwise:
                continue
            found = sorted({leader[root] for root in read if root in leader and depth[root] == deep})
            lead = found[0] if found else op.index
            groups.setdefault(lead, []).append(op)
            for other in found[1:]:
                groups[lead].extend(groups.pop(other))
                leader.update({root: lead for root, at in leader.items() if at == other})
            leader.update({self._root(v): lead for v in op.outputs})
        return [sorted(ops, key=lambda op: op.index) for ops in groups.values()]

    def _scales(self, ops: list[Op]) -> dict[str, int]:
        """Parameters of pointwise operators by split: those narrower than the divided data they scale are whole."""
        held: dict[str, int] = defaultdict(int)
        for op in ops:
            names = [name for name in dict.fromkeys(self._parameters_of(op)) if name in self.whole.parameters]
            for name in names:
                split = CLASSES[self.split.state(self._root(op.outputs[0]))] if op.outputs else "whole"
                split = "experts" if split == "routed" else split
                narrow = split == "columns" and self.whole.parameters[name] < self._width(op)
                held["whole" if narrow else split] += self.whole.parameters.pop(name)
        return held

    def _of_experts(self, held: dict[str, int]) -> dict[str, int]:
        """``held`` without biases of experts, which go to the product whose outputs they are added to."""
        for i, (index, op) in enumerate(self.built):
            biases = op.groups * op.n
            if op.kind == "expert_matmul" and held.get("experts", 0) >= biases and op.parameters % (op.n * op.k) == 0:
                self.built[i] = (index, dataclasses.replace(op, parameters=op.parameters + biases))
                held["experts"] -= biases
        return {split: count for split, count in held.items() if count}

    def _width(self, op: Op) -> float:
        """Elements a token of the data that a parameter meets, at this operator or at the next that has data."""
        root = self._root(op.outputs[0])
        for other in (op, *(self.trace.ops[i] for i in self.whole.readers.get(root, ()))):
            if self.kernels.reads(other) and any(self._root(v) != root for v in self.kernels.reads(other)):
                return self.trace.values[other.outputs[0]].elements / self.whole.tokens
        return self.trace.values[op.outputs[0]].elements / self.whole.tokens

    def _pointwise_name(self, ops: list[Op], split: str) -> str:
        if split == "routed":
            return "combine" if any(op.index > self._first_expert for op in ops) else "dispatch"
        if split == "experts":
            return "experts_activation"
        norm = any((op.reduced and op.kind == "nonlinear") or op.name == "rsqrt" for op in ops)
        if split == "sequence" and norm:
            return "final_norm" if self.kind == "head" else self._norm_name(ops)
        if split == "columns":
            return "rope" if self._leads_to_attention(ops) else "activation"
        if split == "sequence":
            return "residual"
        return _leaf(ops[0])

    def _norm_name(self, ops: list[Op]) -> str:
        made = {self._root(v) for op in ops for v in op.outputs}
        for op in self.ops:
            if op.product is not None and self._root(operands(op)[0]) in made:
                return "attention_norm" if self._leads_to_attention([op]) else "feed_forward_norm"
        return "norm"

    @property
    def _first_expert(self) -> int:
        return min((op.index for op in self.ops if self.split.roles.get(op.index) == "expert"), default=0)

    def _keep(self, kept: list[Kept]) -> None:
        """Put what is kept at operators of the same split, so that it is divided as they are."""
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for it in kept:
            if self.kind == "head" and self.whole.vocab and self._is_logits(it.root):
                continue
            split = CLASSES[self.split.state(it.root)]
            size = it.elements / self.whole.tokens
            sums[split][0] += size
            sums[split][1] += 0.0 if it.again else size
        for split, (saved, selective) in sums.items():
            self._put(split, _round(saved), _round(selective))

    def _put(self, split: str, saved: float, selective: float) -> None:
        at = [i for i, (_, op) in enumerate(self.built) if op.split == split and op.saved == 0]
        pointwise = [i for i in at if self.built[i][1].kind == "elementwise"]
        if not at:
            self.built.append((0, Operator("kept", "elementwise", split, saved=saved, saved_selective=selective)))
            return
        i = (pointwise or at)[0]
        index, op = self.built[i]
        self.built[i] = (index, dataclasses.replace(op, saved=saved, saved_selective=selective))

    def _is_logits(self, root: int) -> bool:
        return self.trace.values[root].shape[-1:] == (self.whole.vocab,)


SMALL = 1 / 16
"""Pointwise work that moves less than this part of the layer's widest pointwise operator is counted with another."""


def _routed(operators: tuple[Operator, ...]) -> tuple[Operator, ...]:
    """Operators with the way to the experts and back as two: each copy read and written, and summed again."""
    first = next((op for op in operators if op.kind == "expert_matmul"), None)
    last = next((op for op in reversed(operators) if op.kind == "expert_matmul"), None)
    if first is None:
        return operators
    routed = [op for op in operators if op.split == "routed"]
    saved, selective = sum(op.saved for op in routed), sum(op.saved_selective for op in routed)
    copies, back = first.k * first.active, last.n * last.active
    held = sum(op.parameters for op in routed)
    there = Operator(
        "dispatch", "elementwise", "routed", held, moved=2 * copies, saved=min(saved, copies),
        saved_selective=min(selective, copies),
    )  # fmt: skip
    again = Operator(
        "combine", "elementwise", "routed", moved=back + last.n, saved=saved - there.saved,
        saved_selective=selective - there.saved_selective,
    )  # fmt: skip
    rest = [op for op in operators if op.split != "routed"]
    at, end = rest.index(first), rest.index(last) + 1
    return (*rest[:at], there, *rest[at:end], again, *rest[end:])


def _merged(operators: tuple[Operator, ...]) -> tuple[Operator, ...]:
    """Neighbouring pointwise operators of one name and split as one (rotations of queries and keys); small ones too."""
    found: list[Operator] = []
    widest = max((op.moved for op in operators if op.kind == "elementwise"), default=0.0)
    for op in operators:
        at = _before(found, op, widest)
        if at is None:
            found.append(op)
            continue
        last, sums = found[at], ("parameters", "moved", "saved", "saved_selective")
        found[at] = dataclasses.replace(last, **{name: getattr(last, name) + getattr(op, name) for name in sums})
    return tuple(found)


def _before(found: list[Operator], op: Operator, widest: float) -> int | None:
    """Where the operator is that a pointwise one is counted with; ``None`` if it is one of its own."""
    if op.kind != "elementwise" or not found:
        return None
    alike = [i for i, it in enumerate(found) if (it.kind, it.split) == (op.kind, op.split)]
    if op.name == "experts_activation" and alike:
        return alike[-1]
    if alike and alike[-1] == len(found) - 1 and found[-1].name == op.name:
        return alike[-1]
    return alike[-1] if alike and op.moved < SMALL * widest else None


def _leaf(op: Op) -> str:
    """The last part of an operator's module that is no number, or its own name."""
    return next((part for part in reversed(op.path.split(".")) if part and not part.isdigit()), op.name)


def _round(number: float) -> float:
    """``number`` to 12 digits, so that sums that should be whole are."""
    return float(f"{number:.12g}")
