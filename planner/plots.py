"""Pictures of a plan: what fills the memory of each pipeline rank, when each rank works, which device holds what.

Each picture is drawn from plain data that its ``_data`` method returns. Memory stands in the plan. A plan does not
store its schedule, so the timeline prices the strategy again, from the model and the cluster that the plan names:

    duration of every forward, backward and tail    :func:`cost_models.estimate.evaluate`
    when each of them ends                          :func:`cost_models.pipeline.ends`
    idle of a rank = (longest path of the schedule - the rank's own work) / step
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import calibrate
from cost_models.chain import Chain
from cost_models.estimate import Evaluation, busy_ticks, evaluate
from cost_models.model_graph import ModelGraph
from cost_models.pipeline import ends
from cost_models.placed import strategy_chain
from cost_models.ticks import Ticks
from planner.errors import BadInput, PlannerError, Unsupported
from planner.read_model import preset_names, read_config, read_model
from planner.report import schedule_text
from planner.result import Plan
from topologies.cluster import Cluster

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The order of the Ultra-Scale Playbook for what a training step keeps, then what comes on top of it.
CLASSES = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "workspace", "reserve")
# Okabe and Ito's palette, which readers with any colour vision can tell apart, then two greys.
CLASS_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#8C8C8C", "#D0D0D0")
LIMIT_COLOUR = "#B00020"
# Red, green and blue of a rank's first and last virtual stage.
PASS_COLOURS = {
    "forward": ((0.62, 0.79, 0.91), (0.26, 0.52, 0.76)),
    "backward": ((0.99, 0.80, 0.55), (0.93, 0.53, 0.20)),
    "weight gradients": ((0.72, 0.87, 0.70), (0.30, 0.62, 0.32)),
}
WAIT_STYLES = {
    "tail": {"facecolors": "#C8C8C8", "edgecolors": "#505050", "hatch": "////"},
    "power cap": {"facecolors": "#F4F4F4", "edgecolors": "#A0A0A0", "hatch": "...."},
}
# Up to so many forwards a rank, a whole step is readable; beyond, its beginning is shown.
READABLE_FORWARDS = 32
NARROWEST_NUMBER = 0.22  # inches that a two-digit number needs
RELATIVE = 1e-9


@dataclass(frozen=True)
class Plots:
    """Pictures of one plan, as matplotlib Axes; needs ``meshwright[plots]``. Their data needs nothing."""

    plan: Plan

    def memory_data(self) -> list[dict[str, Any]]:
        """A dict for each pipeline rank: ``rank``, ``layers``, bytes by class, ``need_bytes``, ``limit_bytes``."""
        names, layers, strategy = _class_names(self.plan), self.plan.strategy.layers_per_stage, self.plan.strategy
        return [
            {
                "rank": it.stage,
                "layers": sum(layers[c] for c in strategy.stages_of(it.stage)),
                **{name: it.classes.get(name, 0.0) for name in names},
                "need_bytes": it.need_bytes,
                "limit_bytes": it.limit_bytes,
            }
            for it in self.plan.memory
        ]

    def memory(self, ax: Axes | None = None) -> Axes:
        """One stacked bar for each pipeline rank, GB on each of its devices, under the limit of the plan."""
        rows = self.memory_data()
        ax = new_axes(max(6.4, 3.6 + 0.75 * len(rows)), 4.4) if ax is None else ax
        _draw_classes(ax, rows, [name for name in _class_names(self.plan) if any(row[name] for row in rows)])
        _draw_limit(ax, rows, self.plan.options.get("headroom", 0.0))
        _label_bars(ax, rows)
        ax.set_title(f"{self.plan.model.name} on {self.plan.cluster.name}: memory of each device", loc="left")
        ax.legend(*_top_down(ax), loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
        return ax

    def cluster(self, ax: Axes | None = None) -> Axes:
        """The cluster with the plan laid on it: hosts, the stage and coordinates of each device, tiers, idle hosts.

        Hosts that differ in their copies of the batch alone are drawn once (:mod:`planner.clusters.picture`).
        """
        from planner.clusters.plot import draw_cluster

        return draw_cluster(self.plan, ax)

    def timeline_data(self, micro_batches: int | None = None) -> list[dict[str, Any]]:
        """A dict for each piece of work that :meth:`timeline` shows, by rank and start.

        ``rank``, ``pass`` (``"forward"``, ``"backward"``, ``"weight gradients"`` where the schedule splits them off,
        ``"tail"``, and ``"power cap"`` where the step waits to stay under it), ``virtual_stage`` and ``micro_batch``
        (``None`` for the last two passes), ``start_s`` and ``end_s``. ``micro_batches`` is as in :meth:`timeline`.
        """
        step = _step(self.plan)
        return step.work(step.shown(micro_batches))

    def timeline(self, ax: Axes | None = None, micro_batches: int | None = None) -> Axes:
        """When each pipeline rank works: a row for each, forwards and backwards coloured, waiting left blank.

        ``micro_batches`` shows the step until that many have been through; ``None`` the whole of a short step and
        the beginning of a long one. A backward holds its recomputation. The tail is reducing gradients, updating
        and gathering weights, as far as they are exposed. The percentages are of the whole step.

        Raises ``Unsupported`` when model or cluster cannot be read again from the plan, ``BadInput`` when they
        are no longer those that were planned.
        """
        step = _step(self.plan)
        shown = step.shown(micro_batches)
        ax = new_axes(11.0, 1.9 + 0.45 * step.chain.pp) if ax is None else ax
        until_s = step.until_s(shown)
        ax.set_xlim(0, until_s / _time_unit(until_s)[1])
        _draw_work(ax, step.work(shown), _time_unit(until_s)[1], step.chain)
        _label_ranks(ax, step)
        ax.set_xlabel(f"time [{_time_unit(until_s)[0]}]")
        ax.set_title(_timeline_title(self.plan, step, shown), loc="left", fontsize=10)
        return ax


@dataclass(frozen=True)
class _Step:
    """A plan's step, priced again. ``end_s`` is ``[passes, virtual stages, micro-batches]``, forwards first.

    ``took_s`` likewise is how long each piece lasted.
    """

    chain: Chain
    priced: Evaluation
    tick_s: float
    end_s: NDArray[np.float64]
    took_s: NDArray[np.float64]
    step_s: float

    @property
    def schedule_s(self) -> float:
        """Seconds of the schedule, without waiting for a power cap."""
        return self.priced.step * self.tick_s

    @property
    def idle_s(self) -> NDArray[np.float64]:
        """Seconds that each pipeline rank waits for others, ``[pp]``."""
        return (self.priced.step - busy_ticks(self.chain.schedule, self.priced)) * self.tick_s

    def shown(self, micro_batches: int | None) -> int:
        """How many micro-batches to show: what was asked for, else all that are readable."""
        whole = self.chain.micro_batches
        if micro_batches is None:
            return whole if whole * self.chain.virtual <= READABLE_FORWARDS else min(whole, max(8, self.chain.pp + 4))
        if isinstance(micro_batches, bool) or not isinstance(micro_batches, int) or micro_batches < 1:
            raise BadInput(f"micro_batches={micro_batches!r} must be a whole number from 1; this plan has {whole}")
        return min(whole, micro_batches)

    def until_s(self, shown: int) -> float:
        """Seconds until ``shown`` micro-batches have been through; the step where these are all."""
        return self.step_s if shown == self.chain.micro_batches else float(self.end_s[1:, :, :shown].max())

    def work(self, shown: int) -> list[dict[str, Any]]:
        """Everything that begins before :meth:`until_s`, by rank and start."""
        until_s = self.until_s(shown)
        pieces = [it for it in (*self._passes(until_s), *self._tails()) if it["start_s"] < until_s]
        return sorted(pieces, key=lambda it: (it["rank"], it["start_s"]))

    def _passes(self, until_s: float) -> Iterator[dict[str, Any]]:
        schedule = self.chain.schedule
        for k, name in enumerate(list(PASS_COLOURS)[: len(self.end_s)]):
            start_s = self.end_s[k] - self.took_s[k]
            for c, i in np.argwhere(start_s < until_s).tolist():
                for rank in {schedule.devices[c], schedule.pp - 1 - c} if schedule.mirrored else {schedule.devices[c]}:
                    yield piece(rank, name, float(start_s[c, i]), float(self.end_s[k, c, i]), c, i)

    def _tails(self) -> Iterator[dict[str, Any]]:
        for rank, ticks in enumerate(self.priced.tail.tolist()):
            last_s = float(self.end_s[:, self.chain.schedule.stages_of(rank)].max())
            if ticks:
                yield piece(rank, "tail", last_s, last_s + ticks * self.tick_s)
            if self.step_s > self.schedule_s * (1 + RELATIVE):
                yield piece(rank, "power cap", self.schedule_s, self.step_s)


def piece(
    rank: int, name: str, start_s: float, end_s: float, virtual_stage: int | None = None, micro_batch: int | None = None
) -> dict[str, Any]:
    """One piece of work of :meth:`Plots.timeline_data`."""
    return {
        "rank": rank, "pass": name, "virtual_stage": virtual_stage, "micro_batch": micro_batch,
        "start_s": start_s, "end_s": end_s,
    }  # fmt: skip


def _step(plan: Plan) -> _Step:
    """The plan's step priced again. Raises ``BadInput`` when it does not come to what the plan says."""
    model = _model(plan)
    cluster = _cluster(plan, model)
    ticks, strategy = Ticks.of(model, cluster, plan.workload), plan.strategy.strategy()
    chain = strategy_chain(model, cluster, plan.workload, strategy, calibrate(cluster, plan.workload.stack), ticks)
    priced = evaluate(chain, chain.runs(strategy.stages), strategy.clocks)
    graph, work = chain.schedule.graph(), (priced.forward, priced.backward)
    split = [one[None] for one in (priced.weights, *(priced.hidden or ())) if one is not None]
    end = ends(graph, *(one[None] for one in work), np.array([chain.hop]), *split)[:-1, 0]
    shape, took = (graph.passes, graph.chunks, graph.micro_batches), np.empty_like(end)
    took[graph.node] = _kinds_of_work(priced)[graph.kinds]
    end_s, took_s = (ticks_of.reshape(shape) * ticks.second for ticks_of in (end, took))
    step = _Step(chain, priced, ticks.second, end_s, took_s, plan.step_s)
    waits_s = sum(term.seconds for term in plan.time if term.name == "power cap")
    if not np.isclose(step.schedule_s + waits_s, plan.step_s, rtol=RELATIVE, atol=0.0):
        raise BadInput(
            f"the plan says its step takes {plan.step_s:.9g} s, but its strategy comes to "
            f"{step.schedule_s + waits_s:.9g} s; plan again"
        )
    return step


