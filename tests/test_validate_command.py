"""``meshwright validate``: what it prints, writes and refuses, on rows and predictions that are made up."""

from __future__ import annotations

import csv
import json
import os
import sys
import types
from pathlib import Path

import pytest
from command import meshwright, refused
from measured import make_case, predicted

import planner.published
from planner.errors import BadInput
from planner.published.command import COLUMNS, complete, write_csv
from planner.published.rows import CARRIED

CASES = [
    make_case("mb-1", step_s=10.0, mem=60.0, title="A"),
    make_case("mb-2", step_s=10.0, title="B"),
    make_case("tt-1", step_s=1.2345678, title="C", accelerator="H100 96GB HBM2e (500W cap)"),
    make_case("tt-2", fits=0, title="C"),
    make_case("bs-1", step_s=3.0, job=None, missing="no sequence length", stated=False),
    make_case("bs-2", job=None, missing="no figure", stated=False),
]
LINES = [
    predicted(CASES[0], 11.0), predicted(CASES[0], 66.0, "peak_mem_gib"), predicted(CASES[0], 1, "fits", within=0),
    predicted(CASES[1], 9.0), predicted(CASES[2], 1.3), predicted(CASES[3], 0, "fits", within=0),
    predicted(CASES[4], None),
]  # fmt: skip
LEFT_OUT = [predicted(CASES[0], 12.0), *LINES[1:]]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that reads as :data:`CASES`, with models that predict :data:`LINES` and :data:`LEFT_OUT`."""
    put_models(monkeypatch, CASES, LINES, LEFT_OUT)
    file = tmp_path / "rows.csv"
    file.write_text("id\n")
    return file


def put_models(monkeypatch: pytest.MonkeyPatch, cases, lines, left_out) -> list[list[str]]:
    """Replace reading and prediction; returns the ids that prediction is asked for, call by call."""
    asked = []

    def predict(cases, *, progress):
        asked.append([case.id for case in cases])
        progress(len(cases), len(cases))
        ids = {case.id for case in cases}
        return [line for line in lines if line.case.id in ids]

    models = types.SimpleNamespace(predict=predict, left_out=lambda cases, lines: left_out)
    reader = types.SimpleNamespace(read_rows=lambda path: cases, CARRIED=(Path(__file__),))
    if isinstance(cases, dict):
        reader.read_rows = lambda path: cases[path.name]
    for name, module in (("predict", models), ("rows", reader)):
        monkeypatch.setitem(sys.modules, f"planner.published.{name}", module)
        monkeypatch.setattr(planner.published, name, module, raising=False)
    return asked


def read(file: Path) -> list[dict[str, str]]:
    """The lines of a CSV file."""
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_report_shows_targets_first_and_errors_after(rows):
    answer = meshwright("validate", str(rows), "--worst", "2")

    assert answer.code == 0, answer.err
    assert answer.err == ""
    places = [
        answer.out.index(title) for title in ("Targets", "90 % intervals", "Time of a step", "Fits", "Worst rows")
    ]
    assert places == sorted(places)
    assert "6 rows, 4 predicted" in answer.out
    assert "no sequence length" in answer.out


def test_report_stays_within_120_columns_and_shows_whole_figures(rows):
    out = meshwright("validate", str(rows), "--worst", "2").out

    assert max(map(len, out.splitlines())) <= 120
    (line,) = [line for line in out.splitlines() if "time, mean error" in line and "Megatron" in line]
    assert line.split()[-6:] == ["2", "<=", "5.0", "10.0", "15.0", "no"]


def test_json_has_the_figures_of_the_tables(rows):
    answer = meshwright("validate", str(rows), "--json", "--worst", "1")
    found = answer.json

    assert answer.code == 0
    assert (found["schema_version"], found["rows"], found["predicted"], found["left_out"]) == (1, 6, 4, True)
    assert found["worst"][0]["id"] == "mb-1"
    (mb,) = [one for one in found["groups"] if (one["source"], one["quantity"]) == ("mb", "step_s")]
    assert mb["plain"]["errors"]["mean"] == pytest.approx(0.1)
    assert mb["left_out"]["errors"]["mean"] == pytest.approx(0.15)
    assert found["fits"]["all"] == {"out_of_memory": 1, "caught": 1, "ran": 1, "false_alarms": 0}
    (target,) = [one for one in found["targets"] if one["figure"] == "time, mean error" and "dense" in one["set"]]
    assert target["met"] is False


def test_rows_outside_the_fit_are_told_to_be_so(rows, monkeypatch):
    put_models(monkeypatch, CASES, LINES, None)

    out = meshwright("validate", str(rows)).out
    assert "out of sample" in out
    assert "left out" not in out
    assert meshwright("validate", str(rows), "--json").json["left_out"] is False


def test_predictions_have_every_row_and_a_reason_where_there_is_none(rows, tmp_path):
    out = tmp_path / "predictions.csv"
    assert meshwright("validate", str(rows), "--out", str(out)).code == 0

    lines = read(out)
    assert tuple(lines[0]) == COLUMNS == ("id", "quantity", "measured", "predicted", "low", "high", "unit", "reason")
    assert [(one["id"], one["quantity"]) for one in lines] == [
        ("mb-1", "step_s"), ("mb-1", "peak_mem_gib"), ("mb-1", "fits"), ("mb-2", "step_s"), ("tt-1", "step_s"),
        ("tt-2", "fits"), ("bs-1", "step_s"), ("bs-2", "step_s"),
    ]  # fmt: skip
    assert lines[0] == {
        "id": "mb-1", "quantity": "step_s", "measured": "10", "predicted": "11", "low": "9.9", "high": "12.1",
        "unit": "s", "reason": "",
    }  # fmt: skip
    assert (lines[2]["measured"], lines[2]["predicted"], lines[2]["unit"]) == ("", "1", "")
    assert lines[4]["measured"] == "1.23457"
    assert [one["reason"] for one in lines if not one["predicted"]] == ["no sequence length", "no figure"]
    assert sorted(tmp_path.iterdir()) == [out, rows]


def test_a_measured_quantity_that_no_one_predicts_stays_with_a_reason():
    line, other = complete([make_case("mb-1", step_s=2.0, mem=3.0)], [])

    assert (line.quantity, line.measured, line.predicted) == ("step_s", 2.0, None)
    assert "step_s" in line.reason
    assert (other.quantity, other.measured) == ("peak_mem_gib", 3.0)


def test_a_file_that_cannot_be_replaced_is_left_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "predictions.csv"
    file.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(BadInput, match="No space left"):
        write_csv(file, LINES)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_only_the_sources_asked_for_are_predicted_but_the_baseline_knows_all(rows, monkeypatch):
    asked = put_models(monkeypatch, CASES, LINES, None)
    found = meshwright("validate", str(rows), "--source", "tt", "--json").json

    assert asked == [["tt-1", "tt-2"]]
    (tt,) = [one for one in found["groups"] if one["quantity"] == "step_s"]
    assert tt["constant"]["mean"] == pytest.approx(10 / 1.2345678 - 1)


@pytest.mark.parametrize("words", [("--source", "nope"), ("--source", ","), ("--worst", "-1")])
def test_options_that_mean_nothing_are_refused(rows, words):
    assert words[0] in refused("validate", str(rows), *words)


def test_sources_of_the_file_are_listed_when_one_is_unknown(rows):
    assert "bs, mb, tt" in refused("validate", str(rows), "--source", "mb,nope")


@pytest.mark.parametrize("out", ["", ".", "rows.csv", "no/such/folder.csv", "rows.csv/x.csv", "pipe", "a\0b"])
def test_places_that_cannot_be_written_are_refused_before_anything_is_predicted(rows, monkeypatch, out):
    asked = put_models(monkeypatch, CASES, LINES, None)
    monkeypatch.chdir(rows.parent)
    os.mkfifo("pipe")
    before = rows.read_text()

    message = refused("validate", "rows.csv", "--out", out)
    assert "--out" in message or "cannot write" in message
    assert asked == []
    assert rows.read_text() == before


def test_an_older_file_is_replaced(rows, tmp_path):
    out = tmp_path / "predictions.csv"
    out.write_text("old")

    assert meshwright("validate", str(rows), "--out", str(out)).code == 0
    assert read(out)[0]["id"] == "mb-1"


@pytest.mark.parametrize("name", ["absent.csv", "."])
def test_a_file_that_is_not_there_is_refused(rows, name):
    assert "is no file" in refused("validate", str(rows.parent / name))


def test_a_file_without_rows_is_refused(rows, monkeypatch):
    put_models(monkeypatch, [], [], None)

    assert "no rows" in refused("validate", str(rows))


def test_a_file_of_refused_rows_still_makes_a_report(rows, monkeypatch):
    put_models(monkeypatch, CASES[4:], [], None)
    answer = meshwright("validate", str(rows))

    assert answer.code == 0
    assert "2 rows, 0 predicted" in answer.out
    assert json.dumps(meshwright("validate", str(rows), "--json").json)


def test_several_files_make_one_report(tmp_path, monkeypatch):
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    asked = put_models(monkeypatch, {"a.csv": CASES[:2], "b.csv": CASES[2:]}, LINES, LEFT_OUT)
    for file in files:
        file.write_text("id\n")

    assert "6 rows, 4 predicted" in meshwright("validate", *map(str, files)).out
    assert asked == [[case.id for case in CASES]]


def test_an_id_of_two_files_is_refused(rows, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("id\n")

    message = refused("validate", str(rows), str(other))
    assert "other.csv" in message and "'bs-1' is in another file too" in message


def test_without_a_file_the_rows_that_come_along_are_reported_on(monkeypatch):
    put_models(monkeypatch, CASES, LINES, LEFT_OUT)

    assert "6 rows, 4 predicted" in meshwright("validate").out


def test_the_rows_that_come_along_are_there():
    assert all(path.is_file() for path in CARRIED)
