"""Predictions of published rows: one by hand, every row with a line or a reason, meters, left-out ratios."""

from __future__ import annotations

import dataclasses

import pytest
from costs import make_rows, make_stages
from measured import machine, make_case, make_job, model

from cost_models.calibration import calibrate
from cost_models.compute import layer_compute, optimizer_work
from cost_models.intervals import at_most, interval
from cost_models.strategy import RECOMPUTE, TrainingSchedule
from planner.published import predict as predictions
from planner.published.predict import (
    GIB,
    SUPPLY_EFFICIENCY,
    left_out,
    predict,
    prepared,
    priced,
    recomputing,
    step_and_memory,
    step_s,
)
from planner.published.settings import with_settings
from tests.published_rows import job as published_job
from topologies.errors import BadInput

ALONE = make_job()


def by_hand() -> tuple[float, float]:
    """Seconds and dynamic joules of :data:`ALONE`: every layer forward and backward on one device, one update."""
    job, graph = with_settings(ALONE), model()
    fits = calibrate(job.cluster, job.workload.stack)
    layers = (*(graph.kinds[k] for k in graph.order), graph.embedding, graph.head)
    total_s = joules = 0.0
    for layer in layers:
        compute = layer_compute(layer, make_rows(), job.cluster, job.workload, fits)
        update = optimizer_work(make_rows().tp * float(layer.parameters), job.cluster, job.workload, fits)
        for work in (compute.forward, compute.backward, update):
            total_s, joules = total_s + float(work.seconds[0]), joules + float(work.joules[0])
    return total_s, joules


def lines_of(*cases):
    return {(line.case.id, line.quantity): line for line in predict(cases)}


def test_one_row_by_hand():
    case = make_case("mb-1", step_s=0.5, mem=3.0, job=ALONE)
    found, (seconds, _) = lines_of(case), by_hand()
    step, memory, fits = (found["mb-1", name] for name in ("step_s", "peak_mem_gib", "fits"))

    of = ("megatron-core", "dense", "hopper", "h100-sxm")

    assert len(found) == 3
    assert step.predicted == pytest.approx(seconds, rel=1e-6)
    assert (step.low, step.high) == interval("time", step.predicted, *of, hosts=1)
    assert memory.predicted == pytest.approx(priced(prepared(ALONE), calibrate(machine())).need_bytes / GIB)
    assert (memory.low, memory.high) == interval("memory", memory.predicted, *of, hosts=1)
    assert (step.measured, memory.measured, fits.measured, fits.predicted) == (0.5, 3.0, None, 1.0)


@pytest.mark.parametrize(("meter", "factor"), [("AC", 1.0), ("DC", SUPPLY_EFFICIENCY)])
def test_a_nodes_watts_by_hand(meter, factor):
    """A host, its eight devices idle, and what the one that computes draws above that; less behind the supplies."""
    job = dataclasses.replace(ALONE, switches={"meter": meter})
    (line,) = predict([make_case("pow-1", node_w=4000.0, job=job)])
    (seconds, joules), figures = by_hand(), machine().accelerator.figures
    plug_w = machine().host.figures.power.value + 8 * figures.idle_power.value + joules / seconds

    assert (line.quantity, line.measured) == ("node_w", 4000.0)
    assert line.predicted == pytest.approx(factor * plug_w, rel=1e-6)


def test_every_row_has_a_line_for_each_of_its_figures(monkeypatch):
    """A job that cannot be priced and a row without one say why; what could be measured is predicted too."""
    cases = [
        make_case("a-1", step_s=1.0),
        make_case("a-2", fits=0),
        make_case("a-3", step_s=1.0, mem=9.0, job=None, missing="no sequence length"),
        make_case("a-4", step_s=1.0, cluster="dgx-a100"),
        make_case("a-5", job=None, missing="no figure"),
    ]

    def known_only(cluster, *more):
        if cluster.name != machine().name:
            raise BadInput(f"no kernels of {cluster.name!r}")
        return calibrate(cluster, *more)

    monkeypatch.setattr(predictions, "calibrate", known_only)
    found, done = lines_of(*cases), []
    predict(cases, progress=lambda *at: done.append(at))

    figures = ("step_s", "peak_mem_gib", "fits")
    assert set(found) == {
        *((id, name) for id in ("a-1", "a-2") for name in figures), ("a-3", "step_s"), ("a-3", "peak_mem_gib"),
        ("a-4", "step_s"),
    }  # fmt: skip
    assert {line.reason for key, line in found.items() if key[0] == "a-3"} == {"no sequence length"}
    assert found["a-4", "step_s"].reason == "no kernels of 'dgx-a100:1'"
    for line in found.values():
        assert (line.predicted is None) == bool(line.reason)
    assert done == [(i, 5) for i in range(1, 6)]


