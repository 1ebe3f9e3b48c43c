"""A trace as a ``ModelGraph``: pieces as layers, like ones folded, and what passes between them as edges.

The sequence is that of the hidden states in the last layer: ``[batch, sequence, hidden]`` has one, anything else
(images as ``[batch, channels, height, width]``, rows of features) counts as one token a sample. Operators that work
on another number of rows (an encoder, a vision tower, pooled vectors) do so in proportion.
"""

from __future__ import annotations

import dataclasses

from cost_models.model_graph import Attention, Edge, Layer, ModelGraph, Operator
from planner.read_model.traced import Trace
from planner.read_model.traced_attention import fuse_attention, without_hints
from planner.read_model.traced_experts import mark_experts
from planner.read_model.traced_heads import unrepeated_heads
from planner.read_model.traced_operators import LayerBuilder, Whole, _round
from planner.read_model.traced_units import Piece, placed


def graph_of(trace: Trace, name: str, max_positions: int | None = None) -> ModelGraph:
    """The graph of a traced module; parameters that no operator reads are counted where their module is."""
    fuse_attention(trace)
    without_hints(trace)
    mark_experts(trace)
    embedding, layers, head = placed(trace)
    seq_len = _sequence(trace, layers)
    whole = Whole(
        trace, float(trace.batch * seq_len), float(seq_len), _readers(trace), dict(trace.parameters),
        vocab=_vocab(trace, head),
    )  # fmt: skip
    pieces = [embedding, *layers, head]
    kinds_of = ["embedding", *(_kind_name(piece) for piece in layers), "head"]
    built = [LayerBuilder(whole, piece.ops, kind).layer() for piece, kind in zip(pieces, kinds_of, strict=True)]
    built = _with_unused(whole, pieces, built)
    if whole.vocab:
        built[-1] = _with_loss(built[-1], whole.vocab)
    flows = _flows(whole, pieces)
    return _assembled(whole, name, pieces, built, flows, max_positions)


def _assembled(
    whole: Whole, name: str, pieces: list[Piece], built: list[Layer], flows: tuple[Edge, ...], positions: int | None
) -> ModelGraph:
    trace, hidden = whole.trace, _hidden(flows, len(pieces) - 2)
    plain = _is_chain(flows, len(pieces) - 2, hidden)
    inner = built[1:-1] if plain else _entered(whole, pieces, built[1:-1], hidden)
    kinds = tuple(dict.fromkeys(inner))
    attentions = [op.attention for layer in inner for op in layer.operators if op.attention is not None]
    widest = max(attentions, key=lambda it: it.heads, default=None)
    return ModelGraph(
        name=name, hidden=int(hidden), vocab=whole.vocab,
        heads=widest.heads if widest else 1, kv_heads=_kv_heads(inner),
        max_positions=positions or int(whole.seq_len),
        kinds=kinds, order=tuple(kinds.index(layer) for layer in inner), embedding=built[0], head=built[-1],
        tied=_tied(trace, pieces), widths=_widths(trace, inner, whole.seq_len), expert_widths=_expert_widths(inner),
        flows=() if plain else flows,
        modules=_modules(trace, pieces),
        example_seq_len=int(whole.seq_len),
        notes=(
            _example(whole), *dict.fromkeys(trace.notes), *_unpriced(trace), *_shared(trace, pieces), *_loops(trace),
        ),
    )  # fmt: skip


def _modules(trace: Trace, pieces: list[Piece]) -> tuple[tuple[str, ...], ...]:
    """Names of each piece's modules, and of parameters outside these that the first or the last reads and no layer."""
    named = [tuple(dict.fromkeys(piece.modules)) for piece in pieces]
    root = lambda v: trace.values[trace.values[v].place[0]]  # noqa: E731
    read = [{root(v).parameter for op in piece.ops for v in op.inputs} - {None} for piece in pieces]
    for end in (0, -1):
        inside = tuple(f"{name}." for names in (*named[1:-1], named[end]) for name in names if name)
        loose = read[end].difference(*read[1:-1]) if "" not in named[end] else ()
        named[end] += tuple(sorted(name for name in loose if not name.startswith(inside)))
    return tuple(named)


def _example(whole: Whole) -> str:
    """How the example inputs were understood."""
    samples = f"{whole.trace.batch} sample{'s' if whole.trace.batch > 1 else ''}"
    tokens = f"{whole.seq_len:.0f} tokens" if whole.seq_len > 1 else "one token (no sequence in its last layer)"
    return f"the example inputs are read as {samples} of {tokens}"


def _unpriced(trace: Trace) -> list[str]:
    """A note for every operator that no formula prices, with the modules it stands in counted."""
    notes = []
    for name, places in trace.unpriced.items():
        first, *others = dict.fromkeys(places)
        more = f" and {len(others)} more modules" if others else ""
        own = "" if "::" not in name else " (torch.utils.flop_counter.register_flop_formula gives it one)"
        notes.append(f"{name} in {first}{more} has no FLOP formula; counted as moving data{own}")
    return notes


