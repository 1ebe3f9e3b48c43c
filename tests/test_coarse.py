"""The first bounds of degree tuples against enumeration."""

from __future__ import annotations

from hypothesis import given
from oracle import best_of_all
from searching import options_of, space_of
from strategies import examples, instances

from planner.candidates import degree_table, mesh_table
from planner.search.coarse import CoarseBounds


@examples(25)
@given(instances())
def test_coarse_bounds_hold(it):
    """What a (tp, cp, micro-batch) costs at least holds for every plan that has them."""
    answer, space = best_of_all(it), space_of(it)
    if space is None or answer.rows is None:
        return
    coarse, degrees, meshes = CoarseBounds(space, it.fits, options_of(it)), degree_table(space), mesh_table(space)
    bounds = coarse.of_degrees(degrees)
    names = ("tp", "cp", "pp", "dp", "micro_batch")
    bound = dict(zip(zip(*(getattr(degrees, n).tolist() for n in names), strict=True), bounds, strict=True))
    rows = zip(*(getattr(answer.rows, name).tolist() for name in names), strict=True)
    for key, value in zip(rows, answer.by_row, strict=True):
        assert bound[key] <= value
    outer = dict(
        zip(zip(*(getattr(meshes, n).tolist() for n in names[:4]), strict=True), coarse.of_meshes(meshes), strict=True)
    )
    for key, value in bound.items():
        assert outer[key[:4]] <= value * (1 + 1e-9)