def _kinds_of_work(priced: Evaluation) -> NDArray[np.int64]:
    """Ticks of every kind of work, as :func:`cost_models.pipeline.ends` numbers them."""
    forward, backward, weights = priced.forward, priced.backward, priced.weights
    work = [forward, backward] if weights is None else [forward, backward - weights, weights]
    beside = [] if priced.hidden is None else [work[0] - priced.hidden[0], work[1] - priced.hidden[1]]
    return np.concatenate([*work, *beside])


def _model(plan: Plan) -> ModelGraph:
    """The model that was planned. Raises ``Unsupported`` when the plan has no description of it."""
    record = plan.model
    if record.config is None and record.name not in preset_names():
        raise Unsupported(
            f"the timeline prices the plan again, but the plan has no config of its model {record.name!r}, which was "
            "given as a graph; plan from a config.json or a preset to draw it"
        )
    model = read_model(record.name) if record.config is None else read_config(record.config, record.name)
    _same_digest(f"model {record.name!r}", record.digest, model.digest)
    return model


def _cluster(plan: Plan, model: ModelGraph) -> Cluster:
    """The cluster as the plan was searched on it. Raises ``Unsupported`` when its ``source`` cannot be read here."""
    from planner.explanations.mine import inputs_of

    source = plan.cluster.source
    try:
        _, cluster = inputs_of(plan, model=model)
    except PlannerError as error:
        raise Unsupported(
            f"the timeline prices the plan again, but its cluster {source[:80]!r} cannot be read here: "
            f"{str(error)[:200]}; plan from a cluster's name or file to draw it, where that file can be read"
        ) from error
    _same_digest(f"cluster {source!r}", plan.cluster.digest, cluster.digest)
    _same_digest("cost model", plan.proof.cost_model_digest, calibrate(cluster, plan.workload.stack).digest)
    return cluster


