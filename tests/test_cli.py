"""The command line: every sentence of its help is tried, and everything a user can type wrongly is refused clearly."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import meshwright, refused

TINY = ("plan", "tiny-llama", "--cluster", "cpu-local")
ALONE = (*TINY, "--alternatives", "0")
"""Where nothing is asked of the plans beside the best, which take most of the time."""
BIG = ("plan", "llama-3.1-70b", "--cluster", "dgx-h100:4")
KEYS = {
    "schema_version", "status", "objective", "bound", "gap", "space", "search_s", "step_s", "tokens_per_s_per_device",
    "strategy", "memory", "watts", "joules_per_token", "binding", "alternatives",
}  # fmt: skip
STRATEGY_KEYS = {
    "dp_replicate", "dp_shard", "zero", "tp", "pp", "cp", "ep", "etp", "edp", "vocab_tp", "schedule", "virtual_stages",
    "micro_batch", "micro_batches", "layers_per_stage", "recompute", "placement", "clocks", "offloads",
    "hosts", "in_flight", "offloaded", "activations_offloaded",
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a plan and both launch files, as the command writes them."""
    folder = tmp_path_factory.mktemp("plan") / "launch"
    answer = meshwright(*ALONE, "--out", str(folder), "--target", "torchrun,slurm")
    assert answer.code == 0, answer.err
    return folder


def process(*words: str, **env: str) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    run = [sys.executable, "-m", "planner.cli", *words]
    return subprocess.run(run, capture_output=True, text=True, env={**os.environ, **env}, timeout=60, check=False)


def test_a_plan_is_printed_with_its_parts_and_assumptions():
    answer = meshwright(*TINY)

    assert answer.code == 0
    assert answer.err == ""
    for part in ("parallel", "step", "memory, GB", "power", "proved optimal", "next best", "binding"):
        assert part in answer.out
    for assumed in ("seq_len", "global_batch", "precision"):
        assert f"note: {assumed} " in answer.out


def test_json_is_one_object_with_the_promised_keys():
    answer = meshwright(*TINY, "--json")

    assert answer.code == 0
    plan = answer.json
    assert plan.keys() >= KEYS
    assert plan["schema_version"] == 1
    assert plan["status"] == "optimal"
    assert plan["strategy"].keys() == STRATEGY_KEYS
    assert all(stage.keys() >= {"need_bytes", "limit_bytes", "classes"} for stage in plan["memory"])
    assert len(plan["memory"]) == plan["strategy"]["pp"]


def test_json_of_what_fits_nowhere_lists_repairs_and_ends_with_1():
    answer = meshwright("plan", "llama-3.1-70b", "-c", "dgx-h100", "--json")

    assert answer.code == 1
    assert answer.json["status"] == "infeasible"
    assert answer.json["repairs"]
    assert answer.json["space"]["axes"]
    assert answer.err.startswith("meshwright: no plan fits")


def test_giving_up_is_no_answer_and_no_bad_input():
    answer = meshwright(*BIG, "--time-limit", "0.01")

    assert answer.code == 1
    assert answer.out == ""
    assert "does not say there is none" in answer.err


def test_little_time_gives_a_plan_with_an_honest_gap():
    answer = meshwright(*BIG, "--time-limit", "0.6", "--json")
    if answer.code == 1:
        pytest.skip("this machine found nothing in 0.6 s")

    plan = answer.json
    assert plan["bound"] <= plan["objective"]
    assert plan["gap"] == pytest.approx(1 - plan["bound"] / plan["objective"], abs=1e-12)
    assert (plan["status"] == "optimal") == (plan["gap"] <= 1e-9)


