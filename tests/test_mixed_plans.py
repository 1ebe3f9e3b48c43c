"""Whole plans on mixed clusters, pipelines and parts alone together, against enumeration of both within limits."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixed_oracle import MixedInstance, best_step
from oracle import Instance, best_of_all
from strategies import examples, small_cluster, tiny_config, with_memory
from test_mixed_search import mixed_of

from cost_models.calibration import calibrate
from cost_models.mixed import Machine
from cost_models.mixed_power import idle_host_w
from cost_models.model_graph import ModelGraph
from cost_models.money import hosts_usd_per_s
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner import plan
from planner.errors import BadInput, InfeasiblePlan
from planner.read_model import read_config
from topologies.cluster import Cluster
from topologies.mixed import MixedCluster

pytestmark = pytest.mark.usefixtures("steady")

SHAPES = ((1, 1), (1, 1), (2, 1), (1, 2), (1, 3))
"""Devices of a host, and hosts."""
PINS = ((), (), (("tp", 1),), (("zero", 1),), (("recompute", "full"),), (("cp", 2),), (("tp", 2),))
QUANTITIES = ("time", "money", "energy")


@dataclass(frozen=True)
class Question:
    """What is planned for what, and the least of every limited quantity times a factor as its limit."""

    model: ModelGraph
    cluster: MixedCluster
    workload: Training
    pins: tuple[tuple[str, int | str], ...]
    objective: str
    factors: tuple[tuple[str, float], ...]


def figures_of(record, **values: float):
    """A catalogue record with other figures."""
    changed = {name: getattr(record.figures, name).model_copy(update={"value": it}) for name, it in values.items()}
    return record.model_copy(update={"figures": record.figures.model_copy(update=changed)})


@st.composite
def parts(draw: st.DrawFn, base: str, shape: tuple[int, int], each_bytes: float) -> Cluster:
    """Hosts that draw little or much idle, at any PUE and price, with memory for a part of the model."""
    part = small_cluster(*shape, base=base)
    fits = calibrate(part)
    fixed = (fits.context_bytes + 1.5 * fits.communicator_bytes) / 0.95
    part = with_memory(part, fixed + draw(st.sampled_from([0.4, 0.6, 0.8, 2.0])) * each_bytes)
    idle_w, host_w = part.accelerator.figures.idle_power.value, part.host.figures.power.value
    return dataclasses.replace(
        part, price_usd_per_device_hour=draw(st.sampled_from([0.1, 1.0, 2.0, 20.0])),
        accelerator=figures_of(part.accelerator, idle_power=draw(st.sampled_from([0.0, 0.05, 1.0, 4.0])) * idle_w),
        host=figures_of(part.host, power=draw(st.sampled_from([0.02, 0.1, 1.0, 30.0])) * host_w),
        facility=figures_of(part.facility, pue=draw(st.sampled_from([1.0, 1.3, 4.0]))),
    )  # fmt: skip


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """Two parts, now and then three, a few layers, up to two limits, now and then a pin."""
    heads, kv = draw(st.sampled_from([(8, 8), (8, 2), (6, 3)]))
    config = tiny_config(
        hidden_size=128 * heads, num_attention_heads=heads, num_key_value_heads=kv, vocab_size=32000,
        num_hidden_layers=draw(st.sampled_from([2, 3])), intermediate_size=draw(st.sampled_from([768, 6144])),
        tie_word_embeddings=draw(st.booleans()),
    )  # fmt: skip
    model, work = read_config(config, "few"), Training(seq_len=1024, global_batch=draw(st.sampled_from([1, 2, 4])))
    rough = 18.0 * model.parameters + work.seq_len * (40 * model.hidden * model.layers + 8 * model.vocab)
    bases = ("dgx-a100", "dgx-h100", "dgx-b200")[: draw(st.sampled_from([2, 2, 2, 3]))]
    shapes = SHAPES if len(bases) == 2 else SHAPES[:3]
    several = [draw(parts(base, draw(st.sampled_from(shapes)), rough)) for base in bases]
    objective = draw(st.sampled_from(["energy", "energy", "time", "money"]))
    limited = draw(st.lists(st.sampled_from([it for it in QUANTITIES if it != objective]), max_size=2, unique=True))
    factors = tuple((name, draw(st.sampled_from([0.999, 1.0001, 1.05, 1.5]))) for name in limited)
    return Question(model, mixed_of(*several), work, draw(st.sampled_from(PINS)), objective, factors)


def least(it: Question, objective: str, limits: dict[str, float]) -> float:
    """The least that any pipeline and any plan on one part takes within the limits; infinite for none."""
    return min(of_pipelines(it, objective, limits), *(on(part, it, objective, limits) for part in it.cluster.parts))


def of_pipelines(it: Question, objective: str, limits: dict[str, float]) -> float:
    """Of all pipelines of two stages or more."""
    machine, every = Machine.of(it.model, it.cluster, it.workload), it.cluster.parts
    watts, usd_per_s = np.array([(idle_host_w(part), hosts_usd_per_s(1, part)) for part in every], dtype=float).T

    def value(step, hosts, joules):
        step_s = step * machine.ticks.second
        found = {"time": step_s, "money": step_s * (usd_per_s @ hosts), "energy": step_s * (watts @ hosts) + joules}
        within = [found[name] <= most * (1 + 1e-9) for name, most in limits.items()]
        return np.where(np.all([np.ones(len(step), dtype=bool), *within], axis=0), found[objective], math.inf)

    room = tuple(int(part.memory_bytes * 0.95) for part in every)
    return best_step(MixedInstance(machine, room, it.pins), value, joules=True)[0]


def on(part: Cluster, it: Question, objective: str, limits: dict[str, float]) -> float:
    """Of all plans on one part alone."""
    fits, ticks = calibrate(part, it.workload.stack), Ticks.of(it.model, part, it.workload)
    step = tuple((f"step-{name}", most) for name, most in limits.items())
    alone = Instance(it.model, part, it.workload, fits, ticks, objective=objective, pins=it.pins, limits=step)
    return best_of_all(alone).value


@given(questions())
@examples(16)
def test_plans_are_those_of_enumeration(it):
    """Proved, no worse and no better; refused exactly where there is none, or where no plan can have a pin."""
    bests = {name: least(it, name, {}) for name, _ in it.factors}
    limits = {name: factor * bests[name] for name, factor in it.factors if math.isfinite(bests[name])}
    truth = least(it, it.objective, limits)
    asked = {"seq_len": it.workload.seq_len, "global_batch": it.workload.global_batch, "precision": "bf16"}
    asked |= {"objective": it.objective, "limits": {f"step-{name}": most for name, most in limits.items()}}
    if math.isinf(truth):
        with pytest.raises((InfeasiblePlan, BadInput)):
            plan(it.model, it.cluster, pins=dict(it.pins), alternatives=0, **asked)
        return
    found = plan(it.model, it.cluster, pins=dict(it.pins), alternatives=0, **asked)

    assert found.status == "optimal"
    assert found.objective == pytest.approx(truth, rel=1e-9)
    assert found.bound <= truth * (1 + 1e-9)