def _same_digest(what: str, planned: str, found: str) -> None:
    if planned != found:
        raise BadInput(f"the {what} has changed since it was planned: digest {planned}, now {found}; plan again")


def _class_names(plan: Plan) -> list[str]:
    """Every class of memory in the plan, known ones first in their order."""
    others = [name for it in plan.memory for name in it.classes if name not in CLASSES]
    return [*CLASSES, *dict.fromkeys(others)]


def new_axes(width: float, height: float) -> Axes:
    """Axes of a new figure, in inches. Raises ``Unsupported`` without matplotlib."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise Unsupported('plots need matplotlib; run: pip install "meshwright[plots]"') from error
    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def _draw_classes(ax: Axes, rows: list[dict[str, Any]], names: list[str]) -> None:
    colours = dict(zip(CLASSES, CLASS_COLOURS, strict=True))
    ranks, below = [row["rank"] for row in rows], np.zeros(len(rows))
    for name in names:
        sizes = np.array([row[name] for row in rows]) / 1e9
        style = {"color": colours.get(name, "#404040"), "edgecolor": "white", "linewidth": 0.6}
        ax.bar(ranks, sizes, bottom=below, width=0.7, label=name, **style)
        below = below + sizes


def _draw_limit(ax: Axes, rows: list[dict[str, Any]], headroom: float) -> None:
    """The limit as a line over the bars; ranks have one limit, as their devices are alike."""
    limit = min((row["limit_bytes"] for row in rows), default=0.0) / 1e9
    spared = f"\n({headroom:.0%} headroom spared)" if headroom else ""
    ax.axhline(limit, color=LIMIT_COLOUR, linewidth=1.6, linestyle="--", label=f"limit {limit:.1f} GB{spared}")
    tallest = max((row["need_bytes"] for row in rows), default=0.0) / 1e9
    ax.set_ylim(0, 1.12 * max(limit, tallest))


def _label_bars(ax: Axes, rows: list[dict[str, Any]]) -> None:
    """Layers under every bar; what it comes to above it, or above the limit's line where that is in the way."""
    room = 0.055 * ax.get_ylim()[1]
    size = 9 if len(rows) <= 16 else 7
    for row in rows:
        need, limit = row["need_bytes"] / 1e9, row["limit_bytes"] / 1e9
        height = need if need + room < limit or need > limit else limit
        style = {"textcoords": "offset points", "ha": "center", "fontsize": size}
        ax.annotate(f"{need:.1f}", (row["rank"], height), (0, 3), **style)
    ax.set_xticks([row["rank"] for row in rows], [f"{row['rank']}\n{row['layers']}" for row in rows], fontsize=size)
    margin = 0.6 + max(0.0, (3 - len(rows)) / 2)
    ax.set_xlim(-margin, len(rows) - 1 + margin)
    ax.set_xlabel("pipeline rank; below it, how many layers it holds")
    ax.set_ylabel("memory [GB]")
    ax.spines[["top", "right"]].set_visible(False)


