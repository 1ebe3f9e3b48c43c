"""Legality of a strategy's schedule: its name, virtual stages, cuts, recompute, clocks and micro-batches in flight.

1f1b                   one virtual stage a device, any cut
interleaved            several, even cuts, micro-batches a multiple of pp
zb-h1, eager-1f1b      one, any cut, pp above 1; eager holds more micro-batches than pp, less than twice as many
zbv, v-half, v-min     two, alike but for the ends; device s holds virtual stages s and 2 pp - 1 - s
dualpipev              as these, with at least 2 pp micro-batches
dualpipe               one, alike but for the ends, of which device s also holds pp - 1 - s; pp even from 4;
                       micro-batches even, at least 2 pp
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cost_models.model_graph import ModelGraph
from cost_models.rows import Rows
from cost_models.strategy import Stage, Strategy

VIRTUAL = {"1f1b": 1, "zb-h1": 1, "eager-1f1b": 1, "zbv": 2, "v-half": 2, "v-min": 2, "dualpipev": 2,
           "dualpipe": 1}  # fmt: skip
V_SHAPED = ("zbv", "v-half", "v-min", "dualpipev")
TWO_STAGES = (*V_SHAPED, "dualpipe")
FEW_CUTS = ("interleaved", *TWO_STAGES)


def broken_schedule(model: ModelGraph, it: Strategy) -> Iterator[str]:
    """Every rule of its schedule that ``it`` breaks, in words."""
    s, pp = it.schedule, it.degrees.pp
    yield from _name(it)
    if s.kind == "1f1b" and s.virtual_stages == 1:
        return
    if pp == 1:
        more = f" with virtual_stages={s.virtual_stages}" if s.virtual_stages > 1 else ""
        yield f"schedule {s.kind!r}{more} without pipeline stages (pp=1); take 1f1b with virtual_stages=1"
    if s.kind == "interleaved" and s.micro_batches % pp:
        yield f"micro_batches={s.micro_batches} is not a multiple of pp={pp}, which interleaving needs"
    yield from _micro_batches(it)
    if s.kind not in FEW_CUTS:
        return
    yield from _cut(model, it)
    if len(it.stages) == pp * s.virtual_stages:
        yield from _alike_within(it)


def _name(it: Strategy) -> Iterator[str]:
    s, pp = it.schedule, it.degrees.pp
    if s.kind not in (*VIRTUAL, "interleaved"):
        yield f"schedule {s.kind!r} is none; legal: interleaved, {', '.join(VIRTUAL)}"
    if s.kind == "interleaved" and s.virtual_stages == 1:
        yield "schedule 'interleaved' with virtual_stages=1; that many are '1f1b'"
    elif s.kind == "1f1b" and s.virtual_stages > 1:
        yield f"schedule '1f1b' with virtual_stages={s.virtual_stages}; that many are 'interleaved'"
    elif s.kind in VIRTUAL and s.virtual_stages != VIRTUAL[s.kind]:
        yield f"schedule {s.kind!r} with virtual_stages={s.virtual_stages}; it has {VIRTUAL[s.kind]}"
    if s.kind == "eager-1f1b" and not pp < s.in_flight < 2 * pp:
        yield f"in_flight={s.in_flight} micro-batches of eager-1f1b; legal with pp={pp}: {pp + 1} to {2 * pp - 1}"
    elif s.kind != "eager-1f1b" and s.in_flight:
        yield f"in_flight={s.in_flight} with schedule {s.kind!r}, which leaves no choice; only eager-1f1b takes it"


def _micro_batches(it: Strategy) -> Iterator[str]:
    """What DualPipe asks of stages and micro-batches."""
    s, pp = it.schedule, it.degrees.pp
    if s.kind in ("dualpipe", "dualpipev") and s.micro_batches < 2 * pp:
        yield f"micro_batches={s.micro_batches} of {s.kind} with pp={pp}; it needs at least 2*pp = {2 * pp}"
    if s.kind == "dualpipe" and s.micro_batches % 2:
        yield f"micro_batches={s.micro_batches} of dualpipe is odd; half of them enter at either end"
    if s.kind == "dualpipe" and (pp % 2 or pp < 4):
        yield f"pp={pp} with schedule 'dualpipe'; it has an even number of stages, from 4"


def _cut(model: ModelGraph, it: Strategy) -> Iterator[str]:
    sizes, kind = it.layers_per_stage, it.schedule.kind
    if kind == "interleaved" and not _even(model.layers, sizes):
        yield (
            f"interleaved stages of {list(sizes)} layers are uneven; all must be equal, where the "
            f"embedding, the head or both may count as one layer"
        )
    inner = set(sizes[1:-1])
    if kind != "interleaved" and (len(inner) > 1 or (inner and max(sizes[0], sizes[-1]) > max(inner) + 1)):
        yield (
            f"{kind} stages of {list(sizes)} layers are uneven; all must be equal but the first and the last, which "
            "may hold fewer, or one more"
        )


def device_of(it: Strategy, stage: int) -> int:
    """The pipeline rank that holds a virtual stage; of two that do, the first."""
    pp = it.degrees.pp
    if it.schedule.kind == "dualpipe":
        return min(stage, pp - 1 - stage)
    back = VIRTUAL.get(it.schedule.kind) == 2 and stage >= pp
    return 2 * pp - 1 - stage if back else stage % pp


def broken_clocks(it: Strategy) -> Iterator[str]:
    """Clocks that are none, and virtual stages of one device that differ in theirs."""
    for s, stage in enumerate(it.stages):
        mine = device_of(it, s)
        if not 0 < stage.clock <= 1:
            yield f"stage {s} runs at {stage.clock} of the full clock; a clock is a fraction above 0, up to 1"
        elif stage.clock != it.stages[mine].clock:
            yield f"stages {mine} and {s} have clocks {it.stages[mine].clock} and {stage.clock}, but one device"


def _alike_within(it: Strategy) -> Iterator[str]:
    for device in sorted({device_of(it, s) for s in range(len(it.stages))}):
        mine = tuple(stage for s, stage in enumerate(it.stages) if device_of(it, s) == device)
        if not _alike(mine):
            yield f"the virtual stages of pipeline rank {device} recompute differently; they must all do the same"


def _even(layers: int, sizes: tuple[int, ...]) -> bool:
    counted = [
        {sizes[0] + first, *sizes[1:-1], sizes[-1] + last} for first in (0, 1) for last in (0, 1) if len(sizes) > 1
    ]
    return sum(sizes) == layers and min(sizes) >= 1 and any(len(values) == 1 for values in counted)


def _alike(stages: tuple[Stage, ...]) -> bool:
    """Whether one pair of counts, cut short where a stage has fewer layers, gives every stage."""
    full = max(stage.recomputed("full") for stage in stages)
    selective = max(stage.recomputed("selective") for stage in stages)
    for stage in stages:
        a = min(full, stage.layers)
        if (stage.recomputed("full"), stage.recomputed("selective")) != (a, min(selective, stage.layers - a)):
            return False
    return True


def can_run(rows: Rows) -> NDArray[np.bool_]:
    """Rows whose pinned schedule has the stages and micro-batches that it needs."""
    if not rows.schedule.startswith("dualpipe"):
        return rows.pp > 1
    enough = (rows.pp > 1) & (rows.micro_batches >= 2 * rows.pp)
    even = (rows.pp >= 4) & (rows.pp % 2 == 0) & (rows.micro_batches % 2 == 0)
    return enough & (even | (rows.schedule == "dualpipev"))
