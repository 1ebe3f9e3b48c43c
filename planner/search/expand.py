"""From degrees to rows: every placement, expert mesh and ZeRO choice of a table of degrees."""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cost_models.rows import AXIS_FACTORS, Rows
from planner.candidates import Degrees, Space, divisors, placements

Ints = NDArray[np.int64]
Factors = tuple[int, ...]


def full_rows(space: Space, degrees: Degrees) -> tuple[Rows, Ints]:
    """All 1F1B rows of these degrees, and for each the position in ``degrees`` it came from."""
    parts, origin = [], []
    for position, key in enumerate(zip(*(getattr(degrees, a).tolist() for a in ("tp", "cp", "pp", "dp")), strict=True)):
        table = _choices(*key, _rules(space))
        parts.append(table)
        origin.append(np.full(len(table), position, dtype=np.int64))
    table, where = np.concatenate(parts), np.concatenate(origin)
    return _rows(space, degrees.take(where), table), where


def _rules(space: Space) -> tuple:
    """What the choices depend on beside the degrees, hashable."""
    sharded = (space.pins.get("dp_shard"), space.pins.get("dp_replicate"))
    return space.cluster.group_capacity, space.cluster.devices_per_host, space.ep, space.etp, space.zero, sharded


@lru_cache(maxsize=4096)
def _choices(tp: int, cp: int, pp: int, dp: int, rules: tuple) -> Ints:
    """``[choices, 1 + axes * levels]``: the ZeRO stage, then the factors in the order of ``AXIS_FACTORS``."""
    capacity, host_devices, ep_legal, etp_legal, zero_legal, pinned = rules
    rows: list[tuple[int, ...]] = []
    for f_tp, f_cp, f_dp, f_pp in placements((tp, cp, dp, pp), capacity, host_devices):
        stage = tuple(a * b * c for a, b, c in zip(f_tp, f_cp, f_dp, strict=True))
        experts = _expert_meshes(stage, ep_legal, etp_legal)
        for zero, shard, replicate in _sharding(f_dp, cp, stage, zero_legal, pinned):
            for etp, ep, edp in experts:
                rows.append((zero, *f_tp, *f_cp, *shard, *replicate, *f_pp, *etp, *ep, *edp))
    return np.array(rows, dtype=np.int64).reshape(len(rows), 1 + len(AXIS_FACTORS) * len(capacity))


def _sharding(
    f_dp: Factors, cp: int, stage: Factors, legal: tuple[int, ...], pinned: tuple
) -> list[tuple[int, Factors, Factors]]:
    """ZeRO stages with every split of the data-parallel factors into shard group and replicas."""
    found = []
    for shard in itertools.product(*(divisors(f) for f in f_dp)):
        replicate = tuple(a // b for a, b in zip(f_dp, shard, strict=True))
        degrees = int(np.prod(shard)), int(np.prod(replicate))
        if any(pin is not None and pin != degree for pin, degree in zip(pinned, degrees, strict=True)):
            continue
        nothing = degrees[0] == 1
        group = degrees[0] * cp
        found += [(z, shard, replicate) for z in legal if (nothing if z == 0 else group > 1)]
    return found


@lru_cache(maxsize=4096)
def _expert_meshes(
    stage: Factors, ep_legal: tuple[int, ...], etp_legal: tuple[int, ...]
) -> list[tuple[Factors, Factors, Factors]]:
    """Every (etp, ep, edp) whose product at each level is the stage's."""
    found = []
    for etp in itertools.product(*(divisors(s) for s in stage)):
        if int(np.prod(etp)) not in etp_legal:
            continue
        rest = tuple(s // e for s, e in zip(stage, etp, strict=True))
        for ep in itertools.product(*(divisors(r) for r in rest)):
            if int(np.prod(ep)) in ep_legal:
                found.append((etp, ep, tuple(r // e for r, e in zip(rest, ep, strict=True))))
    return found


def _rows(space: Space, degrees: Degrees, table: Ints) -> Rows:
    levels = len(space.cluster.group_capacity)
    factors = {axis: table[:, 1 + k * levels : 1 + (k + 1) * levels] for k, axis in enumerate(AXIS_FACTORS)}
    product = {axis: np.prod(values, axis=1) for axis, values in factors.items()}
    return Rows(
        tp=degrees.tp, cp=degrees.cp, dp_shard=product["dp_shard"], dp_replicate=product["dp_replicate"],
        pp=degrees.pp, ep=product["ep"], etp=product["etp"], zero=table[:, 0], micro_batch=degrees.micro_batch,
        micro_batches=space.workload.global_batch // (degrees.dp * degrees.micro_batch),
        virtual=np.ones_like(degrees.tp), factors=factors,
    )  # fmt: skip