def test_a_device_too_small_does_not_fit():
    need = priced(prepared(ALONE), calibrate(machine())).need_bytes
    small = smaller(0.9 * need)
    found = lines_of(make_case("a-1", fits=0, job=dataclasses.replace(ALONE, cluster=small)))

    assert found["a-1", "fits"].predicted == 0.0
    assert (found["a-1", "fits"].low, found["a-1", "fits"].high) == (None, None)


@pytest.mark.parametrize(("room", "fits"), [(0.99, 0.0), (1.01, 1.0)])
def test_a_run_fits_where_five_of_six_like_it_would(room, fits):
    """At a hundredth less and more than what five of six take, which is above what is predicted."""
    need = priced(prepared(ALONE), calibrate(machine())).need_bytes
    most = at_most("memory", 5 / 6, "megatron-core", "dense", "hopper", "h100-sxm", False, 1)
    job = dataclasses.replace(ALONE, cluster=smaller(room * most * need))

    assert most > 1.01
    assert lines_of(make_case("a-1", job=job))["a-1", "fits"].predicted == fits


@pytest.mark.parametrize(("recompute", "fits"), [("least", 1.0), ("none", 0.0)])
def test_recompute_that_nobody_states_may_be_what_it_takes_to_fit(recompute, fits):
    """A thousandth more than all activations take: five of six fit with recompute alone."""
    job = dataclasses.replace(make_job(micro_batch=128), switches={"recompute": recompute})
    need = priced(with_settings(job), calibrate(machine(), with_settings(job).workload.stack)).need_bytes
    case = make_case("a-1", job=dataclasses.replace(job, cluster=smaller(1.001 * need)))

    assert lines_of(case)["a-1", "fits"].predicted == fits


def _shape(job):
    schedule = job.strategy.schedule
    return schedule.virtual_stages, schedule.micro_batches, schedule.micro_batch


def smaller(memory_bytes: float):
    """The host with that much memory a device left."""
    part = machine().accelerator
    figure = part.figures.memory_usable or part.figures.memory_capacity
    left = {"memory_usable": figure.model_copy(update={"value": memory_bytes})}
    figures = part.figures.model_copy(update=left)
    return dataclasses.replace(machine(), accelerator=part.model_copy(update={"figures": figures}))


@pytest.mark.parametrize(("least", "most"), [("least", "full"), ("least modules", "selective")])
def test_the_least_recompute_that_fits(least, most):
    """With memory for what a choice needs: the first that needs no more; with memory for none, the last one tried."""
    job = dataclasses.replace(make_job(micro_batch=8), switches={"recompute": least})
    tried = RECOMPUTE[: RECOMPUTE.index(most) + 1]
    stack = with_settings(job).workload.stack
    fits = calibrate(machine(), stack)
    need = {choice: priced(with_settings(recomputing(job, choice)), fits).need_bytes for choice in tried}

    assert need[most] <= need["none"] and (most != "full" or need["full"] < need["selective"])
    for choice in tried:
        first = next(other for other in tried if need[other] <= need[choice])
        found = prepared(dataclasses.replace(job, cluster=smaller(need[choice] + 1)))
        assert found.strategy == recomputing(job, first).strategy
    assert prepared(dataclasses.replace(job, cluster=smaller(1e6))).strategy == recomputing(job, most).strategy
    stated = dataclasses.replace(job, switches={"recompute": "none"}, cluster=smaller(1e6))
    assert prepared(stated).strategy == job.strategy


def test_as_many_layers_are_recomputed_as_are_counted():
    """Three of four layers whole take three times what one takes more, whatever the memory."""
    job = make_job(micro_batch=8)
    told = {n: prepared(dataclasses.replace(job, switches={"recompute": f"full, block, {n} layers"})) for n in (1, 3)}
    assert told[3].strategy == recomputing(job, "none", 3).strategy
    seconds = {n: step_s(one, {}) for n, one in told.items()}
    none = step_s(prepared(dataclasses.replace(job, switches={"recompute": "none"})), {})
    assert seconds[3] - none == pytest.approx(3 * (seconds[1] - none), rel=1e-3) and seconds[1] > none


