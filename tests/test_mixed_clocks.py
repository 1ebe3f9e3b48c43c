"""Clocks of stages of mixed pipelines: the search and what is derived again, against enumeration."""

import dataclasses
import math
import time
from unittest.mock import patch

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mixed_oracle import MixedInstance
from strategies import examples
from test_mixed_search import mixed_instances
from test_mixed_watts import LAST_PLACE, asked_for, in_racks, least, limits_of, shares

from cost_models.mixed import evaluate_mixed
from planner.mixed.check import broken
from planner.mixed.plan import pipelines_below
from planner.search.budget import Budget
from planner.search.mixed import engine, packed
from planner.search.mixed.pipelines import strategy_of
from planner.search.mixed.space import MixedSpace

pytestmark = pytest.mark.usefixtures("steady")

CLOCKS = ((1.0, 0.8), (1.0, 0.9, 0.8))


def searched(it: MixedInstance, power: dict[str, float], minimised: str = "time", **most):
    asked = asked_for(it, power, minimised, **most)
    space = MixedSpace(it.machine, dict(it.pins), it.limits, asked, it.clocks)
    return pipelines_below(space, Budget(time.monotonic() + 60), math.inf, lambda *_: None)


@st.composite
def clocked_instances(draw) -> MixedInstance:
    """Instances whose stages may have two or three clocks."""
    it = in_racks(draw(mixed_instances()), draw(st.sampled_from([1, 2])))
    return dataclasses.replace(it, clocks=draw(st.sampled_from(CLOCKS)))


@given(clocked_instances(), shares, st.booleans())
@examples(15)
def test_the_quickest_pipeline_within_watts_is_that_of_enumeration(it, share, narrow):
    power = limits_of(it, share)
    assume(power)
    truth = least(it, power)
    widths = {"FIRST_WIDTH": 1, "WIDER": 3} if narrow else {"WIDER": engine.WIDER}
    with patch.multiple(engine, **widths), patch.object(packed, "MOST_UNITS", 6):
        found = searched(it, power)

    assert found.bound <= truth * (1 + LAST_PLACE)
    assert found.value == pytest.approx(truth, rel=LAST_PLACE)
    assert found.proved
    if found.best is not None:
        strategy = strategy_of(found.table, found.best)
        assert {stage.clock for stage in strategy.stages} <= set(it.clocks)
        assert broken(it.machine, strategy, evaluate_mixed(it.machine, strategy), it.limits) == []


@given(clocked_instances(), shares)
@examples(15)
def test_the_thriftiest_pipeline_is_that_of_enumeration(it, share):
    power = limits_of(it, share)
    found, truth = searched(it, power, "energy"), least(it, power, "energy")

    assert found.bound <= truth * (1 + 1e-11)
    assert found.value == pytest.approx(truth, rel=1e-9)
    assert found.proved
