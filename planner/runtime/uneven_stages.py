"""Pipelines whose stages have meshes of their own: hidden states are cut anew on every hop.

Of every micro-batch a rank holds the rows of its data-parallel index and, since the layers split the sequence over tp,
one part of the sequence: a rectangle. A stage's rectangles tile the micro-batch, so what a rank of the next stage needs
are its rectangle's overlaps with this stage's, each from the one rank that holds it. Gradients go back the same way.
Data parallelism is a mean over ranks, so that a gradient from a stage with other rows a rank is brought to those of
this one:

    dL/dh at stage s = micro_batch_{s+1} / micro_batch_s * what stage s + 1 sends

The i-th micro-batch is the same samples on every stage: rows of a rank are taken from each of them, not in one piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from planner.errors import Unsupported
from planner.mixed.uneven import UNEVEN, UnevenJob
from planner.result import StrategyRecord
from planner.runtime.decoder import Decoder, find_decoder
from planner.runtime.mesh import MESH_AXES
from planner.runtime.pipeline import one_stage_schedule
from planner.runtime.pipeline_stage import ScheduledStage
from planner.runtime.schedule import PipelineSchedule
from planner.runtime.target_mean import Loss

HIDDEN_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Piece:
    """What this rank and ``peer`` have in common of a micro-batch, in rows and positions of this rank's own part."""

    peer: int
    rows: slice
    positions: slice

    def of(self, hidden: torch.Tensor) -> torch.Tensor:
        """The piece of this rank's hidden states ``[batch, seq, hidden]``."""
        return hidden[self.rows, self.positions]


def pieces(job: UnevenJob, stage: int, rank: int, other: int) -> list[Piece]:
    """What ``rank`` of ``stage`` exchanges with the ranks of the stage ``other`` in one micro-batch."""
    rows, positions = _rectangle(job, stage, rank)
    found = []
    for peer in job.ranks_of(other):
        their_rows, their_positions = _rectangle(job, other, peer)
        both = _overlap(rows, their_rows), _overlap(positions, their_positions)
        if all(both):
            found.append(Piece(peer, *(slice(it.start, it.stop) for it in both)))
    return found


def _rectangle(job: UnevenJob, stage: int, rank: int) -> tuple[range, range]:
    """Rows of the micro-batch and positions of the sequence that a rank of a stage holds."""
    strategy = job.stages[stage]
    data, split = divmod(rank - job.ranks_of(stage).start, strategy.tp)
    size, part = strategy.micro_batch, job.workload.seq_len // strategy.tp
    return range(data * size, (data + 1) * size), range(split * part, (split + 1) * part)


def _overlap(mine: range, theirs: range) -> range:
    """The common part, counted from the beginning of ``mine``."""
    return range(max(mine.start, theirs.start) - mine.start, min(mine.stop, theirs.stop) - mine.start)


