"""A plan's job run and compared: two ranks for real, and what is refused before any process starts."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from plans import make_mixed_plan, make_part, make_plan, make_stage
from test_measured import TEXT as CALIBRATION
from test_mixed_launch import cluster_file

from planner import plan
from planner.cli import app
from planner.errors import BadInput, JobFailed, Unsupported
from planner.machine import measure as measuring
from planner.machine.local_job import Launch, free_port

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 64,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class OneRank(Launch):
    """A rank by itself: torchrun would import torch once more."""

    def words(self) -> list[str]:
        return [sys.executable, "-m", self.module, *self.arguments]


def ranks(count: int = 2) -> list[OneRank]:
    port = str(free_port())
    tree = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]))
    return [
        OneRank("", (), 1, environment=(("RANK", str(k)), ("LOCAL_RANK", str(k)), ("WORLD_SIZE", str(count)),
                                        ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port), ("PYTHONPATH", tree)))
        for k in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("plan")
    (place / "calibration.toml").write_text(CALIBRATION)
    found = plan(CONFIG, "cpu-local:1", seq_len=32, global_batch=8, alternatives=0,
                 pins="devices=2,dp_shard=2,zero=3,micro_batch=2", calibration=place / "calibration.toml")  # fmt: skip
    found.write(place)
    return place


def edited(folder: Path, tmp_path: Path, **changes) -> Path:
    """The plan's file with other fields at ``group.name``."""
    data = json.loads((folder / "plan.json").read_text())
    for path, value in changes.items():
        group, name = path.split("__")
        data[group][name] = value
    (tmp_path / "plan.json").write_text(json.dumps(data))
    return tmp_path


def test_two_ranks_are_measured_and_compared(folder):
    found = measuring.measure(folder, steps=2, launches=ranks())

    assert [it.rank for it in found.ranks] == [0, 1] and len(found.step_s) == 2
    collectives = [
        it for it in found.events["traceEvents"] if it.get("cat") == "collective" and it["args"]["axis"] == "dp"
    ]
    names = [it["name"] for it in collectives if it["tid"] == 0]
    # Per micro-batch (two): two layers and the ends are gathered, layers again in backward, all three scattered.
    assert names.count("reduce_scatter_single") == 6
    assert names.count("all_gather_single") >= 2 * (3 + 2) - 1
    for it in found.ranks:
        whole = [e["dur"] for e in found.events["traceEvents"] if e.get("name") == "step" and e["tid"] == it.rank]
        assert sum(it.measured.values()) == pytest.approx(whole[0] * 1e-6)
        assert min(it.measured[name] for name in ("forward", "backward", "data parallel", "optimizer")) > 0
        weights = sum(p for p in (64 * 64 * 2, 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64), 64))
        batch = 2 * 4 * 32 * 8
        # Half of the weights and both of Adam's moments in fp32, its counters, this rank's tokens and targets.
        assert it.persistent_bytes == pytest.approx(12 * weights / 2 + batch, rel=0.01)
        assert it.peak_bytes > it.persistent_bytes + 4 * weights / 2
    # 2.0 % when this was written, on both ranks.
    assert max(map(abs, found.memory_errors)) < 0.05
    assert found.ranks[0].peak_bytes == pytest.approx(found.ranks[1].peak_bytes, rel=0.01)
    record = found.as_json()
    assert record["model_digest"] == found.plan.model.digest
    assert {"predicted", "measured", "predicted_peak_bytes"} <= set(record["ranks"][0])


@dataclasses.dataclass(frozen=True)
class Dying(Launch):
    """A launcher whose second rank was killed, as torchrun reports it."""

    def words(self) -> list[str]:
        return [
            sys.executable,
            "-c",
            "import sys; sys.exit('  rank      : 1 (local_rank: 1)\\n  exitcode  : -9 (pid: 7)')",
        ]


def test_a_rank_that_dies_is_named_and_nothing_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "_here", lambda *job: [Dying("", (), 2)])
    with pytest.raises(JobFailed, match="rank 1 of the job ended by signal SIGKILL"):
        app(["measure", str(folder), "--out", str(tmp_path / "out")], standalone_mode=False)

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__digest": "0" * 16}, "the model .* has digest"),
        ({"cluster__digest": "0" * 16}, "the cluster 'cpu-local:1' has digest"),
        ({"proof__cost_model_digest": "0" * 16}, "the calibration has digest"),
        ({"cluster__devices_used": 4}, "= 2 ranks, but the plan says it uses 4"),
        ({"cluster__hosts_used": 2}, r"the plan is for 2 hosts \(processes on each: 1\), and this is one"),
    ],
)
def test_a_plan_of_something_else_is_refused(folder, tmp_path, changes, said):
    with pytest.raises(BadInput, match=said):
        measuring.measure(edited(folder, tmp_path, **changes))


