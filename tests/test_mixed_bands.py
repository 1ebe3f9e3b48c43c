"""Bands and counted devices of mixed pipelines against every chain of stages: none is lost, and counts are exact."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from unittest.mock import Mock, patch

import numpy as np
import pytest
from mixed_oracle import MixedInstance, simulated
from strategies import coarse_ticks, small_cluster, tiny_config
from test_mixed_search import mixed_of, search_of

from cost_models.mixed import Machine
from cost_models.pipeline import step_ticks
from cost_models.workload import Training
from planner.read_model import read_model
from planner.search.mixed import bands, engine, jobs, outline, packed, pipelines
from planner.search.mixed.labels import LabelSearch
from planner.search.mixed.pipelines import Pipeline, durations, quickest
from planner.search.mixed.relaxation import Relaxation
from planner.search.mixed.stages import Stages

pytestmark = pytest.mark.usefixtures("steady")


def instance(room: float, layers: int = 4, sequences: int = 12) -> MixedInstance:
    """Layers on two A100 and four H100, micro-batches of one or more."""
    model = read_model(tiny_config(num_hidden_layers=layers))
    parts = [small_cluster(2, 1, base="dgx-a100"), small_cluster(2, 2, base="dgx-h100")]
    workload = Training(seq_len=1024, global_batch=sequences, precision="bf16")
    machine = Machine.of(model, mixed_of(*parts), workload)
    ticks = max((coarse_ticks(model, part, workload) for part in parts), key=lambda it: it.second)
    fits = tuple(dataclasses.replace(f, context_bytes=0.0, communicator_bytes=1e4) for f in machine.fits)
    rough = 18.0 * model.parameters + workload.seq_len * (40 * model.hidden * model.layers + 8 * model.vocab)
    limit = int(rough * room)
    return MixedInstance(dataclasses.replace(machine, fits=fits, ticks=ticks), (limit, limit), (("tp", 1),))


def chains(stages: Stages, devices: np.ndarray) -> Iterator[list[int]]:
    """Every chain of stages from the end of the model to its beginning that has devices enough, last stage first."""
    part, size = stages.slots.part[stages.slot], stages.slots.size[stages.slot]

    def longer(chain: list[int], i: int, left: np.ndarray) -> Iterator[list[int]]:
        if i == 0:
            yield chain
            return
        fits = (stages.depth == len(chain) + 1) & (stages.j == i) & (size <= left[part])
        for k in np.flatnonzero(fits):
            rest = left.copy()
            rest[part[k]] -= size[k]
            yield from longer([*chain, int(k)], int(stages.i[k]), rest)

    return longer([], stages.table.layers, devices)


def way_and_waiting(stages: Stages, chain: list[int]) -> tuple[float, float]:
    """``A_pp`` with the first stage's tail, and ``M = max_d [A_d + (m - 1 - d) t_d]``."""
    m, way, waiting = stages.table.micro_batches, 0.0, -math.inf
    for depth, k in enumerate(chain, 1):
        way += stages.time[k] + stages.hop[k]
        waiting = max(waiting, way + (m - 1 - depth) * stages.time[k])
    return way + stages.tail[chain[-1]], waiting


def identity(stages: Stages, k: int) -> tuple[int, ...]:
    return int(stages.depth[k]), int(stages.j[k]), int(stages.n[k]), int(stages.slot[k])


@lru_cache(maxsize=4)
def relaxed_jobs(room: float) -> list[tuple[Stages, np.ndarray, np.ndarray]]:
    """Stages, devices and first prices of every set of pipelines that the search opens, where bands are possible."""
    it, made, found = instance(room), jobs.job_of, []

    def recorded(stages, devices, start, limit, floor, most, others):
        if most < stages.table.micro_batches and any(chains(stages, devices)):
            found.append((stages, devices, start))
        return made(stages, devices, start, limit, floor, most, others)

    with patch.object(outline, "job_of", recorded), patch.multiple(engine, EAGER=(math.inf,), FIRST_CEILING=100.0):
        search_of(it).run()
    assert found
    return found


