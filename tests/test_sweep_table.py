"""The file of a sweep: readable after any kill, and never another's file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from planner.errors import BadInput
from planner.sweeps.table import COLUMNS, opened

ROWS = [
    {"case": "a1", "model": 'with "quotes", a comma', "status": "optimal", "objective": 0.1, "tp": 8},
    {"case": "b2", "model": "two\nlines\r\0and ü", "status": "infeasible", "reason": "x" * 5000},
    {"case": "c3", "model": "m", "status": "error", "error": "lost"},
]


def written(path, rows=ROWS, **how):
    with opened(path, resume=True) as table:
        for row in rows:
            table.append(row)
    return path.read_bytes()


def finished(path):
    with opened(path, resume=True) as table:
        return table.finished


@pytest.mark.parametrize("name", ["s.csv", "s.jsonl"])
def test_rows_are_lines(tmp_path, name):
    content = written(tmp_path / name)

    assert content.count(b"\n") == len(ROWS) + (name == "s.csv")
    assert finished(tmp_path / name) == {"a1", "b2"}
    assert b'"c3"' not in (tmp_path / name).read_bytes()


@pytest.mark.parametrize("name", ["s.csv", "s.jsonl"])
@examples(30)
@given(part=st.floats(0, 1))
def test_cut_anywhere_it_is_whole_again(tmp_path_factory, name, part):
    """Whatever the length at which a kill left it: the whole rows stay, the torn one goes, and it goes on."""
    path = tmp_path_factory.mktemp("cut") / name
    content = written(path, ROWS[:2])
    cut = content[: round(part * len(content))]
    path.write_bytes(cut)
    lines = cut.count(b"\n") - (name == "s.csv")

    assert finished(path) == set(["a1", "b2"][: max(0, lines)])
    written(path, [row for row in ROWS[:2] if row["case"] not in finished(path)])
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.csv", b"x,y\n1,2\n"),
        ("s.csv", b"my notes"),
        ("s.csv", b"\xff\xfe\n"),
        ("s.csv", ",".join(COLUMNS).encode() + b"\nonly,three,cells\n"),
        ("s.jsonl", b'{"loss": 3.2}\n'),
        ("s.jsonl", b"notes"),
        ("s.jsonl", b"[]\n"),
    ],
)
def test_another_file_is_left_alone(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)

    for resume in (True, False):
        with pytest.raises(BadInput, match="not written by a sweep"), opened(tmp_path / name, resume=resume):
            pass
    assert (tmp_path / name).read_bytes() == content


def test_two_sweeps_do_not_write_one_file(tmp_path):
    with (
        opened(tmp_path / "s.csv", resume=True),
        pytest.raises(BadInput, match="another sweep"),
        opened(tmp_path / "s.csv", resume=True),
    ):
        pass


def test_a_directory_is_no_file(tmp_path):
    (tmp_path / "s.csv").mkdir()

    with pytest.raises(BadInput, match="is a directory"), opened(tmp_path / "s.csv", resume=True):
        pass


def test_a_full_disk_is_said(tmp_path):
    with opened(tmp_path / "s.csv", resume=True) as table, pytest.raises(BadInput, match="cannot be written"):
        table.__class__(table.path, -1, table.finished).append(ROWS[0])