def _shared(trace: Trace, pieces: list[Piece]) -> list[str]:
    """A note where layers share weights, which every stage would need a copy of."""
    used: dict[str, set[int]] = {}
    for i, piece in enumerate(pieces[1:-1]):
        for op in piece.ops:
            for name in {trace.values[v].parameter for v in op.inputs} - {None}:
                used.setdefault(name, set()).add(i)
    shared = [name for name, layers in used.items() if len(layers) > 1]
    if not shared:
        return []
    return [
        f"{len(shared)} parameters are used by several layers (the first is {shared[0]!r}): they count once, at the "
        "first; copies on other stages and the sum of their gradients are not priced"
    ]


def _loops(trace: Trace) -> list[str]:
    """A note where a module runs on every slice of one tensor in turn: a loop over time steps, which are no layers.

    Layers that share weights are told from it: they read what the one before gave, not slices of one tensor.
    """
    slices: dict[str, list[set[tuple]]] = {}
    for call in trace.calls:
        read = {trace.values[v].place for v in call.inputs if trace.values[v].needs}
        slices.setdefault(call.path, []).append({place for place in read if len(place) == 2})
    looped = {
        path: len(each) for path, each in slices.items()
        if len(each) > 1 and all(each) and len(set().union(*each)) >= len(each)
        and set.intersection(*({root for root, _ in some} for some in each))
    }  # fmt: skip
    if not looped:
        return []
    path, steps = next(iter(looped.items()))
    return [
        f"module {path!r} runs {steps} times, on one slice of a tensor after the other: a loop over time steps, which "
        "are read as layers; pin pp=1, since no stage can be cut out of it"
    ]


def _readers(trace: Trace) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for op in trace.ops:
        for value in op.inputs:
            if trace.values[value].needs:
                found.setdefault(trace.values[value].place[0], []).append(op.index)
    return found


def _kind_name(piece: Piece) -> str:
    """The class-free name of a layer's module: its path without numbers."""
    return ".".join(part for part in piece.path.split(".") if not part.isdigit()) or "module"