def _top_down(ax: Axes) -> tuple[list, list[str]]:
    """The legend in the order of the stack, the limit on top."""
    handles, labels = ax.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda k: (not labels[k].startswith("limit"), -k))
    return [handles[k] for k in order], [labels[k] for k in order]


def _time_unit(seconds: float) -> tuple[str, float]:
    """The unit in which a duration is read most easily, and its seconds."""
    return ("s", 1.0) if seconds >= 1 else ("ms", 1e-3) if seconds >= 1e-3 else ("us", 1e-6)


def _draw_work(ax: Axes, work: list[dict[str, Any]], unit_s: float, chain: Chain) -> None:
    """Boxes of every piece of work, numbered by micro-batch where all boxes are wide enough for that."""
    boxes = [it for it in work if it["micro_batch"] is not None]
    inches_per_s = ax.get_figure(root=True).get_figwidth() * ax.get_position().width / (ax.get_xlim()[1] * unit_s)
    narrowest = min((it["end_s"] - it["start_s"] for it in boxes), default=0.0) * inches_per_s
    line = 0.6 if narrowest > 0.05 else 0.1
    spans: dict[tuple, list[tuple[float, float]]] = {}
    for it in work:
        span = (it["start_s"] / unit_s, (it["end_s"] - it["start_s"]) / unit_s)
        spans.setdefault((it["rank"], it["pass"], it["virtual_stage"]), []).append(span)
    for (rank, name, stage), mine in spans.items():
        style = WAIT_STYLES[name] if stage is None else _pass_style(name, stage // chain.pp, chain.virtual)
        ax.broken_barh(mine, (rank - 0.4, 0.8), linewidth=line, **style)
    whole = [it for it in boxes if it["end_s"] <= ax.get_xlim()[1] * unit_s * (1 + RELATIVE)]
    for it in whole if narrowest > NARROWEST_NUMBER else []:
        middle = (it["start_s"] + it["end_s"]) / 2 / unit_s
        ax.text(middle, it["rank"], str(it["micro_batch"]), ha="center", va="center", fontsize=7, clip_on=True)
    _key_of_passes(ax, {it["pass"] for it in work}, chain.virtual)


def _pass_style(name: str, turn: int, virtual: int) -> dict[str, Any]:
    """Colours of a forward or backward of a rank's virtual stage number ``turn``: later ones are darker."""
    light, dark = (np.array(colour) for colour in PASS_COLOURS[name])
    share = 0.35 if virtual == 1 else turn / (virtual - 1)
    return {"facecolors": [tuple(light + share * (dark - light))], "edgecolors": "white"}


def _key_of_passes(ax: Axes, names: set[str], virtual: int) -> None:
    """What colours and hatches mean, in one line below the axis."""
    from matplotlib.patches import Patch
    from matplotlib.transforms import ScaledTranslation

    handles = []
    for name in (name for name in (*PASS_COLOURS, *WAIT_STYLES) if name in names):
        turns = range(virtual) if name in PASS_COLOURS else [0]
        for turn in sorted({turns[0], turns[-1]}):
            style = WAIT_STYLES[name] if name in WAIT_STYLES else _pass_style(name, turn, virtual)
            which = f", {('first', 'last')[turn > 0]} of {virtual} virtual stages" if len(turns) > 1 else ""
            face, edge = style["facecolors"], style["edgecolors"]
            handles.append(Patch(facecolor=face[0] if isinstance(face, list) else face, edgecolor=edge,
                                 hatch=style.get("hatch"), linewidth=0.4, label=name + which))  # fmt: skip
    below = ax.transAxes + ScaledTranslation(0, -0.5, ax.get_figure(root=True).dpi_scale_trans)
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=below, borderaxespad=0.0,
              ncols=len(handles), frameon=False, fontsize=8, columnspacing=1.2, handlelength=1.4)  # fmt: skip


