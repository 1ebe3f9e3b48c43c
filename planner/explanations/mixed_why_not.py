"""Why not that one, of a plan over several kinds of devices: pins that hold in every stage, and parts used or not.

Beside the pins of the search (:data:`planner.mixed.asked.PINS`) there are two of parts:

    unused=NAME    the best plan of a job without that part (several joined by ``+``), on the rest by itself: it waits
                   for none of its devices
    used=NAME      the best plan that has a stage there (of several parts: on each of them); a quicker pipeline that
                   has none still bounds all that do

Verdicts are those of :mod:`planner.explanations.why_not`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.checks.check import broken_pins
from planner.checks.verify import options_of
from planner.errors import BadInput, InfeasiblePlan, SearchGaveUp
from planner.explanations.again import Progress
from planner.explanations.differences import power_pairs, spent_pairs
from planner.explanations.mixed_again import MixedQuestion, mixed_question_of, part_named
from planner.explanations.mixed_terms import fullest_classes, pairs_of, plan_seconds
from planner.explanations.why_not import SAME_FRACTION, WhyNot
from planner.mixed.asked import check_asked
from planner.mixed.inputs import legal_alone
from planner.mixed.most_layers import most_layers, without_place
from planner.mixed.plan import best_pipeline
from planner.mixed.result import MixedPlan
from planner.objectives import OBJECTIVES
from planner.options import pins_of, read_options
from planner.result import Plan
from topologies.cluster import Cluster
from topologies.mixed import MixedCluster

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cost_models.model_graph import ModelGraph


PARTS = ("used", "unused")
"""What is asked of the parts, beside pins."""


@dataclass(frozen=True, slots=True)
class MixedWhyNot(WhyNot):
    """The answer about some pins of a mixed plan. ``other`` may be a plan of one part, where that alone is left.

    ``time`` are the seconds of each plan's busiest stage by cause, ``memory`` the bytes of its fullest device;
    ``power`` and ``spent`` as of other plans. ``leanest`` has, where nothing fits, the stages that hold most layers
    together.
    """

    @property
    def proved(self) -> bool:
        """Whether no plan with the pins and parts is better than ``other``, which is the best of one search of two."""
        return self.loses_at_least >= self.loses_fraction - SAME_FRACTION

    def view(self) -> RenderableType:
        """The answer for a terminal."""
        from planner.explanations.mixed_report import mixed_why_not_view

        return mixed_why_not_view(self)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked for: pins of every stage, and parts by position."""

    pins: dict[str, int | str]
    used: tuple[int, ...]
    unused: tuple[int, ...]

    def held_by(self, plan: MixedPlan) -> bool:
        """Whether a plan has it all."""
        counts = [part.devices_used for part in plan.parts]
        there = all(counts[k] > 0 for k in self.used) and not any(counts[k] for k in self.unused)
        return there and _has_pins(plan, self.pins)


def why_not_mixed(
    plan: MixedPlan, pins: str | dict[str, int | str], *, model: ModelGraph | None = None,
    cluster: MixedCluster | str | None = None, time_limit_s: float = 60.0, progress: Progress | None = None,
) -> MixedWhyNot:  # fmt: skip
    """The best plan that holds ``pins`` (``"tp=4"``, ``"unused=dgx-a100"``) against ``plan``, or what rules it out.

    The plan's own pins hold too, but for those that ``pins`` names anew. ``model`` and ``cluster`` are needed where the
    plan was made from objects, or the cluster's file has moved.

    Raises ``BadInput`` for pins that do not exist on mixed clusters or contradict each other, for parts that there are
    not, and for inputs that are not the plan's.
    """
    question = mixed_question_of(plan, model, cluster)
    asked, own = _asked(plan, pins), options_of(plan).pins
    replaced = {n: value for n, value in own.items() if n in asked.pins and asked.pins[n] != value}
    answer = MixedWhyNot(pins_of(pins), replaced, "held", plan)
    illegal = _illegal(question, asked.pins)
    if illegal:
        return dataclasses.replace(answer, verdict="illegal", reason=illegal)
    if plan.status == "optimal" and asked.held_by(plan):
        return _against(answer, question, asked, plan, plan.bound)
    return _searched(answer, question, asked, {**own, **asked.pins}, time_limit_s, progress)


def _asked(plan: MixedPlan, pins: str | dict[str, int | str]) -> _Asked:
    words = pins_of(pins)
    if not words:
        raise BadInput("why not what? name at least one pin, such as tp=8, or a part, such as unused=NAME")
    named = read_options(pins={name: value for name, value in words.items() if name not in PARTS})
    check_asked(named)
    used, unused = (_parts_named(plan, name, words) for name in PARTS)
    if both := set(used) & set(unused):
        raise BadInput(f"{plan.parts[min(both)].name} cannot be used and unused; leave one out")
    if len(set(unused)) == len(plan.parts):
        raise BadInput("all parts are to be unused, which leaves nothing to plan on; name fewer")
    return _Asked(named.pins, used, unused)