def _sequence(trace: Trace, layers: list[Piece]) -> int:
    """Tokens a sample of the hidden states that go into the last layer."""
    calls = {call.path: call for call in trace.calls}
    for piece in reversed(layers):
        call = next((calls[path] for path in calls if path == piece.path or path.startswith(piece.path + ".")), None)
        entered = [trace.values[v] for v in (call.inputs if call else ()) if trace.values[v].needs]
        if entered and entered[0].shape[:2] in _token_shapes(trace):
            return entered[0].shape[1]
        if entered and len(entered[0].shape) == 3:
            return max(1, entered[0].shape[0] * entered[0].shape[1] // trace.batch)
        if entered:
            return 1
    return 1


def _token_shapes(trace: Trace) -> set[tuple[int, ...]]:
    """Shapes ``[batch, sequence]`` of the whole numbers that tables are looked up with."""
    looked_up = (trace.values[op.inputs[1]].shape for op in trace.ops if op.name == "embedding")
    return {shape for shape in looked_up if len(shape) == 2}


def _vocab(trace: Trace, head: Piece) -> int:
    """Rows of the table that example tokens are looked up in, if the head's last product is as wide; else 0."""
    products = [op.product for op in head.ops if op.product and op.product.weight]
    tables = {trace.values[op.inputs[0]].shape[0] for op in trace.ops if op.name == "embedding"}
    return int(products[-1].n) if products and products[-1].n in tables else 0


def _with_loss(head: Layer, vocab: int) -> Layer:
    """Cross-entropy over the vocabulary, as training adds it, in place of what the module may have computed of it."""
    at = next(i for i, op in enumerate(head.operators) if op.name == "logits")
    loss = Operator("loss", "loss", "columns", moved=4 * vocab)
    return dataclasses.replace(head, operators=(*head.operators[: at + 1], loss))


def _with_unused(whole: Whole, pieces: list[Piece], built: list[Layer]) -> list[Layer]:
    """Layers with the parameters that nothing read, each where its module is."""
    left = dict(whole.parameters)
    for i, piece in enumerate(pieces):
        mine = [name for name in left if any(name.startswith(f"{path}.") or not path for path in piece.modules)]
        count = sum(left.pop(name) for name in mine)
        if count:
            unused = Operator("unused", "elementwise", "whole", count)
            built[i] = dataclasses.replace(built[i], operators=(*built[i].operators, unused))
    if left:
        unused = Operator("unused", "elementwise", "whole", sum(left.values()))
        built[0] = dataclasses.replace(built[0], operators=(*built[0].operators, unused))
    return built


def _flows(whole: Whole, pieces: list[Piece]) -> tuple[Edge, ...]:
    """Tensors that one piece makes and later ones read, once each to the last that reads it."""
    trace = whole.trace
    where = {op.index: i for i, piece in enumerate(pieces) for op in piece.ops}
    sizes: dict[tuple[int, int], float] = {}
    for op in trace.ops:
        for root in {trace.values[v].place[0] for v in op.outputs if trace.values[v].needs}:
            if trace.values[root].producer != op.index:
                continue
            readers = [where[i] for i in whole.readers.get(root, ()) if i in where]
            last = max(readers, default=where[op.index])
            if last > where[op.index]:
                key = (where[op.index] - 1, last - 1)
                sizes[key] = sizes.get(key, 0.0) + trace.size(root) / whole.tokens
    return tuple(Edge(source, target, _round(size)) for (source, target), size in sorted(sizes.items()))


def _hidden(flows: tuple[Edge, ...], layers: int) -> float:
    """The width that the last layer gives the head, else the one that passes between neighbours most often."""
    last = [edge.elements for edge in flows if (edge.source, edge.target) == (layers - 1, layers)]
    widths = [edge.elements for edge in flows if edge.target == edge.source + 1 and 0 <= edge.target <= layers]
    common = max(set(widths), key=lambda width: (widths.count(width), width), default=1.0)
    return last[0] if last and last[0] in widths[:-1] else common


def _is_chain(flows: tuple[Edge, ...], layers: int, hidden: float) -> bool:
    """Whether only hidden states of one width pass, each to the next layer."""
    wanted = {(i, i + 1) for i in range(-1, layers)}
    return all((e.source, e.target) in wanted and e.elements == hidden for e in flows) and hidden == int(hidden)


def _entered(whole: Whole, pieces: list[Piece], layers: list[Layer], hidden: float) -> list[Layer]:
    """Layers with the elements that come into each; gathers of narrower hidden states count for less."""
    flows, found = _flows(whole, pieces), []
    for i, layer in enumerate(layers):
        inward = _inward(whole, pieces[i + 1])
        own = sum(e.elements for e in flows if (e.source, e.target) == (i - 1, i)) or hidden
        found.append(dataclasses.replace(layer, entering=inward, boundaries=_round(layer.boundaries * own / hidden)))
    return found


def _inward(whole: Whole, piece: Piece) -> float:
    """Elements a token of all tensors that a piece reads and others made."""
    trace, mine = whole.trace, {op.index for op in piece.ops}
    values = [trace.values[v] for op in piece.ops for v in op.inputs if trace.values[v].needs]
    roots = {value.place[0] for value in values if value.parameter is None}
    outside = [root for root in roots if trace.values[root].producer not in mine]
    return _round(sum(trace.size(root) for root in outside) / whole.tokens)


def _tied(trace: Trace, pieces: list[Piece]) -> bool:
    """Whether the head multiplies with the embedding's table."""
    looked_up = {trace.values[op.inputs[0]].parameter for op in pieces[0].ops if op.name == "embedding"}
    weights = {op.product.weight for op in pieces[-1].ops if op.product and op.product.weight}
    return bool(looked_up & weights - {None})


def _widths(trace: Trace, layers: list[Layer], seq_len: float) -> tuple[tuple[str, int], ...]:
    """Sizes that tp must divide; a 1 where nothing is divided, or no sequence to scatter, so that tp stays 1.

    Key-value heads are among them where ranks cannot each take the one that they need: where no products of their own
    make keys and values, or layers differ in them.
    """
    found: dict[tuple[str, int], None] = {}
    unrepeated, fewest = unrepeated_heads(trace), _kv_heads(layers)
    if seq_len == 1:
        return (("token a sample", 1),)
    for layer in layers:
        for op in layer.operators:
            if op.attention is not None and op.split == "columns":
                found[("attention heads", op.attention.heads)] = None
                repeated = op.attention.kv_heads == fewest and fewest not in unrepeated
                found |= dict.fromkeys(_of_keys(op.attention, repeated))
            if op.name == "down":
                found[("feed-forward width", op.k)] = None
            if op.name == "shared_down":
                found[("shared expert width", op.k)] = None
    return tuple(found) or (("layer without a product that tensor parallelism could divide", 1),)


def _of_keys(it: Attention, repeated: bool) -> list[tuple[str, int]]:
    """Sizes that tp must divide for the sake of keys and values, beyond the heads."""
    if it.kv_heads == it.heads:
        return []
    if not repeated:
        return [("key-value heads", it.kv_heads)]
    widths = (("key width", it.kv_heads * it.qk_dim), ("value width", it.kv_heads * it.v_dim))
    return [(name, width) for name, width in widths if width % it.heads]


def _expert_widths(layers: list[Layer]) -> tuple[tuple[str, int], ...]:
    widths = {op.k for layer in layers for op in layer.operators if op.name == "experts_down"}
    return tuple(("expert feed-forward width", width) for width in sorted(widths))


def _kv_heads(layers: list[Layer]) -> int:
    """The fewest KV heads of any divided attention; 1 if there is none."""
    heads = [op.attention.kv_heads for layer in layers for op in layer.operators if op.attention is not None]
    return min(heads, default=1)
