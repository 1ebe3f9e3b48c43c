"""Accelerate's files: YAML and arguments read back against the plan, and what a host is told."""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from golden_plans import NAMES, golden, layers_of, rewritten
from plans import make_plan

from planner.errors import Unsupported
from planner.export import export
from planner.export.facts import checked, flat
from planner.result import Plan

EXPRESSIBLE = [9, 10, 15, 18, 21, 22, 24, 25]


def read(plan: Plan) -> tuple[dict, dict]:
    """The YAML, and the constants of ``accelerate_plan.py``."""
    files = export(plan, ("accelerate",))
    body = ast.parse(files["accelerate_plan.py"][0]).body
    constants = {n.targets[0].id: ast.literal_eval(n.value) for n in body if isinstance(n, ast.Assign)}
    return yaml.safe_load(files["accelerate.yaml"][0]), constants


def compare(plan: Plan, config: dict, arguments: dict) -> None:
    s, w, left = plan.strategy, plan.workload, dict(config)
    take = left.pop
    assert take("num_processes") == plan.cluster.devices_used
    assert take("num_machines") == plan.cluster.hosts_used
    assert take("mixed_precision") == {"bf16": "bf16", "fp32": "no"}[w.precision]
    assert (take("rdzv_backend"), take("compute_environment")) == ("static", "LOCAL_MACHINE")
    assert take("use_cpu") is (plan.cluster.accelerator == "cpu")
    assert take("same_network") is True
    assert take("main_training_function") == "main"
    fsdp, mesh = take("fsdp_config", None), take("parallelism_config", None)
    if s.zero == 0:
        assert take("distributed_type") in ("MULTI_GPU", "MULTI_CPU")
        assert (fsdp, mesh, s.dp_replicate) == (None, None, plan.cluster.devices_used)
    else:
        assert take("distributed_type") == "FSDP"
        degrees = {"dp_replicate": s.dp_replicate, "dp_shard": s.dp_shard, "cp": s.cp, "tp": s.tp, "sp": 1}
        assert {axis: mesh.pop(f"parallelism_config_{axis}_size") for axis in degrees} == degrees
        backend = {"cp_backend": "torch", "cp_comm_strategy": "alltoall", "sp_backend": "deepspeed"}
        assert mesh == {f"parallelism_config_{key}": value for key, value in backend.items()}
        assert fsdp == {
            "fsdp_version": 2, "fsdp_reshard_after_forward": s.zero == 3,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "fsdp_offload_params": False,
            "fsdp_activation_checkpointing": set(layers_of(plan)) == {"full"},
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        }  # fmt: skip
    assert left == {}
    mixed = {"param_dtype": "bfloat16", "reduce_dtype": "float32"} if s.zero and w.precision == "bf16" else {}
    assert arguments == {
        "MICRO_BATCH": s.micro_batch, "SEQ_LEN": w.seq_len, "TYPES": mixed,
        "ACCUMULATION": {"num_steps": s.micro_batches, "sync_each_batch": s.zero > 1},
    }  # fmt: skip
    assert s.pp == s.ep == s.etp == 1


@pytest.mark.parametrize("number", EXPRESSIBLE, ids=lambda n: NAMES[n])
def test_every_value_is_the_plans(number):
    config, arguments = read(golden(number))

    compare(golden(number), config, arguments)
    checked("accelerate", flat(config))


@pytest.mark.parametrize("number", EXPRESSIBLE, ids=lambda n: NAMES[n])
def test_accelerate_reads_its_config(number, tmp_path, monkeypatch):
    """By Accelerate's own loader, which refuses unknown keys, and its mesh, which checks its own sizes."""
    config_args = pytest.importorskip("accelerate.commands.config.config_args")
    from accelerate.parallelism_config import ParallelismConfig

    plan = golden(number)
    path = plan.write(tmp_path, ["accelerate"])[1].parent / "accelerate.yaml"
    config = config_args.load_config_from_file(str(path))
    assert (config.num_processes, config.num_machines) == (plan.cluster.devices_used, plan.cluster.hosts_used)
    assert config.rdzv_backend == "static"
    sizes = {key.removeprefix("parallelism_config_"): value for key, value in config.parallelism_config.items()}
    sizes.pop("cp_comm_strategy", None)
    if plan.strategy.zero:
        assert ParallelismConfig(**sizes).total_size == plan.cluster.devices_used