@pytest.mark.parametrize("bands_of", [bands.held_bands, bands.leaning_bands])
@pytest.mark.parametrize("room", [0.3, 50.0])
def test_no_chain_below_the_limit_is_lost(room, bands_of):
    """Every one lies in a band that has all its stages and whose bound it does not undercut, the last just so."""
    halved, within = 0, 0
    for (stages, devices, start), above in itertools.product(relaxed_jobs(room), (0, 1, 2, 5, 10, 30)):
        ways = [(*way_and_waiting(stages, chain), chain) for chain in chains(stages, devices)]
        steps = sorted({way + waiting for way, waiting, _ in ways})
        limit = steps[min(above, len(steps) - 1)] + 0.5
        with patch.object(bands, "HELD", dataclasses.replace(bands.HELD, few=0)):
            found = bands_of(stages, devices, start, limit, math.inf)
        kept = [{identity(it.relaxations[0].stages, k) for k in range(len(it.relaxations[0].stages))} for it in found]
        halved += len(found) > 1
        for way, waiting, chain in ways:
            if way + waiting < limit:
                mine = [k for k, band in enumerate(found) if band.floor <= waiting <= band.cap]
                assert any({identity(stages, k) for k in chain} <= kept[b] for b in mine)
                assert min(found[b].bound for b in mine) <= way + waiting
                within += 1
    assert halved
    assert within > 20


@pytest.mark.parametrize("room", [0.3, 50.0])
def test_no_stage_takes_less_than_outlined(room):
    """At every depth and by every way; and with one micro-batch in flight and nothing recomputed it takes just that."""
    alike = 0
    for stages, _, _ in relaxed_jobs(room):
        table = stages.table
        flight, segment = (a.ravel() for a in np.indices((table.flights, len(table.segments.i))))
        for way in range(len(table.part)):
            at, found = table.columns(way, flight + 1, segment)
            assert (table.base[way, segment[at]] <= found.forward + found.backward).all()
            alike += (table.base[way, segment[at]] == found.forward + found.backward).sum()
    assert alike


@pytest.mark.parametrize("room", [0.3, 50.0])
def test_stages_priced_together_are_what_each_is_alone(room):
    """All ways of a part at once, and all that are asked for at once, some of which do not fit."""
    fitting = set()
    for stages, _, _ in relaxed_jobs(room):
        table, ways = stages.table, np.arange(len(stages.table.part))
        way, flight, segment = (a.ravel() for a in np.indices((len(ways), table.flights, len(table.segments.i))))
        for part in np.unique(table.part):
            mine = np.flatnonzero(table.part[way] == part)
            fits, found = table.quickest(part, way[mine], flight[mine] + 1, segment[mine])
            fitting.update(fits.tolist())
            for one in ways[table.part == part]:
                here = way[mine] == one
                at, alone = table.columns(one, flight[mine][here] + 1, segment[mine][here], quickest=True)
                assert np.array_equal(np.flatnonzero(fits[here]), at)
                for name in ("forward", "backward", "tail", "full", "selective"):
                    assert np.array_equal(getattr(found, name)[here][at], getattr(alone, name))
        again = dataclasses.replace(table, known={})
        again.learn(way, flight + 1, segment)
        for key in zip(way.tolist(), (flight + 1).tolist(), segment.tolist(), strict=True):
            assert again.known[key] == table.each(*key)
    assert fitting == ({True, False} if room < 1 else {True})


@pytest.mark.parametrize("room", [0.3, 50.0])
def test_pipelines_below_a_value_are_found_with_less_run(room):
    """Those that cannot be below it are not run: each of the others has the same value and the same ways."""
    skipped = 0
    for stages, devices, _ in relaxed_jobs(room):
        several = [
            [(int(stages.slot[k]), int(stages.i[k]), int(stages.j[k])) for k in reversed(chain)]
            for chain in chains(stages, devices)
        ]
        whole = quickest(stages.table, stages.slots, several)
        below = float(np.median([value for value, _ in whole]))
        with patch.object(pipelines, "step_ticks", Mock(wraps=step_ticks)) as run:
            found = quickest(stages.table, stages.slots, several, below=below)
        skipped += len(several) - sum(len(call.args[3]) for call in run.call_args_list) // 2
        for (value, pipeline), (other, same) in zip(whole, found, strict=True):
            assert (value < below) == (other < below)
            assert value >= below or (value == other and np.array_equal(pipeline.way, same.way))
    assert skipped


@pytest.mark.parametrize("room", [0.3, 50.0])
def test_outlined_stages_that_are_left_hold_every_chain_below_the_limit(room):
    for stages, devices, start in relaxed_jobs(room):
        least, m = {}, stages.table.micro_batches
        for chain in chains(stages, devices):  # a stage is busy for m micro-batches, which the maxima do not say
            least[max(sum(way_and_waiting(stages, chain)), m * max(stages.time[chain]))] = chain
        limit = 1.2 * min(least)
        lengths = 2, stages.table.micro_batches - 1
        outlined = outline.Outline.of(stages.slots, devices, lengths, start, limit, limit)
        left = outlined.job(limit, 0.0).relaxations[0].stages
        kept = {identity(left, k) for k in range(len(left))}
        for step, chain in least.items():
            assert outlined.bound <= step
            assert step >= limit or {identity(stages, k) for k in chain} <= kept


