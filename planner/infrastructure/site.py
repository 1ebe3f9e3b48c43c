"""A site of so many megawatts: which hosts it runs under each cooling, the plan on them, and what training costs there.

Hosts are counted by what they draw at most, or by what the plan draws on the mean (``sized_by="mean"``: planned once
to know it, and again on as many hosts under a cap of all the watts). Sequences, batch and precision are the same
everywhere.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cost_models.model_graph import ModelGraph
from cost_models.money import electricity_usd, price_per_device_hour
from cost_models.site import Sized, at_site, domain_hosts, host_peak_w, sized
from planner.defaults import default_workload
from planner.errors import BadInput, InfeasiblePlan, SearchGaveUp
from planner.plan_text import SCHEMA_VERSION
from planner.read_model import read_model
from planner.result import Plan
from planner.summarised import Summarised
from topologies import catalogue
from topologies.cluster import Cluster
from topologies.ready import read_cluster, split_count
from topologies.units import parse_quantity, quantity_text

if TYPE_CHECKING:
    from rich.console import RenderableType

SizedBy = Literal["peak", "mean"]
TRILLION = 1e12
EXAMPLES = {"cooling": "air,liquid", "hosts": "dgx-h100"}
Progress = Callable[[str, float, float], None]


@dataclass(frozen=True, slots=True)
class SiteCase:
    """One kind of hosts under one cooling: how many the site runs, and the plan on them or why there is none."""

    hosts_name: str
    facility: str
    cooling: str
    pue: float
    sized: Sized
    plan: Plan | None
    reason: str = ""
    electricity_usd_per_trillion: float | None = None
    rent_usd_per_trillion: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second that are kept, failures included; 0 without a plan."""
        return 0.0 if self.plan is None or self.plan.goodput is None else self.plan.goodput.effective_tokens_per_s

    @property
    def days_per_trillion(self) -> float | None:
        """Days for 1e12 tokens."""
        return TRILLION / self.tokens_per_s / 86400 if self.tokens_per_s > 0 else None

    @property
    def joules_per_trillion(self) -> float | None:
        """Joules at the site's meter for 1e12 tokens, work done again included."""
        return self.steps_per_trillion * self.plan.joules_per_step if self.steps_per_trillion else None

    @property
    def steps_per_trillion(self) -> float:
        """Steps' worth of time that 1e12 tokens take, failures included; 0 without a plan."""
        kept = self.plan is not None and self.tokens_per_s > 0
        return TRILLION / self.tokens_per_s / self.plan.step_s if kept else 0.0

    def as_json(self) -> dict[str, Any]:
        """The case as one JSON object."""
        numbers = (
            "tokens_per_s", "days_per_trillion", "joules_per_trillion", "electricity_usd_per_trillion",
            "rent_usd_per_trillion",
        )  # fmt: skip
        return {
            "hosts_name": self.hosts_name, "facility": self.facility, "cooling": self.cooling, "pue": self.pue,
            "sized": {**dataclasses.asdict(self.sized), "racks": self.sized.racks}, "reason": self.reason,
            "notes": list(self.notes),
            **{name: getattr(self, name) for name in numbers},
            "plan": None if self.plan is None else json.loads(self.plan.to_json()),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Site(Summarised):
    """What a site of ``power_w`` does with a model, case by case as asked; ``notes`` hold for all of them."""

    model: str
    power_w: float
    sized_by: SizedBy
    cases: tuple[SiteCase, ...]
    notes: tuple[str, ...]

    @property
    def best(self) -> SiteCase | None:
        """The case that keeps most tokens a second; ``None`` where there is no plan at all."""
        planned = [case for case in self.cases if case.tokens_per_s > 0]
        return max(planned, key=lambda case: case.tokens_per_s, default=None)

    def view(self) -> RenderableType:
        """The report for a terminal."""
        from planner.infrastructure.site_report import site_view

        return site_view(self)

    def summary(self) -> str:
        """The report as text."""
        from planner.report import as_text

        return as_text(self.view())

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "schema_version": SCHEMA_VERSION, "model": self.model, "power_w": self.power_w, "sized_by": self.sized_by,
            "cases": [case.as_json() for case in self.cases], "notes": list(self.notes),
        }  # fmt: skip


def site(
    model: str | Path | dict | ModelGraph,
    hosts: str | Cluster | Iterable[str | Cluster],
    power: float | str,
    *,
    cooling: str | Iterable[str] = ("air", "liquid"),
    sized_by: SizedBy = "peak",
    seq_len: int | None = None,
    global_batch: int | None = None,
    precision: str | None = None,
    optimizer: str = "adam",
    progress: Progress = lambda stage, best, bound: None,
    **options: Any,
) -> Site:
    """How many ``hosts`` (names of clusters) a site of ``power`` runs under each ``cooling``, with the plan on them.

    ``cooling`` are names of facilities, whose PUE and tariff count. ``options`` are those of :func:`planner.plan` for
    every case. A case whose hosts do not fit, or on which no plan does, says so in its place.

    Raises ``BadInput`` and ``UnknownName`` for what cannot be read.
    """
    power_w, graph = _power(power), read_model(model)
    if sized_by not in ("peak", "mean"):
        raise BadInput(f"sized_by={str(sized_by)[:80]!r} is neither 'peak' nor 'mean'")
    if "power_cap" in options:
        raise BadInput("power_cap is the site's power here; leave it out")
    halls = [catalogue.load("facilities", name) for name in _listed(cooling, "cooling")]
    bases = [_named(one) for one in _listed(hosts, "hosts")]
    kinds = [(name, dataclasses.replace(base, facility=hall)) for name, base in bases for hall in halls]
    sizes = [sized(cluster, power_w) for _, cluster in kinds]
    asked = {"seq_len": seq_len, "global_batch": global_batch, "precision": precision, "optimizer": optimizer}
    work, notes = _same_work(graph, [(c, it.hosts) for (_, c), it in zip(kinds, sizes, strict=True)], asked)
    options = {"alternatives": 0, **options, **work, "progress": progress}
    cases = (
        _case(graph, name, cluster, it, power_w, sized_by, options)
        for (name, cluster), it in zip(kinds, sizes, strict=True)
    )
    return Site(graph.name, power_w, sized_by, tuple(cases), (*notes, *_counted(bases)))


