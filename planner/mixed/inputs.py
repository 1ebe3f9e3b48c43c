"""Saved plans of either kind, and the model and the cluster that a mixed one was made for, read again."""

from __future__ import annotations

from pathlib import Path

from cost_models.calibration import calibrate
from cost_models.model_graph import ModelGraph
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

    Raises ``BadInput`` naming what has another digest now.
    """
    graph, machine = mixed_inputs_of(saved, cluster, model)
    for what, (stated, found) in digests(saved, graph, machine).items():
        if stated != found:
            raise BadInput(f"the {what} has digest {found}, but the plan was made for {stated}; plan again")
    return graph, machine


def digests(saved: MixedPlan, model: ModelGraph, cluster: MixedCluster) -> dict[str, tuple[str, str]]:
    """What the plan says of its inputs, and what these are."""
    fits = "+".join(calibrate(part, saved.workload.stack).digest for part in cluster.parts)
    return {
        f"model {saved.model.name!r}": (saved.model.digest, model.digest),
        "proof's model": (saved.proof.model_digest, model.digest),
        f"cluster {saved.cluster_name!r}": (saved.cluster_digest, cluster.digest),
        "calibration": (saved.proof.cost_model_digest, fits),
    }
