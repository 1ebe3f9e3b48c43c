"""Emulated clusters: the commands that build them, what refuses them, and how predictions are scored."""

from __future__ import annotations

import json

import pytest
import typer

from planner import plan
from planner.cli import app
from planner.emulated import network as networks
from planner.emulated.cases import CASES, STRATEGIES
from planner.emulated.network import Network
from planner.emulated.ranking import Row, regret, rows_of, score, told_apart
from planner.emulated.study import Run, Study, strategies
from planner.errors import BadInput, JobFailed, Unsupported
from planner.machine import calibrate_command, local_job
from planner.options import pins_of
from planner.read_model import read_config
from topologies.readers import detect


def test_every_host_has_a_link_with_a_bucket_at_both_ends():
    commands = [" ".join(words) for words in Network.of("2x1-100mbit").built_by()]
    shape = "root tbf rate 100mbit burst 64kb latency 100ms"

    assert commands[:3] == [f"ip netns add {name}" for name in ("mesh-switch", "mesh-host-0", "mesh-host-1")]
    for k in (0, 1):
        assert f"ip -n mesh-host-{k} link add eth0 type veth peer name port{k} netns mesh-switch" in commands
        assert f"ip -n mesh-host-{k} addr add 10.77.0.{k + 1}/24 dev eth0" in commands
        assert f"tc -n mesh-host-{k} qdisc replace dev eth0 {shape}" in commands
        assert f"tc -n mesh-switch qdisc replace dev port{k} {shape}" in commands
    assert all(words[1] in ("netns", "-n") for words in Network.of("4x2-1gbit").built_by())


def test_launchers_enter_their_namespace_and_meet_at_the_first():
    first, second = Network.of("2x3-1gbit").launches("m", (), 7)

    assert second.words()[:4] == ["ip", "netns", "exec", "mesh-host-1"]
    assert (second.rank, second.hosts, second.processes, second.address) == (1, 2, 3, first.address)
    assert dict(second.environment) == {"GLOO_SOCKET_IFNAME": "eth0"}


@pytest.mark.parametrize("text", ["2x1", "1x1-1gbit", "2x0-1gbit", "17x1-1gbit", "2x1-1gbit; reboot", "2x1-fast"])
def test_what_is_no_network_is_refused(text):
    with pytest.raises(BadInput, match="HOSTSxRANKS-RATE"):
        Network.of(text)