def pipeline_of(stages: Stages, chain: list[int]) -> Pipeline:
    """A chain with the ways that take just the time, and the first stage's tail, that it has."""
    table, ways = stages.table, []
    for k in reversed(chain):
        flight, segment = int(table.flight(stages.depth[k])), int(table.segments.index[stages.i[k], stages.j[k]])
        costs = {int(way): table.one(int(way), flight, segment) for way in stages.slots.members[stages.slot[k]]}
        ways.append(next(
            way for way, (forward, backward, tail, *_) in costs.items()
            if forward + backward == stages.time[k] and stages.tail[k] in (0, tail)
        ))  # fmt: skip
    return Pipeline(np.array(ways), stages.i[chain[::-1]], stages.j[chain[::-1]])


@pytest.mark.parametrize("room", [0.3, 50.0])
@pytest.mark.parametrize("width", [1, 3, 100_000])
def test_labels_bound_every_pipeline(room, width):
    """Whatever their beam leaves out; a wide one leaves out nothing and bounds the best of them closely."""
    for stages, devices, start in relaxed_jobs(room):
        steps = [durations(stages.table, pipeline_of(stages, chain)).step for chain in chains(stages, devices)]
        limit = 1.3 * min(steps)
        job = jobs.job_of(stages, devices, start, limit, 0.0, stages.table.micro_batches - 1)
        found = job.search(limit).run(width)

        assert found.bound <= min(steps) * (1 + 1e-9)
        assert width < 1000 or (not found.dropped and found.bound >= 0.97 * min(steps))


@pytest.mark.parametrize("room", [0.3, 50.0])
def test_devices_are_counted_exactly_and_in_units_from_below(room):
    for stages, devices, _ in relaxed_jobs(room):
        relaxed = Relaxation(stages, devices, "band")
        whole = np.array([relaxed.layers]), devices[None]
        exact = packed.packed(relaxed)
        with patch.object(packed, "MOST_UNITS", 6):
            coarse = packed.packed(relaxed)
        least = min(relaxed.terms[chain].sum() for chain in chains(stages, devices))

        assert (exact.unit == 1).all()
        assert (coarse.unit > 1).any()
        assert exact.at(0, *whole)[0] == pytest.approx(least, rel=2 * packed.ROUNDING)
        assert exact.whole(devices) <= least
        assert coarse.at(0, *whole)[0] <= least * (1 + 1e-12)


@pytest.mark.parametrize("room", [0.3, 50.0])
def test_devices_that_no_unit_counts_are_priced(room):
    """Counts are no lower than prices alone, and nothing ahead of any part of a chain costs less than they say."""
    priced = 0
    for stages, devices, start in relaxed_jobs(room):
        relaxed = Relaxation(stages, devices, "band")
        root = relaxed.bound(start, math.inf)
        with patch.object(packed, "MOST_UNITS", 6):
            coarse = packed.packed(relaxed)
        part, size = stages.slots.part[stages.slot], stages.slots.size[stages.slot]
        priced += (coarse.mu > 0).any()
        assert coarse.whole(devices) >= root - 2 * packed.ROUNDING * (root + coarse.mu @ devices)
        for chain in chains(stages, devices):
            for depth in range(len(chain)):
                idle = devices - np.bincount(part[chain[:depth]], size[chain[:depth]], len(devices)).astype(int)
                i = np.array([stages.j[chain[depth]]])
                least = relaxed.terms[chain[depth:]].sum()
                assert coarse.at(depth, i, idle[None])[0] <= least * (1 + 1e-12)
    assert priced


def with_two_first_stages(stages: Stages) -> Stages:
    """Each first stage twice: as quick as it is with a tail as long as itself, and slower with none."""
    row = np.repeat(np.arange(len(stages)), 1 + (stages.i == 0))
    again, first = np.diff(row, prepend=-1) == 0, stages.i[row] == 0
    tail = np.where(first & ~again, stages.time[row], 0.0)
    return dataclasses.replace(stages.take(row), time=np.ceil(stages.time[row] * (1 + 0.01 * again)), tail=tail)


