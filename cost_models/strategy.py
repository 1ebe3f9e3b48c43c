"""A strategy: parallel degrees, stages, what each layer keeps or recomputes, schedule and placement.

Two meshes share the ranks of a stage. Dense layers see ``dp_replicate x dp_shard x cp x tp``; experts
see ``edp x ep x etp``, with the same product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

RECOMPUTE = ("none", "selective", "full")
Recompute = Literal["none", "selective", "full"]
PipelineSchedule = Literal[
    "1f1b", "interleaved", "zb-h1", "zbv", "v-half", "v-min", "eager-1f1b", "dualpipe", "dualpipev"
]
MIRRORED: PipelineSchedule = "dualpipe"
"""The schedule whose stages are on two devices each."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension of parallelism: what it splits and which mesh it belongs to."""

    name: str
    splits: str
    mesh: Literal["dense", "expert", "both"]


AXES = (
    Axis("tp", "heads and feed-forward columns inside a layer, the sequence between them", "dense"),
    Axis("cp", "the sequence inside attention", "dense"),
    Axis("dp_shard", "the batch, and the states of weights, gradients or optimiser", "dense"),
    Axis("dp_replicate", "the batch", "dense"),
    Axis("pp", "the layers", "both"),
    Axis("etp", "columns inside an expert", "expert"),
    Axis("ep", "the experts", "expert"),
    Axis("edp", "the batch, for experts", "expert"),
)
"""Innermost first: neighbours in this order are neighbours on the machine where the placement leaves a choice."""

DENSE_ORDER = ("tp", "cp", "dp_shard", "dp_replicate", "pp")
EXPERT_ORDER = ("etp", "ep", "edp", "pp")


@dataclass(frozen=True, slots=True)
class ParallelDegrees:
    """How many ways each axis splits. ``edp`` follows from the others.

    ``vocab_tp`` ranks of tp and cp divide embedding and head (:mod:`cost_models.vocabulary`); 0 is as many as tp.
    """

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    pp: int = 1
    ep: int = 1
    etp: int = 1
    vocab_tp: int = 0

    @property
    def dp(self) -> int:
        """Copies of the batch dimension: ``dp_replicate * dp_shard``."""
        return self.dp_replicate * self.dp_shard

    @property
    def stage_size(self) -> int:
        """Devices that hold one pipeline stage: ``dp * cp * tp``, also ``edp * ep * etp``."""
        return self.dp * self.cp * self.tp

    @property
    def edp(self) -> int:
        """Copies of each expert: ``dp * cp * tp / (ep * etp)``."""
        return self.stage_size // (self.ep * self.etp)

    @property
    def world_size(self) -> int:
        """Devices in all: ``dp_replicate * dp_shard * cp * tp * pp``."""
        return self.stage_size * self.pp


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """What one run of layers does: what it recomputes."""

    recompute: Recompute = "none"


@dataclass(frozen=True, slots=True)
class LayerRun:
    """``count`` neighbouring layers that make the same choice."""

    count: int
    choice: LayerChoice = LayerChoice()


@dataclass(frozen=True, slots=True)
class Stage:
    """One virtual pipeline stage: its runs of layers, in model order, and the fraction of the full clock it runs at.

    The embedding belongs to the first stage and the head with the loss to the last. Virtual stages of one device
    have one clock. Where the states that the strategy offloads leave whole, only the first ``offloaded`` layers let the
    last class of them go, ``None`` being all; embedding and head always do. Where activations leave whole, only those
    of the first ``activations_offloaded`` layers do, likewise.
    """

    runs: tuple[LayerRun, ...]
    clock: float = 1.0
    offloaded: int | None = None
    activations_offloaded: int | None = None

    @property
    def leaving(self) -> tuple[int | None, int | None]:
        """First layers that the last class of states leaves, and those that activations leave."""
        return self.offloaded, self.activations_offloaded

    @property
    def layers(self) -> int:
        """Layers in this stage."""
        return sum(run.count for run in self.runs)

    def recomputed(self, kind: Recompute) -> int:
        """Layers in this stage that recompute in that way."""
        return sum(run.count for run in self.runs if run.choice.recompute == kind)


@dataclass(frozen=True, slots=True)
class TrainingSchedule:
    """How micro-batches move through the stages: ``virtual_stages`` stages a device, ``micro_batches`` a step.

    ``in_flight`` is how many micro-batches the first device of an eager schedule holds; 0 for the others.
    """

    kind: PipelineSchedule = "1f1b"
    virtual_stages: int = 1
    micro_batch: int = 1
    micro_batches: int = 1
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class ServingSchedule:
    """How requests are batched when a model is served."""

    max_batch: int = 1
    chunked_prefill_tokens: int | None = None


Placement = dict[str, tuple[int, ...]]
"""For each axis, its factor on each network level, innermost first; the product over levels is the degree."""


OFFLOADED = ("optimizer", "gradients", "weights", "activations", "checkpoints")
"""Tensor classes that may live outside device memory: states in the order in which they leave it, then what backward
needs, be it all that layers save or only the inputs of layers that recompute in full."""


