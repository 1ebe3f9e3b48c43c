"""``meshwright calibrate`` from the command to a plan: a short measurement, its files, and a plan that uses them."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

from test_measure import ranks

from planner import plan
from planner.cli import app
from planner.machine import calibrate_command

PINS = "tp=1,pp=1,dp_replicate=2,zero=0,micro_batch=2,devices=2"


def two_small_ranks(launches: list, *more: object) -> tuple[dict[str, str], list]:
    """What the command measures, with few points and without torchrun."""
    [asked] = launches
    tree = dict(ranks()[0].environment)["PYTHONPATH"]
    tests = os.pathsep.join([tree, str(Path(__file__).parent)])
    each = [
        dataclasses.replace(
            it, module="small_calibration", arguments=asked.arguments,
            environment=(*it.environment, ("PYTHONPATH", tests)),
        )
        for it in ranks()
    ]  # fmt: skip
    return measured(each, *more)


measured = calibrate_command.measured_texts


@pytest.mark.slow
def test_a_plan_uses_what_was_measured_here(tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate_command, "measured_texts", two_small_ranks)
    app(["calibrate", "--out", str(tmp_path), "--processes", "2", "--seconds", "2"], standalone_mode=False)
    calibration = tmp_path / "calibration.toml"
    fits = tomllib.loads(calibration.read_text())

    assert {it.name for it in tmp_path.iterdir()} == {"calibration.toml", "cluster.toml", "points.json"}
    assert fits["machine"]["processes"] == 2 and fits["machine"]["rates"]["fp32"] > 1e9
    for table in ("gemm", "attention", "moving", "scale_up", "p2p", "stack"):
        assert table in fits
    found = plan("tiny-llama", tmp_path / "cluster.toml", seq_len=128, global_batch=16, pins=PINS)
    assert found.cluster.devices_used == 2 and found.workload.stack.name == "torch-eager"

    # Products ten times as slow, and nothing else: the same plan takes longer by its products.
    fraction = fits["gemm"]["fp32"]["compute_fraction"]["value"]
    calibration.write_text(
        calibration.read_text().replace(
            f"compute_fraction = {{ value = {fraction}", f"compute_fraction = {{ value = {fraction / 10:.4g}", 1
        )
    )
    slower = plan("tiny-llama", tmp_path / "cluster.toml", seq_len=128, global_batch=16, pins=PINS)
    assert slower.step_s > 1.05 * found.step_s
    assert slower.proof.cost_model_digest != found.proof.cost_model_digest