def step_of(stages: Stages, hop_of: Callable, chain: list[int]) -> int:
    """The step of a chain by simulation, a third of each stage's time forward."""
    k = np.array(chain[::-1])
    time, tail, slot = stages.time[k].astype(np.int64), stages.tail[k].astype(np.int64), stages.slot[k]
    parts = (time // 3, time - time // 3, tail, hop_of(slot[:-1], slot[1:]).astype(np.int64))
    return int(simulated(stages.table.micro_batches, *(part[:, None] for part in parts))[0])


def test_a_slower_first_stage_with_a_shorter_tail_is_not_lost():
    given, devices, start = relaxed_jobs(50.0)[0]
    stages, most = with_two_first_stages(given), given.table.micro_batches - 1
    hop_of = jobs.job_of(stages, devices, start, 1e18, 0.0, most).search(1e18)._hop
    steps = {step_of(stages, hop_of, chain): chain for chain in chains(stages, devices)}
    best, limit = min(steps), 1.3 * min(steps)
    found = jobs.job_of(stages, devices, start, limit, 0.0, most).search(limit).run(100_000)

    assert stages.tail[steps[best][-1]] == 0
    assert not found.dropped and found.bound <= best * (1 + 1e-9)


@pytest.mark.parametrize("width", [3, 100_000])
@pytest.mark.parametrize("lean", bands.LEANING.leans)
@pytest.mark.parametrize("room", [0.3, 50.0])
def test_labels_of_a_band_bound_its_pipelines(room, lean, width):
    """However wide it is, whatever its prices lean on, and though nothing is asked for but the best of them."""
    for stages, devices, start in relaxed_jobs(room):
        steps = {}
        for chain in chains(stages, devices):
            step = durations(stages.table, pipeline_of(stages, chain)).step
            added = step - way_and_waiting(stages, chain)[0]
            steps[added] = min(step, steps.get(added, math.inf))
        for cap in sorted(steps)[:: max(1, len(steps) // 12)]:
            least = min(step for added, step in steps.items() if added <= cap)
            limit = least + 0.5
            plain = Relaxation(stages, devices, "band")
            relaxed = Relaxation(stages, devices, "band", lean=lean)
            for one in (plain, relaxed):
                one.bound(start, limit)
            found = LabelSearch([plain, relaxed], limit, 0.0, cap + 0.5).run(width)
            assert found.bound <= least * (1 + 1e-9)


@pytest.mark.parametrize("room", [0.3, 50.0])
def test_a_probe_raises_no_bound_above_a_pipeline(room):
    """Probes of every job that has a bound below what is asked for, whatever is known before."""
    raised = 0
    for stages, devices, start in relaxed_jobs(room):
        m = stages.table.micro_batches
        best = min(durations(stages.table, pipeline_of(stages, chain)).step for chain in chains(stages, devices))
        for above in (1.05, 1.3, 3.0):
            job = jobs.job_of(stages, devices, start, above * best, 0.0, m - 1)
            before, search = job.bound, search_of(instance(room))
            search.devices, search.ceiling = devices, above * best
            if job.bound < search.limit:
                search._probe(job)
                assert job.bound <= best
                raised += job.bound > before
    assert raised


@pytest.mark.parametrize("kind", ["returning", "staying", "band"])
@pytest.mark.parametrize("room", [0.3, 50.0])
def test_prices_far_too_high_promise_no_more_than_there_is(room, kind):
    """Where every pipeline takes all devices of a part, no price of theirs is too high, and all give one bound: the
    difference of two numbers millions of times as large. Against sums that round nothing."""
    for stages, devices, start in relaxed_jobs(room):
        part, size = stages.slots.part[stages.slot], stages.slots.size[stages.slot]
        every = [np.array(chain) for chain in chains(stages, devices)]
        used = np.array([np.bincount(part[chain], size[chain], len(devices)) for chain in every])
        for room_for in np.unique(used, axis=0):
            relaxed = Relaxation(stages, room_for.astype(np.int64), kind)
            fitting = [chain for chain, mine in zip(every, used, strict=True) if (mine <= room_for).all()]
            sums = [sum(Fraction(float(cost)) for cost in relaxed.terms[chain]) for chain in fitting]
            for far in (1e4, 1e6, 1e8):
                assert relaxed.bound(far * start, math.inf) * (1 - 1e-12) <= min(sums)
                through = relaxed.through() * (1 - 1e-12)
                assert all((through[chain] <= cost).all() for chain, cost in zip(fitting, sums, strict=True))
