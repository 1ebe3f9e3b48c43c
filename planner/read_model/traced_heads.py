"""Which products make keys and values, and of how many heads: where ranks outnumber these, they are gathered again."""

from __future__ import annotations

from planner.read_model.traced import Attending, Op, Trace


def sections(trace: Trace, op: Op) -> tuple[int, ...]:
    """Widths of the slices that a product's output is cut into along its last dimension, if they make up all of it."""
    root, rows = trace.values[op.outputs[0]].place[0], op.product.m * op.product.count
    parts = {
        it.place[1][0]: it.shape[-1]
        for it in trace.values
        if it.place[0] == root and len(it.place) == 2 and it.shape and it.shape[-1] * rows == it.place[1][1]
    }
    sizes = tuple(parts[offset] for offset in sorted(parts))
    return sizes if len(sizes) > 1 and sum(sizes) == op.product.n else ()


def key_value_heads(trace: Trace) -> dict[int, tuple[int, ...]]:
    """KV heads in each section of a product's output, 0 in one of queries, by operator.

    Only products that make keys or values of fewer heads than the queries have; no entry where the heads of such a
    product cannot be told apart by widths. Halves of a single head (a rotation takes these) are no sections.
    """
    found: dict[int, tuple[int, ...]] = {}
    for op, it in _grouped(trace):
        for product in {_product_behind(trace, value) for value in op.inputs[1:3]} - {None}:
            whole = (trace.ops[product].product.n,)
            counts = _counts(sections(trace, trace.ops[product]) or whole, it) or _counts(whole, it)
            if any(counts):
                found[product] = counts
    return found


def unrepeated_heads(trace: Trace) -> set[int]:
    """Numbers of KV heads of attentions whose keys and values no products of :func:`key_value_heads` make."""
    known = key_value_heads(trace)
    return {
        it.kv_heads for op, it in _grouped(trace)
        if not all(_product_behind(trace, value) in known for value in op.inputs[1:3])
    }  # fmt: skip


def _grouped(trace: Trace) -> list[tuple[Op, Attending]]:
    """Attentions with fewer KV heads than heads."""
    attentions = [(op, op.attending) for op in trace.ops if op.attending is not None]
    return [(op, it) for op, it in attentions if 0 < it.kv_heads < it.heads]


def _counts(widths: tuple[int, ...], it: Attending) -> tuple[int, ...]:
    """KV heads by section. Queries are wider than keys; a section of some other width makes none of it known."""
    keys, queries = {it.kv_heads * it.qk_dim, it.kv_heads * it.v_dim}, it.heads * it.qk_dim
    if not keys.union({queries}).issuperset(widths) or queries in keys:
        return ()
    return tuple(it.kv_heads if width in keys else 0 for width in widths)


def _product_behind(trace: Trace, value: int) -> int | None:
    """The one product with a weight that a value is made of by way of no other; ``None`` if there are more, or none."""
    found: set[int] = set()
    seen: set[int] = set()
    ahead = [value]
    while ahead:
        root = trace.values[ahead.pop()].place[0]
        producer = trace.values[root].producer
        if root in seen or producer is None:
            continue
        seen.add(root)
        op = trace.ops[producer]
        if op.product is not None and op.product.weight:
            found.add(op.index)
        else:
            ahead.extend(v for v in op.inputs if trace.values[v].needs and trace.values[v].parameter is None)
    return found.pop() if len(found) == 1 else None
