"""The search over mixed pipelines against enumeration, its bounds, and what it does when nothing fits."""

import dataclasses
import math
import time
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from mixed_oracle import MixedInstance, best_step
from strategies import coarse_ticks, examples, models, small_cluster

from cost_models.mixed import Machine, evaluate_mixed
from cost_models.workload import Training
from planner.mixed.check import broken
from planner.search.budget import Budget
from planner.search.mixed import engine, packed
from planner.search.mixed.engine import MixedSearch
from planner.search.mixed.pipelines import strategy_of
from planner.search.mixed.space import MixedSpace
from topologies.mixed import MixedCluster, mixed_by_name

SHAPES = ((1, 1), (2, 1), (3, 1), (1, 2), (2, 2))
BASES = ("dgx-a100", "dgx-h100", "dgx-b200")


def mixed_of(*parts):
    """A mixed cluster of small parts."""
    join = mixed_by_name("dgx-a100+dgx-h100").join
    named = tuple(dataclasses.replace(part, name=f"part-{k}") for k, part in enumerate(parts))
    return MixedCluster("small-mixed", named, join)


@st.composite
def mixed_instances(draw, *several, most_layers=3) -> MixedInstance:
    """Parts of 1 to 4 devices, two unless shapes of ``several`` are given, a few layers, memory from ample to none, now
    and then a pin."""
    model = draw(models(most_layers=most_layers))
    shapes = [draw(st.sampled_from(some)) for some in several or (SHAPES, SHAPES[:3])]
    parts = [small_cluster(*shape, base=base) for shape, base in zip(shapes, BASES, strict=False)]
    workload = Training(
        seq_len=draw(st.sampled_from([64, 1024])), global_batch=draw(st.sampled_from([1, 2, 4, 6])),
        precision="bf16", optimizer=draw(st.sampled_from(["adam", "sgd"])),
    )  # fmt: skip
    machine = Machine.of(model, mixed_of(*parts), workload)
    fits = tuple(dataclasses.replace(f, context_bytes=0.0, communicator_bytes=1e4) for f in machine.fits)
    ticks = max((coarse_ticks(model, part, workload) for part in parts), key=lambda it: it.second)
    machine = dataclasses.replace(machine, fits=fits, ticks=ticks)
    rough = 18.0 * model.parameters + workload.seq_len * (40 * model.hidden * model.layers + 8 * model.vocab)
    room = draw(st.sampled_from([0.2, 0.4, 0.7, 1.0, 50.0]))
    pins = draw(st.sampled_from([(), (), (("tp", 1),), (("zero", 1),), (("recompute", "full"),)]))
    less = [1.0, *(draw(st.sampled_from([0.5, 1.0])) for _ in parts[1:])]
    return MixedInstance(machine, tuple(int(rough * room * part) for part in less), pins)


def search_of(it: MixedInstance, limit_s: float = 30.0, beat: float = math.inf) -> MixedSearch:
    return MixedSearch(MixedSpace(it.machine, dict(it.pins), it.limits), Budget(time.monotonic() + limit_s), beat)


@given(mixed_instances())
@examples(10)
def test_search_agrees_with_enumeration(it):
    """Proved, equal to the least of all pipelines, legal, and infeasible only where enumeration finds nothing."""
    truth, _ = best_step(it)
    search = search_of(it)
    found = search.run()

    assert found.bound <= truth * (1 + 1e-9)
    assert found.proved
    assert (found.best is None) == math.isinf(truth)
    if found.best is not None:
        assert abs(found.value - truth) <= 1e-8 * truth
        strategy = strategy_of(found.table, found.best)
        priced = evaluate_mixed(it.machine, strategy)
        assert priced.step == found.value
        assert broken(it.machine, strategy, priced, it.limits) == []


@given(mixed_instances(), st.floats(0.5, 2.0))
@examples(10)
def test_nothing_slower_than_asked_for_is_found(it, factor):
    """With a step to beat below the best there is nothing, and that is proved; else the same best is found.

    Beams so narrow that jobs are cut into bands, and units so large that they hold several stages, change nothing.
    """
    best = search_of(it).run().value
    if math.isfinite(best):
        with patch.multiple(engine, FIRST_WIDTH=1, WIDER=3), patch.object(packed, "MOST_UNITS", 6):
            found = search_of(it, beat=factor * best).run()
        assert found.proved
        assert (found.best is None) == (factor * best <= best)
        assert found.best is None or found.value == best
