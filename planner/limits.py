"""Limits beside memory: on power by level, on time, money and energy of a step or of training N tokens.

    --limit site-power='700 kW' --limit money='2 MUSD' --limit train-time='30 d'

Power limits are met by waiting (:mod:`cost_models.power_levels`). The others refuse plans: each is a bound on what
one step takes, those of a training run divided by its steps, ``ceil(N / tokens a step)``; those on replicas are kept by
the placement (:mod:`planner.apart`). Two have names of their own
among the options: ``site-power`` is the power cap, ``memory-headroom``, the one thing to have at least, the headroom.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.errors import BadInput
from planner.objectives import percent
from topologies.units import parse_quantity, quantity_text

if TYPE_CHECKING:
    from cost_models.estimate import Estimate
    from cost_models.power_levels import PowerLimits
    from cost_models.workload import Training
    from planner.options import Options
    from topologies.cluster import Cluster

RELATIVE = 1e-12
"""How far rounding may put a plan above a limit that it just meets."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a limit is on: a quantity in its unit, of a step or of a training run, with an example as users write it."""

    quantity: str
    unit: str
    example: str
    of_training: bool = False


LIMITS = {
    "device-power": Kind("device", "W", "550 W"),
    "host-power": Kind("host", "W", "8 kW"),
    "rack-power": Kind("rack", "W", "40 kW"),
    "site-power": Kind("site", "W", "700 kW"),
    "step-time": Kind("time", "s", "12 s"),
    "step-money": Kind("money", "USD", "3 USD"),
    "step-energy": Kind("energy", "J", "2 MJ"),
    "step-goodput": Kind("goodput", "s", "12 s"),
    "train-time": Kind("time", "s", "30 d", of_training=True),
    "money": Kind("money", "USD", "2 MUSD", of_training=True),
    "train-energy": Kind("energy", "J", "4 GWh", of_training=True),
    "memory-headroom": Kind("headroom", "", "10%"),
    "host-replicas": Kind("replicas", "", "1"),
    "rack-replicas": Kind("replicas", "", "1"),
    "switch-replicas": Kind("replicas", "", "1"),
    "feed-replicas": Kind("replicas", "", "1"),
}
_SPACED = re.compile(r"([kMGTP])\s+(?=[A-Za-z]+\s*$)")
_COUNT = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([kKMBGT]?)\s*(?:tokens)?\s*")
_TIMES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def tokens_of(text: float | str | None) -> float | None:
    """``"15T"`` as 1.5e13 tokens; numbers and ``None`` as they are. Raises ``BadInput`` for any other text."""
    if not isinstance(text, str):
        return text
    match = _COUNT.fullmatch(text) if len(text) < 64 else None
    if match is None:
        raise BadInput(f"tokens={text[:80]!r} is not a number of tokens; for example 15T, 300B or 1.5e12")
    return float(match[1]) * _TIMES[match[2]]


def limits_of(given: Any) -> dict[str, float]:
    """Limits in SI units, from a dictionary, or from ``NAME=VALUE`` texts in a list or one text.

    Raises ``BadInput`` for names that are none, values without their unit, and names given twice.
    """
    if given is None:
        return {}
    if isinstance(given, str):
        given = given.split(",")
    if not isinstance(given, dict | list | tuple):
        raise BadInput(f"limits={str(given)[:80]!r} is neither a dictionary nor texts like 'site-power=700 kW'")
    found: dict[str, float] = {}
    for name, value in given.items() if isinstance(given, dict) else map(_named, given):
        if name in found:
            raise BadInput(f"limit {name} is given twice; give it once")
        found[name] = _value(name, value)
    return found


def _named(text: Any) -> tuple[str, str]:
    name, equals, value = (part.strip() for part in str(text).partition("="))
    if not (name and equals and value):
        raise BadInput(f"limit {str(text)[:80]!r} is not NAME=VALUE; for example site-power='700 kW'")
    return name, value


def kind_of_limit(name: Any) -> Kind:
    """What the limit of that name is on. Raises ``BadInput`` with the nearest names when there is none."""
    if name not in LIMITS:
        near = difflib.get_close_matches(str(name).lower()[:80], LIMITS, n=2, cutoff=0.4)
        nearest = f"nearest: {', '.join(near)}; " if near else ""
        raise BadInput(f"no limit {str(name)[:80]!r}; {nearest}limits are {', '.join(LIMITS)}")
    return LIMITS[name]


def _value(name: Any, value: Any) -> float:
    kind = kind_of_limit(name)
    if name == "memory-headroom":
        return _part(value)
    if kind.quantity == "replicas":
        return _count(name, value)
    if isinstance(value, str):
        try:
            value = parse_quantity(_SPACED.sub(r"\1", value), kind.unit)
        except ValueError as error:
            raise BadInput(f"limit {name}: {error}; for example {name}={kind.example!r}") from error
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    if not good:
        raise BadInput(f"limit {name}={str(value)[:80]} is not a finite quantity above 0; for example {kind.example!r}")
    return float(value)


def _count(name: str, value: Any) -> float:
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() and len(value) < 10 else value
    if isinstance(number, bool) or not isinstance(number, int | float) or number != number // 1 or number < 1:
        raise BadInput(f"limit {name}={str(value)[:80]!r} is no number of replicas, a whole one from 1")
    return float(number)