@pytest.mark.parametrize(
    ("left_open", "tried"),
    [
        (("micro_batch",), {(1, 8, 1), (1, 4, 2), (1, 2, 4), (1, 1, 8)}),
        (("micro_batch", "vpp"), {(1, 8, 1), (1, 4, 2), (1, 2, 4), (1, 1, 8), (2, 8, 1), (2, 4, 2), (2, 2, 4)}),
    ],
)
def test_a_schedule_that_nobody_states_is_the_quickest_that_fits(left_open, tried):
    """Two stages of two layers and 8 sequences a rank: ``(virtual stages, micro-batches, size)``."""
    base = make_job(pp=2)
    plan = dataclasses.replace(
        base.strategy, schedule=TrainingSchedule("1f1b", 1, 1, 8), stages=make_stages((2, 2)), zero=0
    )
    job = dataclasses.replace(base, strategy=plan, switches={"quickest": left_open, "recompute": "none"})
    fits = calibrate(machine(), with_settings(job).workload.stack)
    found = {
        _shape(one): (
            *step_and_memory(with_settings(one), fits), one.strategy
        )
        for one in predictions._schedules(job)
    }  # fmt: skip

    assert found.keys() == tried
    assert prepared(job).strategy == min(found.values(), key=lambda one: one[0])[2]
    least = min(need for _, need, _ in found.values())
    tight = prepared(dataclasses.replace(job, cluster=smaller(least)))
    assert step_and_memory(tight, fits)[1] == least
    assert prepared(dataclasses.replace(job, switches={})).strategy.schedule.micro_batch == 1


def test_stated_virtual_stages_keep_their_layers():
    """Only the micro-batch is open: 4 of one sequence, or 2 of two; one of four is no multiple of pp = 2."""
    base = make_job(pp=2)
    stages = make_stages((0, 2, 1, 1))
    plan = dataclasses.replace(base.strategy, schedule=TrainingSchedule("interleaved", 2, 1, 4), stages=stages, zero=0)
    job = dataclasses.replace(base, strategy=plan, switches={"quickest": ("micro_batch",)})
    found = list(predictions._schedules(job))

    assert [_shape(one) for one in found] == [(2, 4, 1), (2, 2, 2)]
    assert all(one.strategy.stages == stages for one in found)


def test_the_fit_moves_what_it_names():
    ready = prepared(ALONE)
    plain = step_s(ready, {})

    assert plain == pytest.approx(by_hand()[0], rel=1e-6)
    assert step_s(ready, {"stacks.megatron-core.host_us": 1000.0}) > plain
    assert step_s(ready, {"compute.sustained.ampere": 0.5}) == plain


@pytest.fixture
def ratios(tmp_path, monkeypatch):
    """Puts these ratios in the place of ``left_out.csv``."""

    def put(**values):
        lines = [f"{id.replace('_', '-')},{ratio}\n" for id, ratio in values.items()]
        (tmp_path / "left_out.csv").write_text("id,ratio\n" + "".join(lines), encoding="utf-8")
        monkeypatch.setattr(predictions, "FOLDER", tmp_path)

    return put


def test_left_out_times_are_moved_by_their_rows_ratio(ratios):
    cases = [make_case("a-1", step_s=1.0, mem=2.0), make_case("a-2", fits=1), make_case("a-3", step_s=1.0, job=None)]
    ratios(a_1=1.25)
    plain = predict(cases)

    for old, new in zip(plain, left_out(cases, plain), strict=True):
        factor = 1.25 if (old.case.id, old.quantity) == ("a-1", "step_s") else 1.0
        for name in ("predicted", "low", "high"):
            before, after = getattr(old, name), getattr(new, name)
            assert after == (None if before is None else before * factor)


@pytest.mark.parametrize("known", [{}, {"a_1": 1.25}])
def test_rows_that_were_not_fitted_are_out_of_sample_already(ratios, known):
    cases = [make_case("a-1", step_s=1.0), make_case("a-2", step_s=1.0)]
    ratios(**known)

    assert left_out(cases, predict(cases)) is None


def test_each_fill_of_a_pipeline_has_its_bubble():
    """One of four stages runs idle for three micro-batches in each, of stages that are no longer than the longest."""
    cells = {"n_gpus": "4", "pp": "4", "vpp": "1", "recompute": "none", "metric_value": ""}
    once, more = (prepared(published_job(**cells, global_batch=batch)) for batch in ("16", "24"))
    fills = {n: dataclasses.replace(once, switches={**once.switches, "pipeline_fills": n}) for n in (1, 2, 3)}
    seconds = {n: step_s(it, {}) for n, it in fills.items()}
    bubble, a_micro_batch = seconds[2] - seconds[1], (step_s(more, {}) - seconds[1]) / 8

    assert 2 * a_micro_batch < bubble < 3.05 * a_micro_batch
    assert seconds[3] - seconds[2] == pytest.approx(bubble) and seconds[1] == step_s(once, {})