@pytest.mark.parametrize(
    ("pin", "says"),
    [
        ("tp=8,pp=80,dp=64", "8*80*64 = 40960"),
        ("tp=3", "legal on this cluster: 1, 2, 4, 8, 16, 32"),
        ("pp=81", "80 layers"),
        ("pp=64", "has 32 devices"),
        ("devices=33", "has 32"),
        ("devices=30,tp=8", "nearest: 24, 32"),
        ("micro_batch=3", "legal on this cluster: 1, 2, 4"),
        ("micro_batch=512,dp=2", "2*512 = 1024 does not divide the global batch of 512"),
        ("zero=3,dp=1,cp=1", "1*1 = 1 device"),
        ("zero=0,dp_shard=2", "shards nothing"),
        ("zero=9", "legal on this cluster: 0, 1, 2, 3"),
        ("dp_shard=3,dp=4", "dp_shard=3 does not divide dp=4"),
        ("dp_shard=2,dp_replicate=4,dp=4", "2*4"),
        ("dp_shard=3", "global batch of 512"),
        ("virtual_stages=2,pp=1", "without pipeline stages"),
        ("virtual_stages=77", "legal: 1, 2, 3, 4, 5"),
        ("virtual_stages=6,pp=4", "legal with that pp: 1, 2, 4, 5, 10, 20"),
        ("virtual_stages=2,pp=4,dp=8,micro_batch=32", "needs the micro-batches to be a multiple of pp=4"),
        ("ep=2", "has no experts"),
        ("etp=2", "has no experts"),
        ("recompute=maybe", "none, selective, full"),
        ("tp=0", "from 1"), ("tp=-1", "from 1"), ("tp=1e9", "whole number"), ("tp=2.5", "whole number"),
        ("tp=--5", "whole number"), ("tp=99999999999999999999", "whole number"),
        ("tp=", "NAME=VALUE"), ("=4", "NAME=VALUE"), ("tp", "NAME=VALUE"), ("tp=4,tp=4", "given twice"),
        ("dpshard=2", "nearest: dp_shard"),
        ("layers_per_stage=80", "cannot pin"),
    ],
)  # fmt: skip
def test_a_pin_that_cannot_hold_is_refused_with_its_arithmetic(pin: str, says: str):
    assert says in refused(*BIG, "--pin", pin)


def test_a_pin_given_twice_over_two_options_is_refused():
    assert "given twice" in refused(*BIG, "--pin", "tp=4", "--pin", "tp=2")


def test_a_number_of_devices_without_a_strategy_names_the_nearest_that_has_one():
    answer = meshwright(*BIG, "--pin", "devices=31", "--json")

    assert answer.code == 1
    assert [repair["changes"] for repair in answer.json["repairs"]] == [
        [{"change": f"devices={count}", "knob": "devices", "to": count}] for count in (32, 28)
    ]
    assert "no legal strategy has devices=31" in answer.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--power-cap", "700"), "'700 kW'"), (("--power-cap", "abc"), "quantity"),
        (("--power-cap", "-1 W"), "quantity"),
        (("--power-cap", "1e999 W"), "finite"), (("--power-cap", "nan W"), "quantity"),
        (("--power-cap", ""), "quantity"),
        (("--power-cap", "0 W"), "greater than 0"), (("--power-cap", "5 kB"), "expected 'W'"),
        (("--headroom", "nan"), "--headroom"), (("--headroom", "-1"), "--headroom"),
        (("--headroom", "1"), "--headroom"),
        (("--global-batch", "0"), "--global-batch"), (("--global-batch", "x"), "--global-batch"),
        (("--global-batch", "16777216"), "limit is 131072"), (("--global-batch", "9" * 30), "less than or equal"),
        (("--seq-len", "0"), "--seq-len"), (("--seq-len", "131073"), "131072 positions"),
        (("--seq-len", "9" * 30), "less than or equal"), (("--time-limit", "0"), "--time-limit"),
        (("--time-limit", "nan"), "--time-limit"), (("--objective", "fun"), "energy"),
        (("--precision", "int4"), "bf16"),
        (("--optimizer", "lion"), "adam"), (("--alternatives", "99"), "--alternatives"),
        (("--nonsense",), "--nonsense"),
        (("--target", "nonsense"), "torchrun, slurm"), (("--target", ""), "torchrun, slurm"),
        (("--out", ""), "no directory"),
    ],
)  # fmt: skip
def test_an_option_out_of_range_is_refused(words: tuple[str, ...], says: str):
    assert says in refused(*BIG, *words)


