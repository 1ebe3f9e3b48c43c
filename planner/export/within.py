"""Under which pins a plan comes out that a target can express: several sets for each, tried one after the other.

What pins cannot say (placements, tp beyond the key-value heads) is left to the exporter, which looks at every plan.
"""

from __future__ import annotations

import itertools

from cost_models.model_graph import ModelGraph
from cost_models.workload import Training
from planner.export.megatron import HYBRIDS
from planner.pins import Pins

NO_PIPELINE: Pins = {"pp": 1}
NO_EXPERT_MESH: Pins = {"ep": 1, "etp": 1}
EITHER: tuple[Pins, ...] = ({"recompute": "none"}, {"recompute": "full"})


def pins_within(target: str, model: ModelGraph, workload: Training) -> list[Pins]:
    """Sets of pins under which the target can express a plan; one empty set where it can express any."""
    ways = _WITHIN[target](model, workload) if target in _WITHIN else [{}]
    return [one for one in ways if one is not None]


def pins_within_all(targets: tuple[str, ...], model: ModelGraph, workload: Training, pins: Pins) -> list[Pins]:
    """Sets of pins, ``pins`` in each, that are in one set of every target."""
    found: list[Pins] = []
    for ways in itertools.product(*(pins_within(name, model, workload) for name in targets)):
        together = _merged([pins, *ways])
        if together is not None and together not in found:
            found.append(together)
    return found


def _merged(parts: list[Pins]) -> Pins | None:
    """All pins together; ``None`` where two differ."""
    merged: Pins = {}
    for name, value in (item for part in parts for item in part.items()):
        if merged.setdefault(name, value) != value:
            return None
    return merged


def _times(*factors: list[Pins] | tuple[Pins, ...]) -> list[Pins]:
    """Every combination of one set from each factor."""
    merged = (_merged(list(ways)) for ways in itertools.product(*factors))
    return [one for one in merged if one is not None]


def _whole_experts(model: ModelGraph) -> Pins:
    return {"dp_replicate": 1} if model.experts else {}


def _megatron(model: ModelGraph, workload: Training) -> list[Pins]:
    hybrid = (model.config or {}).get("model_type") in HYBRIDS
    return _times([_whole_experts(model) | (NO_PIPELINE if hybrid else {})], EITHER)


def _torchtitan(model: ModelGraph, workload: Training) -> list[Pins]:
    """Under a pipeline ZeRO-1, without one ZeRO-2 or 3: ``zero=1`` finds the pipelines, or a best that is refused."""
    states: list[Pins] = [{"zero": 3, **NO_PIPELINE}, {"zero": 2, **NO_PIPELINE}, {"zero": 0, "cp": 1}]
    states += [] if model.tied else [{"zero": 1, "virtual_stages": v} for v in (1, 2, 3)]
    base = _whole_experts(model) | ({"etp": 1} if model.experts else {}) | (NO_PIPELINE if model.tied else {})
    return _times([base], states, EITHER)


def _deepspeed(model: ModelGraph, workload: Training) -> list[Pins]:
    states: list[Pins] = [{"zero": zero, "dp_replicate": 1} for zero in (1, 2, 3)]
    states += [{"zero": 0}] if workload.precision == "fp32" else []
    return _times([NO_PIPELINE | {"tp": 1, "cp": 1, "etp": 1, "recompute": "none"}], states)


def _accelerate(model: ModelGraph, workload: Training) -> list[Pins]:
    base = NO_PIPELINE | NO_EXPERT_MESH | {"tp": 1}
    sharded = _times([base | _whole_experts(model)], [{"zero": 2}, {"zero": 3}], EITHER)
    return [*sharded, base | {"zero": 0, "cp": 1, "recompute": "none"}]


def _lightning(model: ModelGraph, workload: Training) -> list[Pins]:
    base = NO_PIPELINE | NO_EXPERT_MESH | {"tp": 1, "cp": 1}
    states: list[Pins] = [{"zero": 2, "dp_replicate": 1}, {"zero": 3}]
    return [*_times([base | _whole_experts(model)], states, EITHER), base | {"zero": 0, "recompute": "none"}]


def _maxtext(model: ModelGraph, workload: Training) -> list[Pins]:
    base = NO_PIPELINE | _whole_experts(model) | ({"tp": 1, "etp": 1} if model.experts else {})
    kinds: list[Pins] = [{"recompute": "full"}, *([] if model.experts else [{"recompute": "selective"}])]
    return _times([base], [{"zero": 3}, {"zero": 0, "cp": 1, "ep": 1}], kinds)


_WITHIN = {
    "megatron": _megatron,
    "megatron-bridge": _megatron,
    "torchtitan": _torchtitan,
    "deepspeed": _deepspeed,
    "accelerate": _accelerate,
    "lightning": _lightning,
    "maxtext": _maxtext,
}
