"""A saved plan's question asked again: the same work under the same options, but for what is said to be different."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cost_models.model_graph import ModelGraph
from planner.checks.verify import options_of
from planner.errors import BadInput
from planner.mixed.result import MixedPlan
from planner.result import Plan, ProvedStage
from topologies.cluster import Cluster
from topologies.mixed import MixedCluster

Progress = Callable[[str, float, float], None]
SPELLED = {"power_cap_w": "power_cap"}
"""Options whose argument of ``plan()`` has another name."""


def last_question(options: dict[str, Any], stages: list[ProvedStage]) -> dict[str, Any]:
    """A plan's options; of several objectives the last one's question, the others' slack as limits on a step.

    The plan's objective and its bound are of that question, so an answer to it can be set against them. Raises
    ``BadInput`` for a stage that leaves the next ones no limit.
    """
    if not stages:
        return options
    limits = dict(options.get("limits", {}))
    for k, stage in enumerate(stages[:-1]):
        if stage.at_most is None:
            raise BadInput(f"stage {k + 1} of the proof has no at_most, which the objectives after it keep; plan again")
        name = f"step-{stage.minimises}"
        limits[name] = min(stage.at_most, limits.get(name, math.inf))
    return {**options, "objective": stages[-1].objective, "slack": None, "limits": limits}


class AskedAgain:
    """What a plan answered, ``plan`` itself, ``model`` and ``cluster``; asked again with something different."""

    __slots__ = ()
    plan: Plan | MixedPlan
    model: ModelGraph
    cluster: Cluster | MixedCluster

    @property
    def options(self) -> dict[str, Any]:
        """The plan's options, of several objectives those of the last one (:func:`last_question`)."""
        return last_question(self.plan.options, self.plan.proof.stages)

    @property
    def limits(self) -> dict[str, float]:
        """What plans are limited to beside memory, by name."""
        return self.options.get("limits", {})

    def again(
        self, *, cluster: Cluster | MixedCluster | None = None, progress: Progress | None = None, **options: Any
    ) -> Any:
        """The plan of the same work with another cluster or other options, such as a ``start``.

        Raises what ``plan()`` raises.
        """
        from planner.api import plan

        work, said = self.plan.workload, {**self.options, "alternatives": 0, **options}
        asked = {SPELLED.get(name, name): value for name, value in said.items()}
        if progress is not None:
            asked["progress"] = progress
        return plan(
            self.model, self.cluster if cluster is None else cluster, seq_len=work.seq_len,
            global_batch=work.global_batch, precision=work.precision, optimizer=work.optimizer, **asked,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Question(AskedAgain):
    """What a plan on one kind of device answered: the model and the machine it was made for, the plan itself."""

    plan: Plan
    model: ModelGraph
    cluster: Cluster


def question_of(plan: Plan, model: ModelGraph | None = None, cluster: Cluster | str | None = None) -> Question:
    """The question that ``plan`` answered; ``model`` and ``cluster`` where the plan cannot tell them itself.

    Raises ``BadInput`` for a plan that was only estimated, for options that there are not, and when model, cluster or
    calibration are not (any more) those that it was made with: what was found then cannot be compared with what is
    found now.
    """
    from planner.explanations.mine import same_inputs_of

    if plan.status == "estimate":
        raise BadInput("a plan that was only estimated chose nothing that could be explained; plan() first")
    options_of(plan)
    return Question(plan, *same_inputs_of(plan, cluster, model))
