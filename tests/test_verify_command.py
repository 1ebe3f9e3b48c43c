"""``meshwright verify``: what the command wrote verifies; what was changed, cut short or never a plan is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import meshwright, refused

TINY = ("plan", "tiny-llama", "--cluster", "cpu-local")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a plan and both launch files, as the command writes them."""
    folder = tmp_path_factory.mktemp("plan") / "launch"
    answer = meshwright(*TINY, "--out", str(folder), "--target", "torchrun,slurm")
    assert answer.code == 0, answer.err
    return folder


def test_a_written_plan_verifies(written: Path):
    answer = meshwright("verify", str(written / "plan.json"))

    assert answer.code == 0, answer.err
    assert answer.out.startswith("verified")


TAMPERED = [
    ('"schema_version": 1', '"schema_version": 2', "schema version 1"),
    ('"step_s": ', '"step_s": 1', "step_s"),
    ('"step_s": ', '"step_s": NaN, "x": ', "NaN"),
    ('"gap": 0.0', '"gap": 0.5', "gap"),
    ('"hidden_size": ', '"hidden_size": -', "hidden_size"),
    ('"source": "cpu-local"', '"source": "gone.toml"', "gone.toml"),
    ('"micro_batch": ', '"micro_batch": 99', "micro_batch"),
    ('"placement": {', '"placement": {"x": [1],', "placement"),
    ('"zero": ', '"zero": 7', "zero"),
    ('"headroom": ', '"headroom": 7', "headroom"),
]


@pytest.mark.parametrize(("old", "new", "says"), TAMPERED)
def test_a_tampered_plan_is_refused(written: Path, tmp_path: Path, old: str, new: str, says: str):
    text = (written / "plan.json").read_text()
    assert old in text
    path = tmp_path / "plan.json"
    path.write_text(text.replace(old, new, 1) if "headroom" not in old else new.join(text.rsplit(old, 1)))

    answer = meshwright("verify", str(path))

    assert answer.code == 2
    assert says in answer.err


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b"null", b"[" * 200_000, b"\xff\xfe", b"1" * 5000, b'{"schema_version":1}']
)  # fmt: skip
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "plan.json"
    path.write_bytes(content)

    assert "plan" in refused("verify", str(path))


def test_verify_refuses_what_is_no_file_or_huge(tmp_path: Path):
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(10**9)

    assert "not a file" in refused("verify", str(tmp_path))
    assert "not a file" in refused("verify", "/dev/zero")
    assert "not a file" in refused("verify", str(tmp_path / "none.json"))
    assert "at most" in refused("verify", str(huge))


def test_a_users_own_model_and_cluster_plan_and_verify(tmp_path: Path):
    from planner.read_model import PRESETS
    from topologies.ready import CLUSTERS

    model, cluster = tmp_path / "mine" / "config.json", tmp_path / "lab.toml"
    model.parent.mkdir()
    model.write_text((PRESETS / "tiny-llama.json").read_text())
    cluster.write_text((CLUSTERS / "cpu-local.toml").read_text())

    answer = meshwright("plan", str(model.parent), "-c", f"{cluster}:1", "--json", "--out", str(tmp_path / "out"))
    moved = cluster.rename(tmp_path / "moved.toml")
    plan = str(tmp_path / "out" / "plan.json")

    assert answer.code == 0, answer.err
    assert answer.json["model"]["name"] == "mine"
    assert "lab.toml" in refused("verify", plan)
    assert meshwright("verify", plan, "--cluster", f"{moved}:1").code == 0


def test_numbers_of_the_json_are_finite(written: Path):
    def no_constant(name: str) -> None:
        raise AssertionError(name)

    json.loads((written / "plan.json").read_text(), parse_constant=no_constant)