@pytest.mark.parametrize(
    ("cluster", "says"),
    [
        ("", "nearest"), (":", "nearest"), ("dgx-h10", "dgx-h100"), ("DGX-H100", "dgx-h100"), ("dgx\nh100", "dgx-h100"),
        ("dgx-h100:", "whole one from 1"), ("dgx-h100:0", "whole one from 1"), ("dgx-h100:-1", "whole one from 1"),
        ("dgx-h100:1.5", "whole one from 1"), ("dgx-h100:9999999", "absurd"), ("/tmp", "not a file"),
        ("/dev/zero", "not a file"), ("/nowhere/x.toml", "cannot be read"), ("\udcff\udcfe", "nearest"),
    ],
)  # fmt: skip
def test_a_cluster_that_is_none_is_refused(cluster: str, says: str):
    assert says in refused("plan", "llama-3.1-8b", "-c", cluster)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("", "config.json"), ("llama", "tiny-llama"), ("LLAMA-3.1-8B", "llama-3.1-8b"), ("/tmp", "config.json"),
        ("/dev/zero", "regular file"), ("/nowhere/config.json", "does not exist"), ("a" * 5000, "path"),
        ("\udcff", "nearest"),
    ],
)  # fmt: skip
def test_a_model_that_is_none_is_refused(model: str, says: str):
    assert says in refused("plan", model, "-c", "dgx-h100")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", b"\x80\x00\xff" * 99, "UTF-8"),
        ("config.json", b'{"model_type": "llama"', "JSON"),
        ("config.json", b'{"model_type": "llama"}', "num_attention_heads is missing"),
        ("config.json", b"[" * 100_000, "nests too deeply"),
        ("own.toml", b"\x80\x00\xff" * 99, "UTF-8"),
        ("own.toml", b'host = "dgx-h100', "TOML"),
        ("own.toml", b'name = "x"', "host"),
        ("own.toml", b'name = "x"\nhost = "dgx-h999"\nfabric = "ndr-infiniband"\nfacility = "air"', "dgx-h100"),
    ],
)  # fmt: skip
def test_files_that_are_none_are_refused(tmp_path: Path, name: str, content: bytes, says: str):
    path = tmp_path / name
    path.write_bytes(content)
    model, cluster = (str(path), "dgx-h100") if name == "config.json" else ("llama-3.1-8b", str(path))

    assert says in refused("plan", model, "-c", cluster)


def test_out_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    taken = tmp_path / "file"
    taken.write_text("mine")

    assert "no directory" in refused(*TINY, "--out", str(taken))
    assert "torchrun, slurm" in refused(*TINY, "--out", str(tmp_path / "new"), "--target", "torchrun,k8s")
    assert "cannot be written" in refused(*TINY, "--out", str(taken / "below" / "it"))
    with monkeypatch.context() as closed:
        closed.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path))
        assert f"{str(tmp_path)!r} cannot be written" in refused(*TINY, "--out", str(tmp_path / "new" / "deeper"))
    assert taken.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [taken]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--pin", "schedule=dualpipe"), "the plan has dualpipe; pin schedule=dualpipev"),
        (("--schedules", "zbv,zb-h1", "--target", "torchrun,megatron"), "megatron runs the schedules 1f1b, inter"),
        (("-c", "dgx-a100:1+dgx-h100:1", "--target", "torchrun,slurm"), "slurm cannot express stages on several"),
    ],
)  # fmt: skip
def test_targets_that_can_express_nothing_asked_for_are_refused_before_the_search(words, says, tmp_path, monkeypatch):
    monkeypatch.setattr("planner.cli._search", lambda *words, **options: pytest.fail("it was searched"))
    assert says in refused(*TINY, *words, "--out", str(tmp_path / "new"))


def test_a_plan_that_cannot_be_written_is_shown(tmp_path: Path):
    (tmp_path / "launch.sh").mkdir()
    answer = meshwright(*ALONE, "--out", str(tmp_path), "--json")

    assert (answer.code, answer.json["status"]) == (2, "optimal")
    assert "launch.sh is a directory there" in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["launch.sh"]


def test_out_writes_into_a_directory_that_exists(written: Path):
    (written / "notes.txt").write_text("kept")

    answer = meshwright(*ALONE, "--out", str(written), "--target", "slurm")

    assert answer.code == 0
    assert f"wrote {written / 'plan.json'}" in answer.out
    assert (written / "notes.txt").read_text() == "kept"
    assert {path.name for path in written.iterdir()} >= {"plan.json", "launch.sh", "job.sbatch"}
    assert (written / "launch.sh").stat().st_mode & stat.S_IXUSR


