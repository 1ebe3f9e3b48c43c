"""Tables of what the planner knows."""

from __future__ import annotations

import pytest

from planner.errors import UnknownName
from planner.listing import KINDS, models_view, part_view, parts_view
from planner.read_model import preset_names
from planner.report import as_text
from topologies import catalogue
from topologies.ready import cluster_names


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_has_a_line(kind: str):
    text = as_text(parts_view(kind), 160)

    names = cluster_names() if kind == "clusters" else catalogue.names(kind)
    assert all(f" {name} " in text for name in names)


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_can_be_shown(kind: str):
    for name in cluster_names() if kind == "clusters" else catalogue.names(kind):
        assert name in as_text(part_view(kind, name), 160)


def test_every_figure_of_a_part_stands_with_its_source():
    part = catalogue.load("accelerators", "h100-sxm")
    text = as_text(part_view("accelerators", "h100-sxm"), 240)

    for field, figure in part.figures:
        if figure is not None:
            line = next(line for line in text.splitlines() if line.strip().startswith(field + " "))
            assert figure.source in line
    assert all(source.url in text for source in part.sources.values())


def test_announced_parts_say_so():
    announced = [name for name in catalogue.names("accelerators") if catalogue.load("accelerators", name).announced]
    lines = [line for line in as_text(parts_view("accelerators"), 160).splitlines() if ", announced" in line]

    assert sorted(line.split()[0] for line in lines) == announced


def test_every_model_has_a_line():
    text = as_text(models_view(), 160)

    assert all(f" {name} " in text for name in preset_names())


def test_names_that_are_none_are_refused_with_the_nearest():
    with pytest.raises(UnknownName, match="accelerators"):
        parts_view("accelerator")
    with pytest.raises(UnknownName, match="h100-sxm"):
        part_view("accelerators", "h100")
    with pytest.raises(UnknownName, match="dgx-h100"):
        part_view("clusters", "dgx-h10")
