"""Expansion from degrees to rows gives every legal row once and nothing else."""

from __future__ import annotations

from hypothesis import given
from oracle import all_rows, rows_of
from searching import space_of
from strategies import examples, instances

from cost_models.rows import AXIS_FACTORS
from planner.candidates import degree_table, relaxed_rows
from planner.search.expand import with_experts, with_placement, with_sharding

COLUMNS = ("tp", "cp", "dp_shard", "dp_replicate", "pp", "ep", "etp", "zero", "micro_batch", "micro_batches")


def as_tuples(rows):
    columns = [getattr(rows, name) for name in COLUMNS]
    factors = [column for axis in AXIS_FACTORS for column in rows.factors[axis].T]
    return list(zip(*(column.tolist() for column in (*columns, *factors)), strict=True))


@examples(120)
@given(instances(most_devices=8))
def test_expansion_is_the_whole_space(it):
    space, wanted = space_of(it), list(all_rows(it))
    if space is None:
        assert not wanted
        return
    degrees = degree_table(space)
    if not len(degrees):
        assert not wanted
        return
    rows = with_experts(space, relaxed_rows(space, degrees))
    rows = with_placement(space, rows) if len(rows) else rows
    rows = with_sharding(space, rows) if len(rows) else rows
    found = as_tuples(rows)

    assert len(set(found)) == len(found)
    assert set(found) == (set(as_tuples(rows_of(it, wanted))) if wanted else set())
