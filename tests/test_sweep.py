"""Sweeps: every case a row, once, whatever happens to it or to its worker."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from mixed_cases import ALONE, CLUSTER, SHAPE, TIGHT, planned
from strategies import small_cluster, tiny_config

from cost_models.model_graph import ModelGraph
from planner.api import plan
from planner.errors import BadInput, PlannerBug, PlannerError
from planner.mixed.result import MixedPlan
from planner.read_model import read_model
from planner.result import Plan
from planner.sweeps.cases import asked, every_case
from planner.sweeps.sweep import solve, sweep

pytestmark = pytest.mark.usefixtures("steady")

MODEL = tiny_config(hidden_size=512, num_attention_heads=8, num_hidden_layers=4, vocab_size=4096)
SHAPED, WORK = tiny_config(**SHAPE), {"seq_len": 2048, "global_batch": 16, "precision": "bf16"}
TINY = {"model": MODEL, "cluster": small_cluster(2), "seq_len": 1024, "global_batch": 8}


class AtOnce(Executor):
    """Solves what it is handed in this thread; ``lose`` are the turns at which it loses a case."""

    def __init__(self, lose: tuple[int, ...] = ()) -> None:
        self.lose, self.turn = lose, 0

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        self.turn += 1
        if self.turn in self.lose:
            future.set_exception(ConnectionError("the worker is gone"))
        else:
            future.set_result(fn(*args, **kwargs))
        return future


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_is_its_plan(tmp_path):
    found = sweep([TINY], AtOnce(), tmp_path / "s.csv", plans=tmp_path / "plans")
    (row,) = rows_of(found.path)
    made = plan(TINY["model"], TINY["cluster"], seq_len=1024, global_batch=8)
    kept = Plan.load(tmp_path / "plans" / f"{row['case']}.json")

    assert (found.cases, found.finished_before, found.statuses) == (1, 0, {"optimal": 1})
    assert float(row["objective"]) == made.objective == kept.objective
    assert float(row["bound"]) == made.bound
    assert float(row["gap"]) == 0.0
    assert float(row["watts"]) == made.watts["facility"]
    assert float(row["usd_per_step"]) == made.usd_per_step
    assert float(row["memory_bytes"]) == max(stage.need_bytes for stage in made.memory)
    degrees = ("tp", "cp", "pp", "dp_shard", "dp_replicate", "zero", "micro_batch", "micro_batches")
    assert [int(row[name]) for name in degrees] == [getattr(made.strategy, name) for name in degrees]
    assert row["layers_per_stage"] == "+".join(map(str, made.strategy.layers_per_stage))
    assert (row["seq_len"], row["global_batch"], row["precision"]) == ("1024", "8", made.workload.precision)


def test_a_row_of_a_mixed_cluster_is_its_plan(tmp_path):
    """A pipeline whose stages differ, and one part alone; the rows of regular clusters stand beside them."""
    pipeline = {"model": SHAPED, "cluster": CLUSTER, **WORK, "headroom": TIGHT}
    alone = {"model": SHAPED, "cluster": CLUSTER, **WORK, **ALONE}
    path = sweep([pipeline, alone, TINY], AtOnce(), tmp_path / "s.csv", plans=tmp_path / "plans").path
    rows = {row["global_batch"]: row for row in rows_of(path)}
    row, made = rows["16"], planned()

    assert {it["status"] for it in rows.values()} == {"optimal"}
    assert (float(row["objective"]), float(row["bound"])) == (made.objective, made.bound)
    assert row["layers_per_stage"] == "+".join(str(stage.layers) for stage in made.stages)
    assert (row["pp"], row["tp"], row["devices"], row["devices_used"]) == (str(len(made.stages)), "1", "3", "3")
    assert float(row["tokens_per_s_per_device"]) == pytest.approx(made.tokens_per_s / 3)
    assert float(row["watts"]) * made.step_s == pytest.approx(float(row["joules_per_step"]))
    kept = MixedPlan.load(tmp_path / "plans" / f"{rows['1']['case']}.json")
    assert kept.alone is not None
    assert (rows["1"]["devices"], rows["1"]["devices_used"], rows["1"]["dp_shard"]) == ("3", "1", "1")


def test_a_row_of_several_objectives_says_what_was_asked(tmp_path):
    case = TINY | {"objective": "time,energy", "slack": "5%", "limits": "step-time=1 h"}
    (row,) = rows_of(sweep([case], AtOnce(), tmp_path / "s.csv").path)

    assert (row["status"], row["objective_name"]) == ("optimal", "energy")
    assert json.loads(row["options"])["objective"] == "time,energy"
    assert float(row["objective"]) == float(row["joules_per_step"])


def test_every_end_is_a_row(tmp_path):
    """One plan, one that cannot fit, one that is no question, one unknown model: four rows and no crash."""
    cases = [
        TINY,
        {"model": "llama-3.1-405b", "cluster": "dgx-h100:1"},
        {**TINY, "global_batch": -3},
        {**TINY, "model": "no-such-model"},
    ]
    found = sweep(cases, AtOnce(), tmp_path / "s.csv")
    rows = {row["status"]: row for row in rows_of(found.path)}

    assert found.statuses == {"optimal": 1, "infeasible": 1, "bad-input": 2}
    assert "no plan fits" in rows["infeasible"]["reason"]
    assert {row["error"][:12] for row in rows_of(found.path) if row["status"] == "bad-input"} == {
        "global_batch",
        "no model 'no",
    }


def test_a_sweep_goes_on_where_it_was_cut(tmp_path):
    """Killed in the middle of a row, it repairs the file and asks only what is missing."""
    cases = every_case({**TINY, "global_batch": [1, 2, 4, 8]})
    path = tmp_path / "s.csv"
    sweep(cases, AtOnce(), path)
    whole = path.read_bytes()
    first, second = whole.splitlines(keepends=True)[:2], whole.splitlines(keepends=True)[2]
    path.write_bytes(b"".join(first) + second[: len(second) // 2])
    executor = AtOnce()
    found = sweep(cases, executor, path)

    assert (found.finished_before, executor.turn) == (1, 3)
    assert sorted(row["global_batch"] for row in rows_of(path)) == ["1", "2", "4", "8"]
    again = sweep(cases, executor, path)
    assert (again.finished_before, again.statuses, executor.turn) == (4, {}, 3)


def test_afresh_asks_everything_again(tmp_path):
    path = tmp_path / "s.csv"
    sweep([TINY], AtOnce(), path)
    found = sweep([TINY], AtOnce(), path, resume=False)

    assert found.statuses == {"optimal": 1}
    assert len(rows_of(path)) == 1


def test_a_lost_case_is_a_row_and_is_tried_again(tmp_path):
    cases = every_case({**TINY, "global_batch": [1, 2, 4]})
    first = sweep(cases, AtOnce(lose=(2,)), tmp_path / "s.csv")
    assert first.statuses == {"optimal": 2, "error": 1}
    (lost,) = [row for row in rows_of(first.path) if row["status"] == "error"]
    assert "the worker is gone" in lost["error"]
    second = sweep(cases, AtOnce(), first.path)

    assert second.statuses == {"optimal": 1}
    assert [row["status"] for row in rows_of(first.path)] == ["optimal"] * 3


def test_a_bug_of_the_planner_is_a_row(monkeypatch):
    def broken(*args, **options):
        raise PlannerBug("the search and its check disagree")

    (question,) = asked([TINY])
    monkeypatch.setattr("planner.api.plan", broken)

    assert solve(question).row["status"] == "error"
    assert "disagree" in solve(question).row["error"]


def test_interrupted_it_keeps_what_it_has_and_cancels_the_rest(tmp_path):
    """Ctrl-C as the first answer comes: a whole row in the file, and nothing solved after those under way."""
    solved: list[int] = []

    def stop(done, cases, row):
        raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as executor, pytest.raises(KeyboardInterrupt):
        submit = executor.submit
        executor.submit = lambda *args: submit(lambda: (solved.append(1), time.sleep(0.05), solve(*args))[-1])
        sweep(every_case({**TINY, "global_batch": [1, 2, 4, 8]}), executor, tmp_path / "s.csv", progress=stop)

    assert len(rows_of(tmp_path / "s.csv")) == 1
    assert len(solved) <= 2


def test_json_lines(tmp_path):
    sweep([TINY], AtOnce(), tmp_path / "s.jsonl")
    (row,) = map(json.loads, (tmp_path / "s.jsonl").read_text().splitlines())

    assert (row["status"], row["global_batch"], row["reason"]) == ("optimal", 8, None)


def test_pandas_reads_it(tmp_path):
    pandas = pytest.importorskip("pandas")
    cases = [TINY, {**TINY, "headroom": 0.9999}]
    table = pandas.read_csv(sweep(cases, AtOnce(), tmp_path / "s.csv").path)
    lines = pandas.read_json(sweep(cases, AtOnce(), tmp_path / "s.jsonl").path, lines=True)

    assert table.set_index("case").objective.sum() == pytest.approx(lines.set_index("case").objective.sum())
    assert table.objective.dtype == lines.objective.dtype == float


def test_an_executor_that_takes_nothing_makes_rows(tmp_path):
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    found = sweep([TINY], executor, tmp_path / "s.csv")

    assert found.statuses == {"error": 1}
    assert "after shutdown" in rows_of(found.path)[0]["error"]


@pytest.mark.parametrize(
    ("cases", "out", "says"),
    [
        ([{**TINY, "temperature": 3}], "s.csv", "temperature: no option of a case"),
        ([{"model": "llama-3.2-1b"}], "s.csv", "a mapping with model and cluster"),
        ([TINY], "s.xlsx", "must end in .csv"),
        ([TINY], "no/such/folder/s.csv", "cannot be opened"),
    ],
)
def test_wrong_sweeps_are_refused_before_anything_is_solved(tmp_path, cases, out, says):
    executor = AtOnce()

    with pytest.raises(BadInput, match=says):
        sweep(cases, executor, tmp_path / out)
    assert executor.turn == 0


def test_processes(tmp_path):
    """The default: spawned workers, which a case that kills its worker does not stop."""
    graph = read_model(MODEL)
    deadly = Deadly(**{field.name: getattr(graph, field.name) for field in dataclasses.fields(graph)})
    cases = [{**TINY, "global_batch": 1}, {**TINY, "model": deadly, "global_batch": 4}, TINY]
    found = sweep(cases, out=tmp_path / "s.csv", workers=1)
    rows = rows_of(found.path)

    assert found.statuses == {"optimal": 2, "error": 1}
    assert ["died" in row["error"] for row in rows if row["status"] == "error"] == [True]


class Deadly(ModelGraph):
    """A model that ends every process it is sent to."""

    def __reduce__(self) -> tuple:
        return os._exit, (9,)


def exit_at_once(watched: object) -> None:
    """An initializer of workers that ends them."""
    os._exit(1)


@pytest.mark.slow
def test_workers_that_never_start_end_the_sweep(tmp_path, monkeypatch):
    """A script without its guard: every worker dies as it starts. Said once, and not a row a case."""
    monkeypatch.setattr("planner.sweeps.executors._stand_by", exit_at_once)

    with pytest.raises(PlannerError, match="__main__"):
        sweep(every_case({**TINY, "global_batch": [1, 2, 4, 8]}), out=tmp_path / "s.csv", workers=1)
    assert {row["status"] for row in rows_of(tmp_path / "s.csv")} == {"error"}
    assert len(rows_of(tmp_path / "s.csv")) < 4
