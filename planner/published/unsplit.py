"""Degrees that a row need not state: it shards in a way that splits no layer and no pipeline, or states others."""

from __future__ import annotations

import re

from planner.published.habits import title_size
from planner.published.layouts import sharding
from planner.published.machines import ready_cluster
from planner.published.sizes import Cells
from topologies.errors import BadInput

SPLITS_BY_HABIT = re.compile(r"megatron|primus|neuron|nanotron|paxml|t5x|amd-mlperf")
"""Stacks whose users split layers or pipelines beside sharding; those of the others say so where they do."""
WHOLE_BYTES = 8.0
"""Bytes a parameter of a rank of ZeRO-1 at least: weights in 16 bits, gradients in fp32, and a third as much to run."""
DATA_ONLY = re.compile(r"(?:py)?(?:torch )?DDP|(?:pure |plain )?(?:DP|data[ _-]parallel(?:ism)?)\b", re.IGNORECASE)


def assume_unsplit(cells: Cells) -> None:
    """Fill tp and pp with 1, as assumed, where weights or gradients are sharded, or whole, over all devices.

    That is FSDP, ZeRO-2 and 3 and DDP under a stack that does not split layers by habit. A source in no table that
    states another way to split (``pp = 16, ep = 64``) has none of those that it leaves out either, nor has one of
    ZeRO-1 and no degree at all whose weights and gradients fit one device.
    """
    text, splits = cells.row.get("zero_or_fsdp_stage", ""), not SPLITS_BY_HABIT.match(cells.source.stack)
    plain = splits and text and (DATA_ONLY.match(text) or _shards(text, cells))
    others = not cells.source.listed and any(cells.found.get(name, 1) > 1 for name in ("tp", "pp", "cp", "ep"))
    if plain or others or _is_whole(text, cells):
        for name in ("tp", "pp"):
            cells.fill(name, 1)


def _shards(text: str, cells: Cells) -> bool:
    """Whether gradients at least are sharded."""
    return _stage(text, cells) >= 2


def _is_whole(text: str, cells: Cells) -> bool:
    """Whether a row of a source in no table states ZeRO-1, and its model, by its title, fits one device whole."""
    size = title_size(cells.row["model"]).parameters
    if cells.source.listed or size is None or _stage(text, cells) != 1:
        return False
    return WHOLE_BYTES * size <= ready_cluster(cells.row["accelerator"], cells.source.prefix).memory_bytes


def _stage(text: str, cells: Cells) -> int:
    """The ZeRO stage that the row states, 0 where it states none."""
    try:
        group, assumed = sharding(text, cells.recipe, 1)
    except BadInput:
        return 0
    return 0 if "zero" in assumed else group.zero