def _parts_named(plan: MixedPlan, name: str, words: dict[str, int | str]) -> tuple[int, ...]:
    """Positions of the parts that are asked for by ``name``; none where it is not asked."""
    if name not in words:
        return ()
    parts = [one.strip() for one in str(words[name]).split("+") if one.strip()]
    if not parts:
        there = ", ".join(part.name for part in plan.parts)
        raise BadInput(f"{name}={str(words[name])[:80]!r} names no part; there are {there}")
    return tuple(part_named(plan, one) for one in parts)


def _has_pins(plan: MixedPlan, pins: dict[str, int | str]) -> bool:
    if plan.alone is not None:
        return not list(broken_pins(pins, plan.alone.strategy.strategy()))
    for stage in plan.stages:
        held = {name: getattr(stage, name) for name in ("tp", "cp", "ep", "zero")}
        if any(held[name] != value for name, value in pins.items() if name != "recompute"):
            return False
        if {kind for _, kind in stage.recompute} - {pins.get("recompute", kind) for _, kind in stage.recompute}:
            return False
    return True


def _limits(question: MixedQuestion) -> tuple[int, ...]:
    headroom = options_of(question.plan).headroom
    return tuple(int(part.memory_bytes * (1 - headroom)) for part in question.cluster.parts)


def _illegal(question: MixedQuestion, pins: dict[str, int | str]) -> str:
    """Every pin that no stage can have, nor a part alone, with its legal values."""
    from planner.search.mixed.space import MixedSpace

    each = {name: MixedSpace(question.machine, {name: it}, _limits(question)).refused_pin for name, it in pins.items()}
    alone = {name: legal_alone(question.machine, {name: it}) for name, it in pins.items()}
    return "; ".join(said for name, said in each.items() if said and not alone[name])


def _searched(
    answer: MixedWhyNot, question: MixedQuestion, asked: _Asked, pins: dict[str, int | str], time_limit_s: float,
    progress: Progress | None,
) -> MixedWhyNot:  # fmt: skip
    """The answer by planning again with the pins held."""
    if asked.used:
        return _with_parts(answer, question, asked, pins, time_limit_s, progress)
    rest = _rest(question.cluster, asked.unused)
    try:
        other = question.again(cluster=rest, pins=pins, time_limit_s=time_limit_s, progress=progress)
    except SearchGaveUp as error:
        return dataclasses.replace(answer, verdict="not found", reason=str(error))
    except InfeasiblePlan as error:
        return _ruled_out(answer, question, pins, rest, error)
    except BadInput as error:
        return dataclasses.replace(answer, verdict="ruled out", reason=str(error))
    return _against(answer, question, asked, other, other.bound)


def _rest(cluster: MixedCluster, unused: tuple[int, ...]) -> MixedCluster | Cluster:
    """The cluster without some parts; one that is left is a regular cluster."""
    parts = tuple(part for k, part in enumerate(cluster.parts) if k not in unused)
    if len(parts) == len(cluster.parts):
        return cluster
    return parts[0] if len(parts) == 1 else cluster.with_parts(parts)


def _with_parts(
    answer: MixedWhyNot, question: MixedQuestion, asked: _Asked, pins: dict[str, int | str], time_limit_s: float,
    progress: Progress | None,
) -> MixedWhyNot:  # fmt: skip
    """The best plan that has stages on some parts, or what it takes at least."""
    if asked.unused:
        raise BadInput("used and unused parts are asked for one at a time; leave one out")
    bounds = tuple(0.0 if answer.replaced else part.alone_bound for part in question.plan.parts)
    alone, alone_bound = _alone(question, asked, pins, bounds, time_limit_s / 2, progress)
    options = read_options(**{**question.options, "pins": pins, "time_limit_s": time_limit_s / 2})
    found, pipelines_bound, proved = best_pipeline(question.machine, options, bounds, question.plan.cluster_name)
    bound = min(pipelines_bound, alone_bound)
    mine = [it for it in (alone, found if found is not None and asked.held_by(found) else None) if it is not None]
    if mine:
        return _against(answer, question, asked, min(mine, key=lambda it: it.objective), bound)
    if found is None and proved and alone_bound == math.inf:
        reason = _arithmetic("no plan fits that uses it", question, pins, question.cluster)
        return dataclasses.replace(answer, verdict="ruled out", reason=reason)
    least, unit = bound / answer.chosen.objective - 1, OBJECTIVES[answer.chosen.objective_name]
    names = ", ".join(question.plan.parts[k].name for k in asked.used)
    known = "" if found is None else f"; the best pipeline found takes {found.objective:.6g} {unit} without"
    reason = f"no plan with a stage on {names} takes less than {bound:.6g} {unit} ({least:+.2%}){known}"
    return dataclasses.replace(answer, verdict="not found", reason=reason, loses_at_least=least)