class HopStage(ScheduledStage):
    """One stage that exchanges pieces with all ranks of its neighbours that it shares samples and positions with."""

    def __init__(self, part: nn.Module, job: UnevenJob, rank: int, hidden: int, device: torch.device, group: Any):
        index, count = job.stage_of(rank), len(job.stages)
        strategy = job.stages[index]
        shape = (strategy.micro_batch, job.workload.seq_len // strategy.tp, hidden)
        kind = HIDDEN_TYPES[job.workload.precision]
        states = torch.empty(shape, dtype=kind, device="meta", requires_grad=True)
        super().__init__(
            part, strategy.zero, any(kind != "none" for _, kind in strategy.recompute[index]), index, count, device,
            group, input_args=states, output_args=states,
        )  # fmt: skip
        self.before = pieces(job, index, rank, index - 1) if index else []
        self.after = pieces(job, index, rank, index + 1) if index < count - 1 else []
        self.scale = job.stages[index + 1].micro_batch / strategy.micro_batch if self.after else 1.0
        self.arriving: dict[tuple[str, int], list[torch.Tensor]] = {}

    def _warmup_forward_vote(self, has_backward: bool, received_acc: torch.Tensor | None = None) -> torch.Tensor:
        """Shapes are known on every stage, so none has to be asked."""
        return torch.ones(1, dtype=torch.int32, device=self.device)

    def _warmup_backward_result(self, received_result: torch.Tensor | None = None) -> torch.Tensor:
        return torch.ones(1, dtype=torch.int32, device=self.device)

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Receives of the pieces of a micro-batch's hidden states."""
        return [] if self.is_first else self._receives("forward", fwd_chunk_id, self.before, self.args_recv_info)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Receives of the pieces of its gradients."""
        return [] if self.is_last else self._receives("backward", bwd_chunk_id, self.after, self.grad_recv_info)

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Sends of the pieces of a micro-batch's hidden states."""
        return _sends(self.after, self.fwd_cache[fwd_chunk_id][0][0].detach()) if self.after else []

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Sends of the pieces of its gradients."""
        return _sends(self.before, self.bwd_cache.pop(bwd_chunk_id)[0]) if self.before else []

    def _receives(self, way: str, chunk: int, some: list[Piece], infos: Mapping[int, Any]) -> list[dist.P2POp]:
        whole = infos[chunk][0].buffer
        self.arriving[way, chunk] = [torch.empty_like(it.of(whole.detach()).contiguous()) for it in some]
        return [
            dist.P2POp(dist.irecv, tensor, it.peer) for it, tensor in zip(some, self.arriving[way, chunk], strict=True)
        ]

    def _retrieve_recv_activations(self, fwd_chunk_id: int) -> Any:
        self._join("forward", fwd_chunk_id, self.before, self.args_recv_info, 1.0)
        return super()._retrieve_recv_activations(fwd_chunk_id)

    def _retrieve_recv_grads(self, bwd_chunk_id: int) -> Any:
        self._join("backward", bwd_chunk_id, self.after, self.grad_recv_info, self.scale)
        return super()._retrieve_recv_grads(bwd_chunk_id)

    def _join(self, way: str, chunk: int, some: list[Piece], infos: Mapping[int, Any], scale: float) -> None:
        """Lays what arrived into the buffer that torch reads."""
        whole = infos[chunk][0].buffer.detach()
        for piece, tensor in zip(some, self.arriving.pop((way, chunk)), strict=True):
            piece.of(whole).copy_(tensor.mul_(scale) if scale != 1 else tensor)


def _sends(some: list[Piece], hidden: torch.Tensor) -> list[dist.P2POp]:
    return [dist.P2POp(dist.isend, it.of(hidden).contiguous(), it.peer) for it in some]


class UnevenSchedule(PipelineSchedule):
    """A step of a pipeline whose stages have meshes of their own; ``mesh`` is this rank's stage's."""

    def __init__(
        self, job: UnevenJob, stage: int, mesh: DeviceMesh, model: nn.Module, part: nn.Module, loss_fn: Loss,
        schedule: Any,
    ):  # fmt: skip
        super().__init__(job.stages[stage], mesh, model, [part], loss_fn, schedule)
        self.last_ranks = len(job.ranks_of(len(job.stages) - 1))

    def _own_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        shape = (self.strategy.micro_batches, self.count, self.strategy.micro_batch)
        return tensor.unflatten(0, shape)[:, self.index].flatten(0, 1)

    def _mean_over_ranks(self, total: torch.Tensor) -> float:
        dist.all_reduce(total)
        return total.item() / self.last_ranks


def stage_mesh(job: UnevenJob, stage: int, device_type: str) -> DeviceMesh:
    """The mesh ``[1, dp_replicate, dp_shard, tp]`` of a stage; every rank makes those of all stages, in their order."""
    made = []
    for index, it in enumerate(job.stages):
        shape = (1, it.dp_replicate, it.dp_shard, it.tp)
        ranks = torch.tensor(job.ranks_of(index)).reshape(shape)
        made.append(DeviceMesh(device_type, ranks, mesh_dim_names=MESH_AXES))
    return made[stage]


def decoder_of(module: nn.Module, rules: Mapping[str, str] | None) -> Decoder:
    """The module taken apart. Raises ``Unsupported`` for any that stages of unequal shapes cannot run."""
    if rules:
        raise Unsupported(f"{UNEVEN} split decoders by the runtime's own rules; leave rules out")
    try:
        return find_decoder(module)
    except Unsupported as error:
        raise Unsupported(
            f"{UNEVEN} run the layers of a decoder one by one, and {error}; pin tp and zero where stages differ in "
            "them, or plan one part alone"
        ) from error


def uneven_schedule(
    job: UnevenJob, stage: int, mesh: DeviceMesh, device: torch.device, decoder: Decoder, part: nn.Module, loss_fn: Loss
) -> UnevenSchedule:
    """The step of this rank's stage."""
    own: StrategyRecord = job.stages[stage]
    one = HopStage(part, job, dist.get_rank(), decoder.config.hidden_size, device, mesh.get_group("pp"))
    return UnevenSchedule(job, stage, mesh, decoder.module, part, loss_fn, one_stage_schedule(one, own, loss_fn))