def test_where_figures_cannot_go_the_job_is_not_started(folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(measuring, "run_job", lambda *job: pytest.fail("the job ran"))
    with pytest.raises(BadInput, match="is no directory and cannot become one"):
        app(["measure", str(folder), "--out", str(tmp_path / "file")], standalone_mode=False)


def test_where_there_is_no_plan_that_is_said(tmp_path):
    with pytest.raises(BadInput, match=r"neither a plan\.json nor a folder with one"):
        measuring.measure(tmp_path)


def test_of_a_mixed_cluster_the_plan_on_one_part_is_taken(tmp_path):
    pipeline, alone = (
        make_mixed_plan([make_stage(0, 1), make_stage(1, 3)], [make_part("a"), make_part("b")]),
        make_plan(),
    )
    (tmp_path / "plan.json").write_text(pipeline.model_copy(update={"stages": [], "alone": alone}).to_json())

    assert measuring.load_measurable(tmp_path / "plan.json") == alone


def test_a_part_read_from_a_file_is_found_again(tmp_path):
    """A mixed cluster's plan on one part alone names the part's file, not the part."""
    parts = [cluster_file(tmp_path, *it) for it in (("quick", "150 GFLOPS", 2), ("slow", "1 GFLOPS", 1))]
    for part in parts:
        part.rename(tmp_path / f"of-{part.name}")
    where = "+".join(str(tmp_path / f"of-{part.name}") for part in parts)
    found = plan(CONFIG, where, seq_len=32, global_batch=8, precision="fp32")
    found.write(tmp_path / "run")
    alone = measuring.load_measurable(tmp_path / "run" / "plan.json")

    assert (alone.cluster.name, alone.cluster.source) == ("quick", str(tmp_path / "of-quick.toml"))
    assert measuring.predicted_terms(alone).step_s == found.step_s


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """Two layers on a quick processor and two on two slow ones, each with its own calibration."""
    place = tmp_path_factory.mktemp("pipeline")
    parts = [cluster_file(place, *it) for it in (("quick", "150 GFLOPS", 1), ("slow", "50 GFLOPS", 2))]
    for part in parts:
        (place / f"{part.stem}.cal.toml").write_text(CALIBRATION.replace('"cpu"', f'"cpu-{part.stem}"'))
        part.write_text(f'calibration = "{part.stem}.cal.toml"\n{part.read_text()}')
    plan(CONFIG | {"num_hidden_layers": 4}, "+".join(map(str, parts)), seq_len=64, global_batch=64, precision="fp32",
         pins="cp=1,tp=1").write(place)  # fmt: skip
    return place


@pytest.mark.slow
def test_a_pipeline_over_two_kinds_of_processors_is_measured(pipeline):
    """One rank and two, meshes of their own: by stage what was priced on its part, and what ranks saw."""
    found = measuring.measure(pipeline, steps=2, launches=ranks(3))
    stages, each = found.plan.stages, found.plan.micro_batches

    assert [(it.accelerator, it.dp, it.layers) for it in stages] == [("cpu-quick", 1, 2), ("cpu-slow", 2, 2)]
    assert [it.pipeline_rank for it in found.ranks] == [0, 1, 1]
    for stage, terms in zip(stages, found.predicted.terms, strict=True):
        busy = each * (stage.forward_s + stage.backward_s) + stage.tail_s
        assert sum(terms.values()) - terms["pipeline"] == pytest.approx(busy, rel=1e-6)
        assert sum(terms.values()) == pytest.approx(found.plan.step_s)
    assert all(it.measured["forward"] > 0 and it.measured["pipeline"] > 0 for it in found.ranks)
    assert "data parallel" not in found.ranks[0].measured and found.ranks[1].measured["data parallel"] > 0
    # -1.5 and 0.6 % when this was written.
    assert max(map(abs, found.memory_errors)) < 0.05
    record = found.as_json()
    assert (record["cluster"], record["cluster_digest"]) == (found.plan.cluster_name, found.plan.cluster_digest)
    passes = [it for it in found.events["traceEvents"] if it.get("cat") == "predicted" and it["tid"] == 1]
    assert [it["name"] for it in passes].count("forward") == [it["name"] for it in passes].count("backward") == each
    assert max(it["ts"] + it["dur"] for it in passes) * 1e-6 <= found.plan.step_s * (1 + 1e-9)


def test_several_hosts_are_started_here_only_where_that_is_asked_for(pipeline, monkeypatch):
    job = measuring.job_to_run(measuring.load_measurable(pipeline / "plan.json"))
    with pytest.raises(BadInput, match=r"2 hosts \(processes on each: 1 or 2\), and this .*all here: --here"):
        measuring._here(job, 0, here=False)
    started = measuring._here(job, 0, here=True)

    assert [(it.processes, it.hosts, it.rank) for it in started] == [(1, 2, 0), (2, 2, 1)]
    assert len({it.port for it in started}) == 1
    monkeypatch.setattr(measuring, "runs_on_cpu", lambda cluster: False)
    with pytest.raises(BadInput, match="or plan for one of them"):
        measuring._here(job, 0, here=True)


def test_what_the_trainer_cannot_run_is_refused(folder, tmp_path):
    config = json.loads((folder / "plan.json").read_text())["model"]["config"]
    with pytest.raises(Unsupported, match="'mistral'"):
        measuring.measure(edited(folder, tmp_path, model__config=config | {"model_type": "mistral"}))