def test_root_and_tools_are_needed_and_named(monkeypatch, tmp_path):
    monkeypatch.setattr(networks.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(networks.shutil, "which", lambda tool: f"/sbin/{tool}")
    with pytest.raises(Unsupported, match="need root"):
        app(["emulate", "--out", str(tmp_path / "s"), "--networks", "2x1-1gbit"], standalone_mode=False)
    monkeypatch.setattr(networks.shutil, "which", lambda tool: None)
    with pytest.raises(Unsupported, match="'ip', which is not installed"):
        networks.check_allowed()
    assert not (tmp_path / "s").exists()


def test_a_refused_command_is_named_and_all_is_taken_down(monkeypatch):
    ran = []

    class Done:
        stdout, stderr = "mesh-host-0 (id: 1)\nsomebody-elses\nmesh-hosting\n", "not permitted"

        def __init__(self, words):
            self.returncode = int("link" in words)
            ran.append(words)

    monkeypatch.setattr(networks, "check_allowed", lambda: None)
    monkeypatch.setattr(networks.subprocess, "run", lambda words, **options: Done(words))
    with pytest.raises(Unsupported, match="refuses 'ip -n mesh-switch link add bridge0 type bridge': not permitted"), \
            networks.built(Network.of("2x1-1gbit")):  # fmt: skip
        pass
    deleted = [words[3] for words in ran if words[2] == "delete"]
    assert deleted == ["mesh-host-0", "mesh-host-0"]


def test_ten_strategies_of_three_models_for_every_number_of_ranks():
    for world, listed in STRATEGIES.items():
        assert len(set(listed)) == 10
        for pins in map(pins_of, listed):
            degrees = [pins.get(name, 1) for name in ("tp", "pp", "dp", "dp_shard")]
            assert degrees[0] * degrees[1] * degrees[2] * degrees[3] == world
    assert len({read_config(case.config, case.name).digest for case in CASES}) == 3
    with pytest.raises(BadInput, match="2x3-1gbit has 6 ranks"):
        list(strategies(Network.of("2x3-1gbit")))


def row(strategy: str, predicted: float, measured: float, spread: float = 0.1, case: str = "a") -> Row:
    return Row("net", case, strategy, predicted, measured, spread, (0.02, -0.04))


def test_only_pairs_beyond_both_spreads_count():
    assert told_apart(row("x", 1, 1.0), row("y", 1, 1.2))
    assert not told_apart(row("x", 1, 1.0, 0.3), row("y", 1, 1.2))
    assert not told_apart(row("x", 1, 1.0), row("y", 1, 1.2, 0.2))


def test_scores_by_hand():
    """x < y < z measured; x and z are predicted in the wrong order, x and y are not told apart, w is another case's."""
    rows = [row("x", 3.0, 1.0), row("y", 1.0, 1.05), row("z", 2.0, 2.0), row("w", 9.0, 0.1, case="b")]
    found = score("net", [*rows, Row("other", "a", "x", 1.0, 9.0, 0.0, ())])

    assert (found.rows, found.pairs, found.right) == (4, 2, 1)
    assert found.in_order == 0.5
    assert found.regrets == {"a": 0.0, "b": 0.0}
    assert found.median_time_error == pytest.approx((0.0476 + 2.0) / 2, abs=1e-3)
    assert (found.median_memory_error, found.worst_memory_error) == (pytest.approx(0.03), 0.04)


def test_regret_is_beyond_the_spread():
    assert regret([row("x", 2.0, 1.0), row("y", 1.0, 1.5, 0.2)]) == pytest.approx(0.5 - 0.2)


def planned(folder, net: Network) -> None:
    """A made-up text for every plan of the study."""
    (folder / net.name / "plans").mkdir(parents=True)
    for case, k, _ in strategies(net):
        (folder / net.name / "plans" / f"{case.name}-{k}.json").write_text(f"{case.name} {k}")


def line_of(item: dict) -> str:
    """What the job writes of it."""
    rank = {"rank": 0, "pipeline_rank": 0, "step_s": [0.5] * item["key"]["steps"], "peak_bytes": 1e6}
    return json.dumps({**item["key"], "ranks": [rank], "at": "now", "load": 0.5}) + "\n"


def test_a_study_goes_on_where_it_stopped(tmp_path):
    study, net = Study(tmp_path, rounds=2), Network.of("2x1-1gbit")
    planned(tmp_path, net)
    listed = study.missing(net)
    (tmp_path / "runs.jsonl").write_text(line_of(listed[33]) + '{"network": "2x1-')

    assert len(listed) == 2 * 30 and listed[0]["key"]["round"] == 0
    assert study.missing(net) == listed[:33] + listed[34:]
    assert len(study.runs()) == len(study.planned_runs(net)) == 1


def test_a_run_of_other_steps_or_of_another_plan_is_missing(tmp_path):
    net = Network.of("2x1-1gbit")
    study, longer = (Study(tmp_path, rounds=1, steps=steps) for steps in (4, 5))
    planned(tmp_path, net)
    first = study.missing(net)[0]
    (tmp_path / "runs.jsonl").write_text(line_of(first))

    assert (len(study.missing(net)), len(longer.missing(net))) == (29, 30)
    (tmp_path / net.name / "plans" / f"{CASES[0].name}-0.json").write_text("another")
    assert len(study.missing(net)) == 30 and study.planned_runs(net) == []


@pytest.mark.parametrize(
    "change",
    [{"round": None}, {"ranks": []}, {"ranks": [{"step_s": [0.5]}]}, {"ranks": [7]}, {"steps": 5}, {"plan": None}],
)
def test_a_line_that_is_no_run_is_left_out(tmp_path, change):
    study, net = Study(tmp_path), Network.of("2x1-1gbit")
    planned(tmp_path, net)
    line = line_of(study.missing(net)[0])
    (tmp_path / "runs.jsonl").write_text(line + json.dumps(json.loads(line) | change) + '\n7\n[]\n{"a": 1}\n')

    assert len(study.runs()) == 1


def test_runs_become_a_row_by_hand(tmp_path):
    """Slowest ranks' steps 0.5, 0.6 and 0.7, 0.8: medians 0.55 and 0.75, their median 0.65, apart by 0.2."""
    found = plan("tiny-llama", "cpu-local:1", seq_len=64, global_batch=8, alternatives=0)
    (tmp_path / "plan.json").write_text(found.to_json())

    def run(number: int, first_s: float, stage: int = 0) -> Run:
        ranks = [
            {"pipeline_rank": stage, "step_s": [first_s, first_s + 0.1], "peak_bytes": 1e8},
            {"pipeline_rank": 0, "step_s": [first_s, first_s]},
        ]
        return Run(network="n", case="a", strategy="x", round=number, steps=2, plan="d", ranks=ranks)

    plans = {("n", "a", "x"): tmp_path / "plan.json"}
    (made,) = rows_of([run(0, 0.5), run(1, 0.7)], plans, rounds=2)

    assert (made.measured_s, made.spread) == (pytest.approx(0.65), pytest.approx(0.2 / 0.65))
    assert len(made.memory_errors) == 2 and rows_of([run(0, 0.5)], plans, rounds=2) == []
    with pytest.raises(BadInput, match="more stages than its plan"):
        rows_of([run(0, 0.5, stage=9)], plans, rounds=1)


@pytest.mark.parametrize("command", ["emulate", "calibrate"])
def test_a_place_that_cannot_be_made_is_said_first(tmp_path, command):
    (tmp_path / "file").write_text("")
    places = (tmp_path / "file", "is no directory"), (tmp_path / "file" / "s", "cannot be written"), ("x" * 300, "xxx")
    for out, said in places:
        with pytest.raises(BadInput, match=said):
            app([command, "--out", str(out)], standalone_mode=False)


@pytest.mark.parametrize("command", ["emulate", "calibrate"])
def test_no_number_is_no_time(tmp_path, command):
    with pytest.raises((BadInput, typer.BadParameter), match=r"nan is no time|Input should be"):
        app([command, "--seconds", "nan", "--out", str(tmp_path)], standalone_mode=False)


@pytest.mark.parametrize("instead", ["--published", "--collectives"])
def test_what_measures_nothing_takes_no_option_of_measuring(instead):
    with pytest.raises(BadInput, match=f"{instead} measures nothing, so it takes no --out or --port"):
        app(["calibrate", instead, "--port", "7", "--out", "x"], standalone_mode=False)


def test_a_calibration_has_at_most_64_processes(monkeypatch):
    monkeypatch.setattr(calibrate_command.os, "sched_getaffinity", lambda pid: set(range(200)))
    monkeypatch.setattr(detect, "detect", lambda: ([], []))
    assert calibrate_command.usual_processes() == 64


def test_the_seconds_reach_every_host_and_the_limit(monkeypatch):
    seen = {}

    def started(launches, limit_s, heard):
        seen.update(words=[launch.words() for launch in launches], limit_s=limit_s)
        raise JobFailed("enough")

    monkeypatch.setattr(local_job, "run_job", started)
    with pytest.raises(JobFailed, match="enough"):
        calibrate_command.measured_texts(Network.of("2x1-1gbit").launches("m", (), 7), 12.5, print, "x")

    assert [words[words.index("--budget-s") + 1] for words in seen["words"]] == ["12.5", "12.5"]
    assert seen["limit_s"] == 3 * 12.5 + calibrate_command.OVERHEAD_S
