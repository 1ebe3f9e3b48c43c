"""Launch files: their texts, what bash makes of them, and that none is left half-written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from golden_plans import rewritten
from plans import TINY_LLAMA, make_plan

from planner.errors import BadInput, UnknownName, Unsupported
from planner.export import EXPORTERS, export
from planner.result import Plan

HOSTILE = "llama'; touch pwned; echo $(touch pwned) `touch pwned` \"\n#SBATCH --nodes=9\ntouch pwned #{{ x }}"
BASH = shutil.which("bash")

needs_bash = pytest.mark.skipif(BASH is None, reason="launch files are bash scripts, and there is no bash here")


def two_hosts(**fields) -> Plan:
    """A plan for two hosts of two devices."""
    placement = {"tp": [2, 1], "cp": [1, 1], "dp_shard": [1, 2], "dp_replicate": [1, 1], "pp": [1, 1]}
    return make_plan(tp=2, dp_shard=2, zero=1, placement=placement, **fields)


def for_target(target: str, **fields) -> Plan:
    """A plan for two hosts of two devices that the target can express: MaxText cannot but recompute."""
    fields["recompute"] = "full" if target == "maxtext" else "none"
    placement = {"tp": [1, 1], "cp": [1, 1], "dp_shard": [2, 2], "dp_replicate": [1, 1], "pp": [1, 1]}
    return make_plan(dp_shard=4, zero=3, placement=placement, precision="bf16", **fields)


def bash(script: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a launch file with an interpreter that prints its arguments, one a line, instead of training."""
    echo = script.parent / "print-words"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$MASTER_ADDR" "$@"\n')
    echo.chmod(0o755)
    clean = {key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR") if key in os.environ}
    return subprocess.run(
        [BASH, str(script), *words],
        env=clean | {"PYTHON": str(echo)} | environment,
        cwd=script.parent,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("target", ["torchtitan", "accelerate", "deepspeed", "maxtext"])
def test_targets_that_give_no_two_ranks_the_same_head(target):
    """Megatron-LM does, as the runtime."""
    plan = rewritten(make_plan(tp=4, precision="bf16"), stack={"sequence_parallel": False})
    with pytest.raises(Unsupported, match=r"tp = 4: [^.]* 2 key-value heads; --pin tp=2 or --pin tp=1"):
        export(plan, (target,))
    assert export(plan, ("megatron", "torchrun"))
    alone = make_plan(tp=4, config=TINY_LLAMA | {"num_key_value_heads": 1})
    with pytest.raises(Unsupported, match=r"model's 1 key-value heads; --pin tp=1($|\.)"):
        export(rewritten(alone, stack={"sequence_parallel": False}), (target,))


@pytest.mark.parametrize("target", EXPORTERS)
def test_every_target_writes_the_plan_as_well(target, tmp_path):
    plan = for_target(target)
    paths = plan.write(tmp_path / "launch", [target])

    assert all(path.exists() for path in paths)
    assert Plan.load(tmp_path / "launch" / "plan.json") == plan
    assert sorted(path.name for path in (tmp_path / "launch").iterdir()) == sorted(path.name for path in paths)


@needs_bash
@pytest.mark.parametrize("name", ["tiny-llama", HOSTILE])
@pytest.mark.parametrize("target", EXPORTERS)
def test_bash_reads_every_script(target, name, tmp_path):
    for path in for_target(target, name=name).write(tmp_path, [target]):
        if path.suffix in (".sh", ".sbatch"):
            subprocess.run([BASH, "-n", str(path)], check=True, timeout=30)
            assert os.access(path, os.X_OK)


@needs_bash
def test_a_hostile_model_name_stays_a_name(tmp_path):
    config = TINY_LLAMA | {"model_type": HOSTILE}
    two_hosts(name=HOSTILE, config=config).write(tmp_path, ["slurm"])
    result = bash(tmp_path / "launch.sh", "0", MASTER_ADDR="10.0.0.1")

    assert result.returncode == 2
    assert "the built-in trainer cannot run this plan" in result.stderr
    assert not list(tmp_path.rglob("pwned"))
    lines = (tmp_path / "job.sbatch").read_text().splitlines()
    assert [line for line in lines if line.startswith("#SBATCH --nodes")] == ["#SBATCH --nodes=2"]


@needs_bash
def test_the_command_that_a_host_runs(tmp_path):
    folder = tmp_path / "a folder's $(name)"
    two_hosts().write(folder)
    result = bash(folder / "launch.sh", "1", "--steps", "3 4", MASTER_ADDR="10.0.0.1")

    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "10.0.0.1", "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2", "--node-rank", "1",
        "--rdzv-backend", "static", "--master-addr", "10.0.0.1", "--master-port", "29500",
        "-m", "planner.runtime.train", "--plan", str(folder / "plan.json"), "--steps", "3 4",
    ]  # fmt: skip


@needs_bash
def test_a_program_of_the_users(tmp_path):
    """A plan that the built-in trainer has no code for still launches, with the user's program."""
    plan = make_plan(cp=2)
    plan.write(tmp_path)

    refused = bash(tmp_path / "launch.sh")
    assert refused.returncode == 2
    assert "no context parallelism" in refused.stderr and "MESHWRIGHT_PROGRAM" in refused.stderr

    words = bash(tmp_path / "launch.sh", "--mine", MESHWRIGHT_PROGRAM="my train.py").stdout.splitlines()
    assert words[-2:] == ["my train.py", "--mine"]


@needs_bash
@pytest.mark.parametrize(
    ("words", "environment", "text"),
    [
        ((), {"MASTER_ADDR": "h0"}, "which of the 2 hosts is this?"),
        (("0",), {}, "MASTER_ADDR is not set, and 2 hosts have to meet"),
        (("2",), {"MASTER_ADDR": "h0"}, "NODE_RANK is 2, but the plan has 2 hosts, numbered 0 to 1"),
        ((), {"MASTER_ADDR": "h0", "NODE_RANK": "x[$(touch pwned)]"}, "numbered 0 to 1"),
    ],
)
def test_what_a_host_must_be_told(words, environment, text, tmp_path):
    two_hosts().write(tmp_path)
    result = bash(tmp_path / "launch.sh", *words, **environment)

    assert result.returncode == 2
    assert text in result.stderr
    assert not (tmp_path / "pwned").exists()


@needs_bash
def test_a_slurm_job_numbers_its_hosts_as_listed(tmp_path):
    """With stand-ins for scontrol and srun, task i runs launch.sh as host i and all meet at the first host."""
    two_hosts(accelerator="h100-sxm").write(tmp_path, ["slurm"])
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text("#!/bin/sh\nprintf 'nodeB\\nnodeA\\n'\n")
    (tools / "srun").write_text(
        '#!/bin/bash\nwhile [[ "$1" == --* ]]; do shift; done\nfor i in 0 1; do SLURM_NODEID=$i "$@" || exit 1; done\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    result = bash(
        tmp_path / "job.sbatch", "--steps", "2",
        PATH=f"{tools}:{os.environ['PATH']}", SLURM_JOB_NODELIST="node[A-B]", SLURM_SUBMIT_DIR=str(tmp_path),
    )  # fmt: skip

    words = result.stdout.splitlines()
    assert result.returncode == 0, result.stderr
    assert [words[i + 1] for i, word in enumerate(words) if word == "--node-rank"] == ["0", "1"]
    assert {words[i + 1] for i, word in enumerate(words) if word == "--master-addr"} == {"nodeB"}
    assert "#SBATCH --gpus-per-node=2" in (tmp_path / "job.sbatch").read_text()


def test_a_domain_of_several_hosts_asks_for_one_block():
    """8 devices of one scale-up network in hosts of 4: Slurm has to give pairs of hosts from one block."""
    placement = {"tp": [8, 1], "cp": [1, 1], "dp_shard": [1, 1], "dp_replicate": [1, 2], "pp": [1, 1]}
    plan = make_plan(tp=8, dp_replicate=2, placement=placement, devices_per_host=4, accelerator="gb200")
    text, _ = export(plan, ("slurm",))["job.sbatch"]

    assert "#SBATCH --nodes=4\n" in text
    assert "#SBATCH --gpus-per-node=4\n" in text
    assert "#SBATCH --segment=2\n" in text


def test_experts_share_the_devices_of_their_stage():
    """8 experts on the 8 devices of one host are no reason to ask for blocks of hosts."""
    dense = {"tp": [1, 1], "cp": [1, 1], "dp_shard": [8, 1], "dp_replicate": [1, 2], "pp": [1, 1]}
    placement = {**dense, "etp": [1, 1], "ep": [8, 1], "edp": [1, 2]}
    plan = make_plan(dp_shard=8, dp_replicate=2, ep=8, placement=placement, devices_per_host=8, accelerator="h100-sxm")

    assert "--segment" not in export(plan, ("slurm",))["job.sbatch"][0]


def test_a_refused_target_leaves_nothing(tmp_path):
    placement = {"tp": [10], "cp": [1], "dp_shard": [1], "dp_replicate": [1], "pp": [1]}
    plan = make_plan(tp=10, placement=placement, devices_per_host=4)

    with pytest.raises(Unsupported, match="uneven devices per host"):
        plan.write(tmp_path / "launch", ["torchrun"])
    assert not (tmp_path / "launch").exists()


def test_an_unknown_target_names_the_nearest(tmp_path):
    with pytest.raises(UnknownName, match="'slrum'; nearest: slurm"):
        two_hosts().write(tmp_path / "launch", ["torchrun", "slrum"])
    assert not (tmp_path / "launch").exists()


def test_a_directory_that_is_a_file(tmp_path):
    (tmp_path / "launch").write_text("mine")

    with pytest.raises(BadInput, match="cannot write the launch files"):
        two_hosts().write(tmp_path / "launch")
    assert (tmp_path / "launch").read_text() == "mine"


def test_a_directory_in_the_place_of_a_file_changes_nothing(tmp_path):
    """Without a look beforehand ``plan.json`` would be new by the time that ``launch.sh`` cannot be moved in."""
    two_hosts(name="old").write(tmp_path)
    (tmp_path / "launch.sh").unlink()
    (tmp_path / "launch.sh").mkdir()
    before = (tmp_path / "plan.json").read_text()
    with pytest.raises(BadInput, match=r"the launch files to '[^']*': launch.sh is a directory there; name"):
        two_hosts(name="new").write(tmp_path)

    assert (tmp_path / "plan.json").read_text() == before
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", "launch.sh"}


def test_a_disk_that_fails_midway_leaves_the_old_files(tmp_path, monkeypatch):
    """The second file cannot be written: neither is replaced, and nothing else stays behind."""
    two_hosts(name="old").write(tmp_path)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    write_bytes, written = Path.write_bytes, []

    def fail_on_second(path: Path, *args, **kwargs):
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        return write_bytes(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_bytes", fail_on_second)
    with pytest.raises(BadInput, match="No space left"):
        two_hosts(name="new").write(tmp_path)

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_exporting_needs_no_torch():
    code = "import planner.export, planner.ranks, planner.runtime, sys; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)
