"""Watts and joules of a pipeline over several kinds of devices: those of every part, each at its own PUE.

    E = sum over parts of PUE (T P_static + dynamic joules of its stages)

``P_static`` is the idle draw of the part's hosts in use (:mod:`cost_models.power`), all of whose NICs are up, since the
parts are joined by them. What a hidden state takes on its way between stages is left out.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.estimate import mean_watts
from cost_models.mixed import Machine, MixedStage, MixedStrategy
from cost_models.power import host_power
from topologies.cluster import Cluster


def mixed_watts(machine: Machine, strategy: MixedStrategy, hosts: tuple[int, ...], step_s: float) -> dict[str, float]:
    """Mean watts by consumer over a step of so many seconds, ``hosts`` in use of every part; ``facility`` is all."""
    parts = machine.cluster.parts
    dynamic = [0.0] * len(parts)
    for stage, once in zip(strategy.stages, stage_joules(machine, strategy).tolist(), strict=True):
        dynamic[stage.part] += stage.devices * once
    each = [
        mean_watts(host_power(np.array([float(count)]), part, part.host.nics), joules, step_s)
        for part, count, joules in zip(parts, hosts, dynamic, strict=True)
    ]
    return {name: sum(watts[name] for watts in each) for name in each[0]}


def stage_joules(machine: Machine, strategy: MixedStrategy) -> NDArray[np.float64]:
    """Dynamic joules a step on one device of every stage, ``[stages]``."""
    begins = itertools.accumulate((stage.layers for stage in strategy.stages), initial=0)
    each = zip(machine.chains(strategy.stages), strategy.stages, begins, strict=False)
    return np.array([_joules(*one, strategy.micro_batches) for one in each])


def idle_host_w(part: Cluster) -> float:
    """Watts at the meter of a host of a part that is in use, whatever it does: ``PUE P_static`` of one."""
    return float(host_power(np.ones(1), part, part.host.nics).facility_w[0])


def busy_host_w(part: Cluster) -> float:
    """Watts at the meter that the devices of a host add to what it draws idle, at board power all of them."""
    figures = part.accelerator.figures
    each = figures.board_power.value - figures.idle_power.value
    return part.devices_per_host * each * part.facility.figures.pue.value


def _joules(chain: Chain, stage: MixedStage, at: int, micro_batches: int) -> float:
    """Dynamic joules a step on one device of a stage that begins with layer ``at``."""
    i, j = np.array([at]), np.array([at + stage.layers])
    once, step = chain.total(chain.prices.joules_pass, i, j), chain.joules_step(i, j)
    for run in stage.runs:
        extra = chain.prices.joules_extra[run.choice.recompute]
        once = once + chain.total(extra, np.array([at]), np.array([at + run.count]), ends=False)
        at += run.count
    return float((micro_batches * once + step)[0])
