"""Tensor and sequence parallelism of a decoder layer, in torch's styles.

Projections are split by columns, then by rows, so that one reduce-scatter closes each half of a layer; norms
and residuals between them hold a part of the sequence.
"""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from planner.errors import Unsupported
from planner.runtime.collectives import own_head
from planner.runtime.decoder import Decoder, DecoderPart
from planner.runtime.gather_again import SEQUENCE, GatherAgain
from planner.runtime.limits import check_kv_heads

COLUMNS = ("self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj")
KEYS_AND_VALUES = ("self_attn.k_proj", "self_attn.v_proj")
ROWS = ("self_attn.o_proj", "mlp.down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")


def check_tensor_parallel(decoder: Decoder, tp: int) -> None:
    """Refuse a degree that does not divide the model, or layers with parameters it has no rule for.

    Raises ``Unsupported`` naming the part.
    """
    config = decoder.config
    attention = decoder.body.layers[0].self_attn
    check_kv_heads(tp, config.num_key_value_heads, attention.head_dim)
    for what in ("num_attention_heads", "intermediate_size"):
        if getattr(config, what) % tp:
            raise Unsupported(f"tp = {tp} does not divide {what} = {getattr(config, what)}")
    known = {*COLUMNS, *KEYS_AND_VALUES, *ROWS, *NORMS}
    for name, _ in decoder.body.layers[0].named_parameters():
        if tp > 1 and name.rpartition(".")[0] not in known:
            raise Unsupported(f"tensor parallelism has no rule for the layers' parameter {name!r}; pin tp=1")


class HeadColumns(ColwiseParallel):
    """Columns of keys or values; where ranks outnumber their heads, each then takes the whole head that it needs."""

    def __init__(self, kv_heads: int):
        super().__init__()
        self.kv_heads = kv_heads

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        split, group = super()._apply(module, device_mesh), device_mesh.get_group()
        split.register_forward_hook(lambda _, args, part: own_head(part, self.kv_heads, group))
        return split


def split_layer(layer: nn.Module, mesh: DeviceMesh, recomputed: bool) -> None:
    """Split one decoder layer over the ``tp`` mesh.

    A layer that is ``recomputed`` gathers its inputs again by itself; any other is made to.
    """
    attention = layer.self_attn
    kv_heads = attention.k_proj.out_features // attention.head_dim
    attention.num_key_value_groups //= max(1, mesh.size() // kv_heads)
    styles: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in COLUMNS}
    styles |= {name: HeadColumns(kv_heads) for name in KEYS_AND_VALUES}
    styles |= {name: RowwiseParallel(output_layouts=SEQUENCE) for name in ROWS}
    styles |= {name: SequenceParallel() for name in NORMS}
    styles |= _gathering() if recomputed else {"self_attn": GatherAgain(), "mlp": GatherAgain()}
    parallelize_module(layer, mesh, styles)


def _gathering() -> dict[str, ParallelStyle]:
    """torch's own styles for the inputs of both halves: gathered, and kept if nothing recomputes them."""
    return {
        "self_attn": PrepareModuleInput(
            input_kwarg_layouts={"hidden_states": SEQUENCE}, desired_input_kwarg_layouts={"hidden_states": Replicate()}
        ),
        "mlp": PrepareModuleInput(input_layouts=(SEQUENCE,), desired_input_layouts=(Replicate(),)),
    }


def split_ends(part: DecoderPart, mesh: DeviceMesh, whole_logits: bool) -> None:
    """Split embedding and head over the vocabulary; the final norm joins the layers' sequence parallelism.

    The head leaves each rank its own columns of the logits, or all of them with ``whole_logits``.
    """
    logits = Replicate() if whole_logits else Shard(-1)
    styles: dict[str, ParallelStyle] = {}
    if part.embed_tokens is not None:
        styles["embed_tokens"] = RowwiseParallel(input_layouts=Replicate(), output_layouts=SEQUENCE)
    if part.lm_head is not None:
        styles["norm"] = SequenceParallel()
        styles["lm_head"] = ColwiseParallel(input_layouts=SEQUENCE, output_layouts=logits)
    if styles:
        parallelize_module(part, mesh, styles)