def _power(power: float | str) -> float:
    try:
        value = parse_quantity(power, "W") if isinstance(power, str) else power
    except ValueError as error:
        raise BadInput(f"power: {error}; for example '20 MW'") from error
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e12:
        raise BadInput(f"power={repr(power)[:80]} is watts above 0 and below 1 TW, such as '20 MW'")
    return float(value)


def _listed(given: Any, what: str) -> list[Any]:
    found = [part.strip() for part in given.split(",")] if isinstance(given, str) else given
    found = [found] if isinstance(found, Cluster) else list(found)
    if not found or "" in found:
        raise BadInput(f"{what}={str(given)[:80]!r} names nothing; for example {EXAMPLES[what]!r}")
    return list(dict.fromkeys(found))


def _named(what: str | Cluster) -> tuple[str, Cluster]:
    """A kind of hosts by the name it was asked for; how many of them that says is left to :func:`_counted`."""
    cluster = read_cluster(what)
    return (what if isinstance(what, str) else cluster.name), cluster


def _counted(bases: list[tuple[str, Cluster]]) -> Iterator[str]:
    """A note for each kind of hosts that was named with a COUNT, which does not matter here."""
    for name in (name for name, _ in bases):
        count = split_count(name)[1]
        if count is not None:
            yield (
                f"{name[:80]!r}: the site's power says how many hosts there are, not ':{count[:20]}'; for that many: "
                f"meshwright plan --cluster {name[:80]}"
            )


def _same_work(
    graph: ModelGraph, sizes: list[tuple[Cluster, int]], asked: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The work of every case: as asked, the rest what the most devices would usually get; and the notes on that."""
    largest = max(sizes, key=lambda one: one[1] * one[0].devices_per_host)
    machine = at_site(largest[0], max(1, largest[1]))
    workload, notes = default_workload(graph, machine, **asked)
    names = ("seq_len", "global_batch", "precision", "optimizer")
    return {name: getattr(workload, name) for name in names}, notes


def _case(
    graph: ModelGraph, name: str, cluster: Cluster, fits: Sized, power_w: float, sized_by: SizedBy,
    options: dict[str, Any],
) -> SiteCase:  # fmt: skip
    """One kind of hosts in one hall."""
    from planner.api import plan

    best, reason = None, _too_much(cluster, fits, power_w)
    try:
        if not reason:
            best = plan(graph, at_site(cluster, fits.hosts), **options)
        if best is not None and sized_by == "mean":
            each_w = best.watts["facility"] / best.cluster.hosts_used
            fits = sized(cluster, power_w, each_w)
            best = plan(graph, at_site(cluster, fits.hosts), power_cap=power_w, **options)
    except (InfeasiblePlan, SearchGaveUp) as error:
        best, reason = None, str(error)
    hall = cluster.facility
    case = SiteCase(name, hall.name, hall.cooling, hall.figures.pue.value, fits, best, reason, notes=_notes(cluster))
    return _with_money(case, cluster)


def _with_money(case: SiteCase, cluster: Cluster) -> SiteCase:
    """The case with its electricity, and with rent where a price is known."""
    joules = case.joules_per_trillion
    if joules is None or case.plan is None:
        return case
    known = price_per_device_hour(cluster) is not None and case.plan.usd_per_step is not None
    return dataclasses.replace(
        case,
        electricity_usd_per_trillion=electricity_usd(joules, cluster),
        rent_usd_per_trillion=case.steps_per_trillion * case.plan.usd_per_step if known else None,
    )


def _too_much(cluster: Cluster, fits: Sized, power_w: float) -> str:
    """Why not one domain fits: a rack that the hall cannot cool, or a site too small; empty where one does."""
    if fits.hosts:
        return ""
    each, count = host_peak_w(cluster), domain_hosts(cluster)
    what = f"a host of {cluster.host.name}" if count == 1 else f"a scale-up domain of {count} hosts {cluster.host.name}"
    drawn, limit = count * each, cluster.facility.figures.rack_power
    if limit is not None and drawn > limit.value and cluster.hosts_per_rack is None:
        carried = quantity_text(limit.value, "W")
        return f"{what} draws {quantity_text(drawn, 'W')} in its rack, and {cluster.facility.name} cools {carried}"
    meter = cluster.facility.figures.pue.value * drawn
    return f"{what} draws {quantity_text(meter, 'W')} at the meter, more than the site's {quantity_text(power_w, 'W')}"


def _notes(cluster: Cluster) -> tuple[str, ...]:
    """What figures say of the hall that the plan does not contain."""
    facility, host, notes = cluster.facility, cluster.host, []
    if facility.figures.hot_hours_loss is not None:
        loss = facility.figures.hot_hours_loss.value
        notes.append(f"{facility.name}: the hottest hours take up to {loss:.0%} of the rate; not counted")
    if facility.cooling == "liquid" and host.figures.liquid_gain is not None:
        gain = host.figures.liquid_gain.value - 1
        notes.append(f"{host.name} on cold plates: up to {gain:.0%} faster where heat limits devices; not counted")
    return tuple(notes)
