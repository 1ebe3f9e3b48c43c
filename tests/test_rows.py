"""Tables of strategies: derived degrees, selection, joining, and pricing each distinct row once."""

from __future__ import annotations

import numpy as np
import pytest
from costs import make_rows, make_strategy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cost_models.rows import AXIS_FACTORS, COLUMNS, Rows, unique_rows
from cost_models.strategy import ParallelDegrees, ServingSchedule, Strategy

FIELDS = list(COLUMNS)


def three_rows() -> Rows:
    sharded, long = make_rows("dp_shard", dp_shard=5, zero=1), make_rows(cp=7, micro_batch=11)
    return Rows.concat([make_rows(tp=2, pp=3), sharded, long])


def test_derived_degrees_by_hand():
    rows = make_rows(tp=2, cp=3, dp_shard=5, dp_replicate=7, pp=11, ep=15, etp=2)

    assert (rows.dp[0], rows.stage_size[0], rows.world_size[0], rows.edp[0]) == (35, 210, 2310, 7)


def test_used_multiplies_the_dense_axes_only():
    rows = make_rows("pp dp_replicate", tp=2, cp=3, dp_shard=5, dp_replicate=7, pp=11, ep=15, etp=2)

    assert rows.used().tolist() == [[30, 77]]


def test_the_row_of_a_strategy():
    degrees = {"tp": 2, "pp": 3, "dp_shard": 4, "ep": 4}
    strategy = make_strategy((1, 2) * 3, outer="pp", zero=2, micro_batch=5, micro_batches=6, **degrees)
    rows = Rows.of(strategy)
    expected = degrees | {"zero": 2, "micro_batch": 5, "micro_batches": 6, "virtual": 2}

    assert {name: int(getattr(rows, name)[0]) for name in FIELDS} == dict.fromkeys(FIELDS, 1) | expected
    assert {axis: tuple(rows.factors[axis][0]) for axis in AXIS_FACTORS} == strategy.placement


def test_serving_has_no_training_rows():
    with pytest.raises(TypeError, match="training"):
        Rows.of(Strategy(ParallelDegrees(), 0, ServingSchedule(), ()))


@pytest.mark.parametrize("index", [np.array([2, 0]), np.array([True, False, True])])
def test_take_picks_by_position_and_by_mask(index):
    rows = three_rows()
    some = rows.take(index)

    assert len(some) == 2
    for name in FIELDS:
        assert getattr(some, name).tolist() == getattr(rows, name)[index].tolist()
    for axis in AXIS_FACTORS:
        assert some.factors[axis].tolist() == rows.factors[axis][index].tolist()


def test_concat_undoes_take():
    rows = three_rows()
    again = Rows.concat([rows.take(np.array([i])) for i in range(3)])

    assert len(again) == 3 and again.tp.tolist() == [2, 1, 1] and again.micro_batch.tolist() == [1, 1, 11]
    assert again.factors["dp_shard"].tolist() == [[1, 1], [1, 5], [1, 1]]


COLUMNS = hnp.arrays(np.int64, st.tuples(st.integers(1, 30), st.integers(1, 6)), elements=st.integers(-3, 3))


@given(COLUMNS, st.integers(0, 5))
def test_unique_rows_names_the_first_of_each(table, at):
    first, inverse = unique_rows(table[:, at % table.shape[1]], table)

    assert (table[first][inverse] == table).all()
    assert len(first) == len({tuple(row) for row in table.tolist()})
    for k, position in enumerate(first):
        assert position == np.flatnonzero(inverse == k)[0]


def test_unique_rows_of_large_values_do_not_overflow():
    table = np.array([[2**62, i % 2, 2**61 + i // 2] * 9 for i in range(8)])

    assert len(unique_rows(*table.T)[0]) == 8