def _alone(
    question: MixedQuestion, asked: _Asked, pins: dict[str, int | str], bounds: tuple[float, ...], time_limit_s: float,
    progress: Progress | None,
) -> tuple[Plan | None, float]:  # fmt: skip
    """The plan on the one part that is asked for, and what none there goes below; infinite for none.

    ``bounds`` are what is known of every part before.
    """
    if len(set(asked.used)) > 1:
        return None, math.inf
    k = asked.used[0]
    try:
        found = question.again(
            cluster=question.cluster.parts[k], pins=pins, time_limit_s=time_limit_s, progress=progress
        )
    except (InfeasiblePlan, BadInput):
        return None, math.inf
    except SearchGaveUp:
        return None, bounds[k]
    return found, found.bound


def _ruled_out(
    answer: MixedWhyNot, question: MixedQuestion, pins: dict[str, int | str], rest: MixedCluster | Cluster,
    error: InfeasiblePlan,
) -> MixedWhyNot:  # fmt: skip
    """The answer where nothing fits, with what pipelines hold at most."""
    if isinstance(rest, Cluster):
        return dataclasses.replace(
            answer, verdict="ruled out", reason=str(error), leanest=error.leanest, repairs=tuple(error.repairs)
        )
    reason = _arithmetic(str(error), question, pins, rest)
    return dataclasses.replace(
        answer, verdict="ruled out", reason=reason, leanest=_leanest(question, pins, rest),
        repairs=tuple(error.repairs),
    )  # fmt: skip


def _holds(question: MixedQuestion, pins: dict[str, int | str], rest: MixedCluster) -> tuple[Any, ...]:
    machine = MixedQuestion(question.plan, question.model, rest).machine
    headroom = options_of(question.plan).headroom
    return most_layers(machine, pins, tuple(int(part.memory_bytes * (1 - headroom)) for part in rest.parts))


def _arithmetic(said: str, question: MixedQuestion, pins: dict[str, int | str], rest: MixedCluster) -> str:
    """Why nothing fits: no place for any stage; else ``said``, with what pipelines hold at most where that is less than
    the model has."""
    if no_place := without_place(MixedQuestion(question.plan, question.model, rest).machine, pins):
        return f"no stage has a place: {no_place}"
    held, layers = _holds(question, pins, rest), question.model.layers
    total = sum(one.layers for one in held)
    if total >= layers:
        return said
    stages = ". ".join(one.text() for one in held) or "no first or no last stage fits with a layer"
    return f"{said}. Of pipelines: at most {total} of {layers} layers have room. {stages}"


def _leanest(question: MixedQuestion, pins: dict[str, int | str], rest: MixedCluster) -> dict[str, Any]:
    held = _holds(question, pins, rest)
    return {"layers": question.model.layers, "stages": [dataclasses.asdict(one) for one in held]}


def _against(
    answer: MixedWhyNot, question: MixedQuestion, asked: _Asked, other: MixedPlan | Plan, bound: float
) -> MixedWhyNot:
    """The answer with both plans term by term."""
    chosen = answer.chosen
    loses = other.objective / chosen.objective - 1
    verdict = "worse" if loses > SAME_FRACTION else "better" if loses < -SAME_FRACTION else "held"
    if verdict == "held" and not asked.held_by(chosen):
        verdict = "worse"
    left_out = ", ".join(chosen.parts[k].name for k in asked.unused)
    reason = f"a job without {left_out} waits for none of its devices and links" if left_out else ""
    rest = _rest(question.cluster, asked.unused)
    there = MixedQuestion(question.plan, question.model, rest) if isinstance(rest, MixedCluster) else question
    terms = plan_seconds(chosen, question.machine), plan_seconds(other, there.machine)
    return dataclasses.replace(
        answer, verdict=verdict, other=other, loses_fraction=loses, loses_at_least=bound / chosen.objective - 1,
        reason=reason if verdict == "better" else "",
        time=pairs_of(*terms), memory=pairs_of(fullest_classes(chosen), fullest_classes(other)),
        power=power_pairs(chosen, other), spent=spent_pairs(chosen, other),
    )  # fmt: skip
