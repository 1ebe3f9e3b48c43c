"""Multi-token prediction: layers behind the last one that predict tokens further ahead, each with a head of its own.

A pass joins the hidden states with the next tokens' embeddings, runs a layer or two and the shared head:

    norm, norm, product [h, 2 h], layers, norm, logits, loss

Passes after the first use the same weights again, so they count work and kept elements and no parameters.

Source: DeepSeek-AI, arXiv:2412.19437, section 2.2; ``mtp_use_repeated_layer`` of Megatron-Core.
"""

from __future__ import annotations

import dataclasses

from cost_models.model_graph import Layer, ModelGraph, Operator

FP32_ELEMENTS = 2


def with_predictions(model: ModelGraph, passes: int, layers: list[str]) -> ModelGraph:
    """``model`` with ``passes`` predicting layers behind its own, each of the kinds named in ``layers``."""
    if passes == 0:
        return model
    first = _prediction(model, layers)
    again = dataclasses.replace(
        first, kind="prediction again",
        operators=tuple(dataclasses.replace(op, parameters=0) for op in first.operators),
    )  # fmt: skip
    added = (first,) if passes == 1 else (first, again)
    last = len(model.kinds)
    order = (*model.order, last, *(last + 1,) * (passes - 1))
    return dataclasses.replace(model, kinds=(*model.kinds, *added), order=order)


def predictions(model: ModelGraph) -> int:
    """Layers of ``model`` that :func:`with_predictions` added."""
    return sum(model.kinds[kind].kind.startswith("prediction") for kind in model.order)


def _prediction(model: ModelGraph, layers: list[str]) -> Layer:
    by_name = {kind.kind: kind for kind in model.kinds}
    chosen = [by_name.get(name, model.kinds[model.order[-1]]) for name in layers]
    inner = tuple(op for layer in chosen for op in layer.operators)
    return Layer(
        kind="prediction",
        operators=(*_joined(model.hidden), *inner, *_head(model)),
        boundaries=sum(layer.boundaries for layer in chosen) + 1,
        experts=max(layer.experts for layer in chosen),
        top_k=max(layer.top_k for layer in chosen),
        expert_groups=max(layer.expert_groups for layer in chosen),
    )


def _joined(hidden: int) -> tuple[Operator, ...]:
    """Hidden states and embeddings of the next tokens, each behind a norm, made one."""
    norms = Operator(
        "prediction_norms", "elementwise", "sequence", parameters=2 * hidden, moved=4 * hidden,
        saved=4 * hidden, saved_selective=2 * hidden,
    )  # fmt: skip
    join = Operator("prediction_join", "matmul", "columns", parameters=2 * hidden**2, n=hidden, k=2 * hidden)
    return (norms, join)


def _head(model: ModelGraph) -> tuple[Operator, ...]:
    """The model's head over again, its matrix shared; logits are kept in fp32."""
    head = {op.name: op for op in model.head.operators}
    kept = FP32_ELEMENTS * model.vocab
    logits = dataclasses.replace(head["logits"], parameters=0, saved=kept, saved_selective=kept)
    return tuple(logits if op.name == "logits" else op for op in model.head.operators)
