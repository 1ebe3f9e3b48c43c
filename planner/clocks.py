"""Clocks as a choice of the search: which ones, whether they can pay, and what the proof says of them."""

from __future__ import annotations

from typing import Any

from cost_models.clocks import FULL, STEPS
from cost_models.money import price_per_device_hour
from planner.apart import restrictions
from planner.candidates import Space
from planner.errors import BadInput
from planner.limits import LIMITS, power_limits
from planner.objectives import minimised
from planner.options import Options
from topologies.cluster import Cluster

RESTRICTION = "interleaved and V-shaped: one clock for all devices"


def search_clocks(options: Options) -> tuple[float, ...]:
    """Clocks that a stage may have, as fractions of the full one, which comes first."""
    return STEPS if options.clocks else (FULL,)


def check_clocks(options: Options, *, weighs: bool) -> None:
    """Raises ``BadInput`` where clocks are to be chosen and nothing ``weighs`` joules: lower ones are only slower.

    Also where the solver does not choose any.
    """
    if options.clocks and options.solver != "default":
        raise BadInput(f"solver={options.solver} chooses no clocks; leave out clocks, or take the default solver")
    if options.clocks and not weighs:
        raise BadInput(
            f"clocks are to be chosen, but objective {options.objective!r} without a power cap weighs no joules, so "
            "that every lower clock is only slower; give a power cap or another limit on power or energy, or take "
            "objective energy"
        )


def weighs_joules(cluster: Cluster, options: Options) -> bool:
    """Whether fewer joules can make a plan better, or let it in: by an objective, or by a limit."""
    electricity = "money" in _weighed(options) and price_per_device_hour(cluster) is None
    return electricity or weighs_joules_of_rented(options)


def weighs_joules_of_rented(options: Options) -> bool:
    """As :func:`weighs_joules` where money is rent, whatever is drawn."""
    return "energy" in _weighed(options) or bool(power_limits(options).given)


def _weighed(options: Options) -> set[str]:
    """Quantities that are minimised or limited."""
    asked = {minimised(name) for name in options.objective.split(",")}
    return asked | {LIMITS[name].quantity for name in options.limits}


def described(space: Space, options: Options) -> dict[str, Any]:
    """The space for the proof, with the axis ``clock`` where clocks are chosen."""
    found = space.described()
    found = {**found, "restrictions": [*found["restrictions"], *restrictions(space.cluster, options)]}
    if not options.clocks:
        return found
    axes = {**found["axes"], "clock": {"of every stage": list(STEPS)}}
    return {**found, "axes": axes, "restrictions": [*found["restrictions"], RESTRICTION]}