@pytest.mark.parametrize("changes", [{"cp": 2, "dp_shard": 2, "zero": 2}, {"tp": 2, "dp_shard": 2, "zero": 3}])
def test_other_meshes(changes):
    plan = rewritten(make_plan(**changes), stack={"sequence_parallel": False})

    compare(plan, *read(plan))


@pytest.mark.parametrize(
    ("number", "changes", "text"),
    [
        (0, {}, r"pp = 2: it has no pipeline.* ZeRO-1: .*--pin zero=2 or --pin zero=3.* recompute of part of"),
        (13, {}, "tp = 2: Transformers' plans keep the whole sequence"),
        (23, {}, r"dp_replicate = 4 alone: .*--pin dp_shard=4 or --pin dp_replicate=1"),
        (26, {}, r"ep = 4: its mesh has no axis of experts.*etp = 2: "),
        (9, {"recompute": [[(32, "selective")]]}, "selective recompute: it recomputes layers in full"),
        (25, {"recompute": [[(4, "full")]]}, "recompute without FSDP2"),
        (9, {"workload": {"precision": "fp8"}}, "precision: the plan is for fp8"),
    ],
)
def test_refusals(number, changes, text):
    with pytest.raises(Unsupported, match=text):
        export(rewritten(golden(number), **changes), ("accelerate",))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dp_replicate": 2, "tp": 2}, "ZeRO-0 with tp or cp"),
        ({"cp": 2, "zero": 3, "stack": {"context_exchange": "all_to_all"}}, "cp = 2 by exchanging heads"),
    ],
)
def test_meshes_that_it_has_not(changes, text):
    stack = {"sequence_parallel": False} | changes.pop("stack", {})
    with pytest.raises(Unsupported, match=text):
        export(rewritten(make_plan(**changes), stack=stack), ("accelerate",))


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    echo = folder / "print-words"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    clean = {"PATH": os.environ["PATH"], "PYTHON": str(echo)} | environment
    script = ["bash", str(folder / "accelerate.sh"), *words]
    return subprocess.run(script, env=clean, cwd=folder, capture_output=True, text=True, timeout=30, check=False)


def test_what_a_host_runs(tmp_path):
    folder = tmp_path / "a folder's $(name)"
    golden(10).write(folder, ["accelerate"])
    done = run(folder, "1", "--lr", "1 2", MESHWRIGHT_PROGRAM="my train.py", MASTER_ADDR="h0")

    assert done.stdout.splitlines() == [
        "-m", "accelerate.commands.launch", "--config_file", str(folder / "accelerate.yaml"), "--machine_rank", "1",
        "--main_process_ip", "h0", "--main_process_port", "29500", "my train.py", "--lr", "1 2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "environment", "text"),
    [
        ((), {}, "MESHWRIGHT_PROGRAM is not set"),
        ((), {"MESHWRIGHT_PROGRAM": "x", "MASTER_ADDR": "h0"}, "which of the 2 hosts is this?"),
        (("0",), {"MESHWRIGHT_PROGRAM": "x"}, "MASTER_ADDR is not set"),
        (("2",), {"MESHWRIGHT_PROGRAM": "x", "MASTER_ADDR": "h0"}, "0 to 1; found '2'"),
        ((), {"MESHWRIGHT_PROGRAM": "x", "MASTER_ADDR": "h0", "NODE_RANK": "a[$(touch pwned)]"}, "0 to 1; found 'a"),
    ],
)
def test_what_a_host_must_be_told(words, environment, text, tmp_path):
    golden(10).write(tmp_path, ["accelerate"])
    done = run(tmp_path, *words, **environment)

    assert done.returncode == 2
    assert text in done.stderr
    assert not (tmp_path / "pwned").exists()