def _label_ranks(ax: Axes, step: _Step) -> None:
    """Ranks from the top, and at the right what part of the step each waits for others."""
    pp = step.chain.pp
    ax.set_ylim(pp - 0.5, -0.5)
    ax.set_yticks(range(pp), [str(rank) for rank in range(pp)])
    ax.set_ylabel("pipeline rank")
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    for rank, idle in enumerate(step.idle_s.tolist()):
        beside = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 8}
        ax.text(1.01, rank, f"{idle / step.step_s:.1%} idle", **beside)


def _timeline_title(plan: Plan, step: _Step, shown: int) -> str:
    """Whose step, its bubble as :attr:`Plan.time` has it, and how much of it is shown."""
    chain, bubble_s = step.chain, float(step.idle_s.min())
    schedule = schedule_text(chain.schedule.kind, chain.virtual, chain.schedule.in_flight)
    bubble = f"bubble {bubble_s / step.step_s:.1%} of the step on the busiest rank"
    unit, unit_s = _time_unit(step.step_s)
    whole = f"whole step of {step.step_s / unit_s:.4g} {unit}, {chain.micro_batches} micro-batches"
    part = f"first {shown} of {chain.micro_batches} micro-batches of a step of {step.step_s / unit_s:.4g} {unit}"
    waits_s = step.step_s - step.schedule_s
    cap = f", of which {waits_s / unit_s:.3g} {unit} wait for the power cap" if waits_s > RELATIVE * step.step_s else ""
    what = f"{plan.model.name} on {plan.cluster.name}: {schedule}, {bubble}"
    return f"{what}\n{whole if shown == chain.micro_batches else part}{cap}"