def test_mine_stands_beside_the_plan():
    answer = meshwright("estimate", "tiny-llama", "-c", "cpu-local", "--strategy", "pp=4")

    assert answer.code == 0
    for line in ("mine", "plan", "mine / plan", "parallel", "step, s", "compute", "memory, GB", "fits"):
        assert line in answer.out


def test_mine_as_json_carries_the_whole_plan():
    answer = meshwright("estimate", "tiny-llama", "-c", "cpu-local", "-s", "pp=4", "--json")

    assert answer.code == 0
    assert answer.json["mine"]["strategy"]["pp"] == 4
    assert answer.json["mine"]["fits"] is True
    assert answer.json["plan"].keys() >= KEYS


def test_mine_is_priced_even_where_nothing_fits():
    answer = meshwright("estimate", "llama-3.1-70b", "-c", "dgx-h100", "-s", "tp=8", "--json")

    assert answer.code == 1
    assert answer.json["mine"]["step_s"] > 0
    assert answer.json["mine"]["fits"] is False
    assert answer.json["plan"]["status"] == "infeasible"


@pytest.mark.parametrize(
    "words",
    [(), ("hosts",), ("fabrics",), ("facilities",), ("clusters",), ("accelerators", "h100-sxm"), ("clusters", "p5")],
)
def test_the_catalogue_is_listed(words: tuple[str, ...]):
    answer = meshwright("catalogue", *words)

    assert answer.code == 0
    assert len(answer.out.splitlines()) > 5


def test_models_are_listed():
    assert "llama-3.1-405b" in meshwright("models").out


@pytest.mark.parametrize(("words", "says"), [
    (("catalogue", "host"), "hosts"), (("catalogue", "hosts", "dgx-h10"), "dgx-h100"),
    (("catalogue", "hosts", "../../x"), "nearest"), (("catalogue", "clusters", "dgx"), "dgx-h100"), (("plna",), "plna"),
    (("plan",), "model"), (("plan", "tiny-llama"), "--cluster"), (("verify",), "file"),
    (("estimate", "tiny-llama", "-c", "cpu-local"), "--strategy"),
])  # fmt: skip
def test_a_command_that_is_none_is_refused(words: tuple[str, ...], says: str):
    assert says in refused(*words)


@pytest.mark.parametrize("words", [(), ("plan",), ("estimate",), ("catalogue",), ("models",), ("verify",)])
def test_help_begins_with_what_the_command_does(words: tuple[str, ...]):
    answer = meshwright(*words, "--help")

    first = next(line for line in answer.out.splitlines()[2:] if line.strip() and "Usage" not in line)
    assert answer.code == 0
    assert len(first.split()) > 6


def test_the_version_is_that_of_the_package():
    from planner import __version__

    assert meshwright("--version").out == f"meshwright {__version__}\n"


def test_the_command_runs_as_a_process_without_colours_or_trailing_blanks():
    answer = process(*TINY, PYTHONIOENCODING="ascii", NO_COLOR="1")

    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    assert "\x1b" not in answer.stdout
    assert all(line == line.rstrip() and len(line) <= 120 for line in answer.stdout.splitlines())


def test_a_closed_pipe_leaves_no_traceback():
    run = [sys.executable, "-m", "planner.cli", "catalogue"]
    child = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    child.stdout.close()

    assert "Traceback" not in child.stderr.read()
    child.stderr.close()
    child.wait(timeout=30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_with_130_and_no_traceback(number):
    asked = ["deepseek-v3", "-c", "dgx-h100:2048", "--global-batch", "110880", "--json"]
    run = [sys.executable, "-c", "from planner.cli import main; print('ready', flush=True); main()", "plan", *asked]
    restored = signal.signal(signal.SIGINT, signal.default_int_handler)
    child = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, restored)
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.5)
    child.send_signal(number)
    out, err = child.communicate(timeout=30)

    assert child.returncode == 130
    assert "Traceback" not in err
    assert out == ""


def test_importing_the_planner_is_quick():
    code = "import time; t = time.perf_counter(); import planner; print(time.perf_counter() - t)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert float(run.stdout) < 0.5