def _part(value: Any) -> float:
    part = percent(value) if isinstance(value, str) else value
    if isinstance(part, bool) or not isinstance(part, int | float) or not 0 <= part < 1:
        raise BadInput(f"limit memory-headroom={str(value)[:80]} is no part of memory from 0 to below 1; such as 10%")
    return float(part)


def power_limits(options: Options) -> PowerLimits:
    """The limits on mean watts, the cap on the site among them."""
    from cost_models.power_levels import PowerLimits

    watts = {f"{level}_w": options.limits.get(f"{level}-power") for level in ("device", "host", "rack")}
    return PowerLimits(site_w=options.power_cap_w, **watts)


def training_steps(options: Options, workload: Training) -> int | None:
    """Steps of a training run, ``ceil(tokens / (sequences x sequence length))``; ``None`` where no tokens are given."""
    return None if options.tokens is None else math.ceil(options.tokens / workload.tokens * (1 - RELATIVE))


def per_step(options: Options, workload: Training) -> Options:
    """The options with every limit of a training run as one of a step; of two limits on one thing the lower stays."""
    steps, limits = training_steps(options, workload), {}
    for name, value in options.limits.items():
        kind = LIMITS[name]
        if kind.of_training:
            name, value = f"step-{kind.quantity}", value / float(steps or 1)
        limits[name] = min(value, limits.get(name, math.inf))
    return options.model_copy(update={"limits": limits})


def step_ceilings(options: Options) -> dict[str, float]:
    """What one step may take at most, by quantity: ``{"time": 12.0}``; training limits must be ``per_step`` before."""
    return {LIMITS[name].quantity: value for name, value in options.limits.items() if name.startswith("step-")}


SHARED = ("step-money", "step-energy", "money", "train-energy")
"""What all jobs on a cluster take together; each has its own time, devices and hosts."""


def share_of(options: Options, jobs: int) -> Options:
    """The options of one of equal jobs: its part of what all of them take.

    Raises ``BadInput`` for a limit on racks, which several jobs may share.
    """
    if jobs > 1 and "rack-power" in options.limits:
        raise BadInput(f"limit rack-power with jobs={jobs}: jobs may share racks; limit host-power or site-power")
    limits = {name: value / jobs if name in SHARED else value for name, value in options.limits.items()}
    cap = None if options.power_cap_w is None else options.power_cap_w / jobs
    return options.model_copy(update={"power_cap_w": cap, "limits": limits})


def check_limits(cluster: Cluster, options: Options) -> None:
    """Raises ``BadInput`` for limits that no plan on this machine can meet, or whose measure is not known."""
    complaints = [*_without_tokens(options), *_below_idle(cluster, options), *_without_racks(cluster, options)]
    if complaints:
        raise BadInput("the limits cannot hold: " + "; ".join(complaints))


def _without_tokens(options: Options) -> Iterator[str]:
    for name in options.limits:
        if LIMITS[name].of_training and options.tokens is None:
            yield f"limit {name} is on training N tokens, and no number of tokens is given; add --tokens, such as 15T"


def _below_idle(cluster: Cluster, options: Options) -> Iterator[str]:
    from cost_models.power_levels import idle_w

    for level, watts in power_limits(options).given.items():
        idle = idle_w(level, cluster)
        if level != "site" and watts <= idle:
            asked, drawn = quantity_text(watts, "W", 4), quantity_text(idle, "W", 4)
            what = {"device": "a device", "host": "a host", "rack": "a rack with one host in use"}[level]
            yield f"limit {level}-power is {asked}, but {what} of {cluster.name!r} draws {drawn} idling; raise it above"


def _without_racks(cluster: Cluster, options: Options) -> Iterator[str]:
    if "rack-power" in options.limits and cluster.hosts_per_rack is None:
        yield (
            f"limit rack-power needs the hosts of a rack, and {cluster.name!r} does not say; set hosts_per_rack in a "
            "cluster file, or limit host-power"
        )


def broken_limits(found: Estimate, options: Options, workload: Training) -> list[str]:
    """Every limit but memory's that an estimate is above, in words; shares nothing with the search."""
    step = {"time": found.step_s, "energy": found.joules, "money": found.usd or 0.0}
    step |= {"goodput": found.goodput.effective_step_s, **found.level_watts}
    if options.power_cap_w is not None:
        options = options.model_copy(update={"limits": {**options.limits, "site-power": options.power_cap_w}})
    steps, complaints = training_steps(options, workload), []
    for name, most in options.limits.items():
        kind = LIMITS[name]
        if kind.quantity == "replicas":
            continue
        value = step[kind.quantity] * (steps or 1 if kind.of_training else 1)
        if not value <= most * (1 + 1e-9):
            shown = f"{amount(value, kind)}, above the limit of {amount(most, kind)}"
            complaints.append(f"{name} is {shown}; raise the limit, or take a plan that needs less")
    return complaints


def amount(value: float, kind: Kind) -> str:
    """A limited quantity for print: days where seconds are many."""
    if kind.quantity == "replicas":
        return f"{value:g}"
    if kind.unit == "s" and value >= 86400:
        return f"{value / 86400:.4g} d"
    if kind.unit == "USD":
        return f"{value:.4g} USD" if value < 1 else f"{value:,.2f} USD" if value < 1e4 else f"{value:,.0f} USD"
    return quantity_text(value, kind.unit, 4)
