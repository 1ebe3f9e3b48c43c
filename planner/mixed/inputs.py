"""Saved plans of either kind, and the model and the cluster that a mixed one was made for, read again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cost_models.calibration import calibrate
from cost_models.mixed import Machine
from cost_models.model_graph import ModelGraph
from planner.candidates import legal_space
from planner.checks.mixed_ways import place
from planner.errors import BadInput
from planner.mixed.result import MixedPlan
from planner.plan_text import loaded, plan_fields
from planner.result import Plan
from topologies.mixed import MixedCluster
from topologies.ready import read_any_cluster


def load_any_plan(path: str | Path) -> Plan | MixedPlan:
    """A plan from its file, of one kind of devices or of several. Raises as :meth:`Plan.load`."""
    return loaded(path, _any_plan)


def _any_plan(text: str) -> Plan | MixedPlan:
    return MixedPlan.from_json(text) if plan_fields(text).get("kind") == "mixed" else Plan.from_json(text)


def mixed_inputs_of(
    saved: MixedPlan, cluster: str | Path | MixedCluster | None = None, model: ModelGraph | None = None
) -> tuple[ModelGraph, MixedCluster]:
    """The model and cluster of a plan; ``cluster`` says where its file is now, or is it itself.

    Raises ``BadInput`` when they cannot be had any more; whether they are the same is for ``verify`` to say.
    """
    from planner.explanations.mine import model_of

    machine = read_any_cluster(cluster or saved.cluster_name)
    if not isinstance(machine, MixedCluster):
        raise BadInput(
            f"{machine.name!r} is a cluster of one kind of host, and the plan was made for {saved.cluster_name!r}; "
            "name that, or where its file is now"
        )
    return model or model_of(saved.model), machine


def same_mixed_inputs_of(
    saved: MixedPlan, cluster: str | Path | MixedCluster | None = None, model: ModelGraph | None = None
) -> tuple[ModelGraph, MixedCluster]:
    """As :func:`mixed_inputs_of`, the very ones that the plan was made for, the calibration included.

    Raises ``BadInput`` naming what has another digest now, and what of the plan has no place on the cluster.
    """
    graph, machine = mixed_inputs_of(saved, cluster, model)
    if wrong := not_the_plans(saved, graph, machine):
        raise BadInput("; ".join(wrong))
    return graph, machine


def not_the_plans(saved: MixedPlan, model: ModelGraph, cluster: MixedCluster) -> list[str]:
    """Every input that is not the plan's; where all are, every stage that has no place on them."""
    wrong = [
        f"the {what} has digest {found}, but the plan was made for {stated}; plan again"
        for what, (stated, found) in digests(saved, model, cluster).items() if stated != found
    ]  # fmt: skip
    wrong += saved.model.differs_from(model)
    stated = [(it.name, it.accelerator, it.host, it.hosts, it.devices) for it in saved.parts]
    right = [(it.name, it.accelerator.name, it.host.name, it.hosts, it.devices) for it in cluster.parts]
    if stated != right:
        wrong.append(f"parts are said to be {stated}, but are {right}; plan again")
    return wrong or list(_without_place(saved, cluster))


def _without_place(saved: MixedPlan, cluster: MixedCluster) -> Iterator[str]:
    for s, stage in enumerate(saved.stages):
        part = cluster.parts[stage.part]
        if place(part, stage.tp, stage.cp, stage.dp, stage.ep) is None:
            degrees = f"tp {stage.tp} x cp {stage.cp} x dp {stage.dp}, ep {stage.ep}"
            yield f"stage {s}: {degrees} has no place on {part.name!r}"
    alone = saved.alone
    if alone is None:
        return
    mine = part_alone(alone, cluster)
    if mine is None:
        yield "the plan on one part alone is of none of the parts"
        return
    for what in ("devices", "hosts"):
        used, count = [getattr(part, f"{what}_used") for part in saved.parts], getattr(alone.cluster, f"{what}_used")
        right = [count * (k == mine) for k in range(len(used))]
        if used != right:
            yield f"parts are said to use {used} {what}, but use {right}"


def part_alone(alone: Plan, cluster: MixedCluster) -> int | None:
    """The position of the part that a plan on one part alone runs on, of parts alike the first; ``None`` for others."""
    return next((k for k, part in enumerate(cluster.parts) if part.digest == alone.cluster.digest), None)


def digests(saved: MixedPlan, model: ModelGraph, cluster: MixedCluster) -> dict[str, tuple[str, str]]:
    """What the plan says of its inputs, and what these are."""
    fits = "+".join(calibrate(part, saved.workload.stack).digest for part in cluster.parts)
    return {
        f"model {saved.model.name!r}": (saved.model.digest, model.digest),
        "proof's model": (saved.proof.model_digest, model.digest),
        f"cluster {saved.cluster_name!r}": (saved.cluster_digest, cluster.digest),
        "calibration": (saved.proof.cost_model_digest, fits),
    }


def legal_alone(machine: Machine, pins: dict[str, int | str]) -> bool:
    """Whether plans on some part alone, which may have tp and cp across its scale-up domains, can have the pins."""
    for part in machine.cluster.parts:
        with suppress(BadInput):
            legal_space(machine.model, part, machine.workload, pins)
            return True
    return False