@dataclass(frozen=True, slots=True)
class Offload:
    """The ``share`` of a tensor class that lives in a memory tier of that name, of every layer that it leaves."""

    tensors: str
    tier: str
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Strategy:
    """Everything the search decides.

    ``stages`` lists the ``pp * virtual_stages`` virtual stages in model order; device group ``s`` of ``pp``
    holds stages ``s, s + pp, s + 2 pp, ...``, under a V-shaped schedule ``s`` and ``2 pp - 1 - s``, under DualPipe,
    whose stages have two copies, ``s`` and ``pp - 1 - s``. ``zero`` is 0
    (replicated) to 3 (weights sharded too), over groups of ``dp_shard``. ``offloads`` say what lives outside device
    memory. ``hosts`` names the host of every domain in the order of ranks, by its position among the usable ones;
    nothing where hosts are alike.
    """

    degrees: ParallelDegrees
    zero: int
    schedule: TrainingSchedule | ServingSchedule
    stages: tuple[Stage, ...]
    placement: Placement = field(default_factory=dict)
    offloads: tuple[Offload, ...] = ()
    hosts: tuple[int, ...] = ()

    @property
    def layers_per_stage(self) -> tuple[int, ...]:
        """Layers of each virtual stage, in model order."""
        return tuple(stage.layers for stage in self.stages)

    @property
    def clocks(self) -> tuple[float, ...]:
        """The clock of each pipeline rank's devices, as a fraction of the full one."""
        return tuple(stage.clock for stage in self.stages[: self.degrees.pp])

    @property
    def recomputes_whole_layers(self) -> bool:
        """Whether most layers are recomputed whole."""
        return 2 * sum(stage.recomputed("full") for stage in self.stages) > sum(self.layers_per_stage)

    @property
    def layers_may_keep_states(self) -> bool:
        """Whether single layers may keep the last class of states that leaves: all that leave are whole."""
        share = [sum(it.share for it in self.offloads if it.tensors == name) for name in OFFLOADED[:3]]
        return share in ([1, 0, 0], [1, 1, 0], [1, 1, 1])

    @property
    def layers_may_keep_activations(self) -> bool:
        """Whether single layers may keep their activations: all of these leave."""
        return sum(it.share for it in self.offloads if it.tensors == "activations") == 1


def level_ranks(placement: Placement, order: tuple[str, ...], level: int) -> int:
    """Members that the axes of ``order`` use together at one level: the product of their factors there."""
    product = 1
    for axis in order:
        product *= placement[axis][level]
    return product


def uniform_stages(
    layers: int, virtual_stages: int, recompute: Recompute = "none", *, longer_last: bool = False
) -> tuple[Stage, ...]:
    """``layers`` cut into ``virtual_stages`` as evenly as can be, longer ones in the middle or last."""
    base, spare = divmod(layers, virtual_stages)
    middle = sorted(range(virtual_stages), key=lambda c: (abs(2 * c - virtual_stages + 1), c))
    longer = set(range(virtual_stages)[virtual_stages - spare :] if longer_last else middle[:spare])
    return tuple(Stage((LayerRun(base + (c in longer), LayerChoice(recompute)),)) for c in range(virtual_stages))


def filled_stages(layers: int, virtual_stages: int, recompute: Recompute = "none") -> tuple[Stage, ...]:
    """``ceil(layers / virtual_stages)`` in every stage and what is left in the last; even ones where it would be empty.

    Source: deepspeedai/DeepSpeed deepspeed/runtime/utils.py@2151c787, partition_balanced over layers of one weight.
    """
    full = -(-layers // virtual_stages)
    last = layers - full * (virtual_stages - 1)
    if last < 1:
        return uniform_stages(layers, virtual_stages, recompute)
    counts = [*[full] * (virtual_stages - 1), last]
    return tuple(Stage((LayerRun(count, LayerChoice(recompute)),)) for count in counts)


def stages_by_cost(costs: Sequence[float], virtual_stages: int, recompute: Recompute = "none") -> tuple[Stage, ...]:
    """Layers of these ``costs``, the last of which is the head's, each in the first stage whose part is not yet full.

        stage s takes layers until its cumulative cost is above (s + 1) / virtual_stages of the whole

    Even stages where a stage would have nothing. Source: huggingface/nanotron src/nanotron/models/base.py@67716392.
    """
    whole, passed, stage = sum(costs), 0.0, 0
    blocks = [0] * virtual_stages
    for cost in costs:
        blocks[stage] += 1
        passed += cost
        stage += passed > whole * (stage + 1) / virtual_stages
    if not all(blocks):
        return uniform_stages(len(costs) - 1, virtual_stages, recompute)
    counts = [*blocks[:-1], blocks[-1] - 1]
    return tuple(Stage((LayerRun(count, LayerChoice(recompute)),)) for count in counts)


def full_stages(
    layers: int, virtual_stages: int, recompute: Recompute = "none", *, behind: int = 0
) -> tuple[Stage, ...]:
    """``layers`` in stages of ``ceil(layers / virtual_stages)``, fewer last, then first, and ``behind`` more last.

    The ends are shorter as they hold embedding, head and loss; where more is short than they hold, stages are even.
    """
    full = -(-layers // virtual_stages)
    short = full * virtual_stages - layers
    if short > 2 * full - 1 or virtual_stages == 1:
        return uniform_stages(layers + behind, virtual_stages, recompute)
    last = max(full - short, 0)
    counts = [full - (short - (full - last)), *[full] * (virtual_stages - 2), last + behind]
    return tuple(Stage((LayerRun(count, LayerChoice(recompute)),)) for count in counts)
