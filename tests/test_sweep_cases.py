"""Cases: every combination, known by what is asked and not by how it is spelled."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, small_cluster, tiny_config

from planner.errors import BadInput
from planner.sweeps.cases import asked, cases_in, every_case, expanded
from topologies.ready import cluster_names, read_cluster

BASE = {"model": "llama-3.2-1b", "cluster": "dgx-h100:1"}


def digest(**options: object) -> str:
    return asked([{**BASE, **options}])[0].digest


@examples(50)
@given(st.lists(st.integers(1, 3), min_size=2, max_size=4))
def test_every_combination_once(sizes):
    names = ("seq_len", "global_batch", "headroom", "time_limit_s")[: len(sizes)]
    lists = {name: list(range(1, size + 1)) for name, size in zip(names, sizes, strict=True)}
    found = [tuple(sorted(case.options.items())) for case in every_case({**BASE, **lists})]
    count = 1
    for size in sizes:
        count *= size

    assert len(found) == len(set(found)) == count


def test_braces_make_alternatives():
    assert expanded("dgx-{h100,a100}:{1, 2}") == ["dgx-h100:1", "dgx-h100:2", "dgx-a100:1", "dgx-a100:2"]
    assert expanded("dgx-h100") == ["dgx-h100"]
    assert [case.cluster for case in every_case({**BASE, "cluster": ["dgx-h100:{1,2}", "dgx-a100"]})] == [
        "dgx-h100:1", "dgx-h100:2", "dgx-a100",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "same",
    [
        ({"pins": "tp=4,zero=1"}, {"pins": {"zero": 1, "tp": 4}}),
        ({"power_cap": "9 kW"}, {"power_cap": 9000}),
        ({"time_limit_s": 60}, {}),
        ({"objective": "time"}, {}),
        ({"limits": "host-power=8 kW,step-time=1 h"}, {"limits": {"step-time": 3600, "host-power": 8e3}}),
        ({"tokens": "1T"}, {"tokens": 1e12}),
        ({"objective": "time,energy", "slack": "2%"}, {"objective": "time,energy", "slack": 0.02}),
        ({"alternatives": 0}, {}),
    ],
)
def test_one_question_in_two_spellings_is_one_case(same):
    assert len(asked([{**BASE, **options} for options in same])) == 1


def test_every_option_is_part_of_the_question():
    values = {
        "seq_len": 1024, "global_batch": 64, "precision": "fp8", "optimizer": "sgd", "objective": "money",
        "power_cap": "9 kW", "headroom": 0.1, "pins": "tp=2", "time_limit_s": 5.0, "limits": "step-time=1 h",
        "tokens": "1T", "slack": "2%",
    }  # fmt: skip
    digests = {digest(), *(digest(**{name: value}) for name, value in values.items())}

    assert len(digests) == 1 + len(values)


def test_a_changed_file_is_another_question(tmp_path):
    path = tmp_path / "config.json"
    found = set()
    for layers in (4, 5):
        path.write_text(json.dumps(tiny_config(num_hidden_layers=layers)))
        found.add(asked([{**BASE, "model": str(path)}])[0].digest)
    clusters = [asked([{**BASE, "cluster": small_cluster(n)}])[0].digest for n in (1, 2)]

    assert len(found) == len(set(clusters)) == 2


def test_what_cannot_be_read_is_a_question_with_its_error():
    (one,) = asked([{"model": "nope", "cluster": "dgx-h100:0"}])

    assert "no model 'nope'" in one.error
    assert "whole one from 1" in one.error


def test_toml_and_yaml_mean_the_same(tmp_path):
    toml = 'time_limit_s = 5.0\n[[cases]]\nmodel = ["a", "b"]\ncluster = "c:{1,2}"\n[[cases]]\nmodel = "d"\ncluster="e"'
    yaml = "time_limit_s: 5.0\ncases:\n- {model: [a, b], cluster: 'c:{1,2}'}\n- {model: d, cluster: e}\n"
    (tmp_path / "s.toml").write_text(toml)
    (tmp_path / "s.yaml").write_text(yaml)
    found = cases_in(tmp_path / "s.toml")

    assert found == cases_in(tmp_path / "s.yaml")
    assert [(case.model, case.cluster) for case in found] == [
        ("a", "c:1"), ("a", "c:2"), ("b", "c:1"), ("b", "c:2"), ("d", "e"),
    ]  # fmt: skip
    assert {case.options["time_limit_s"] for case in found} == {5.0}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("s.toml", "model = ", "cannot be read"),
        ("s.yaml", "a: [", "is not YAML"),
        ("s.yaml", "- just a list", "not a table"),
        ("s.txt", "", "must end in .toml"),
        ("s.toml", "model = 'a'\ncluster = []", "an empty list leaves no case"),
        ("s.toml", "model = 'a'", "a mapping with model and cluster"),
        ("s.toml", "model = 'a'\ncluster = 'b'\ntemprature = 1", "temprature: no option"),
        ("s.toml", "cases = 3", "a list of tables"),
        (
            "s.toml",
            "model='a'\ncluster='b'\nseq_len=[" + "1," * 400 + "]\nglobal_batch=[" + "1," * 400 + "]",
            "160,000",
        ),
    ],
)
def test_wrong_files_are_refused(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)

    with pytest.raises(BadInput, match=says):
        cases_in(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadInput, match="is not a file"):
        cases_in(tmp_path)


@pytest.mark.parametrize("name", cluster_names())
def test_every_cluster_can_be_sent_to_a_worker(name):
    cluster = read_cluster(name)
    received = pickle.loads(pickle.dumps(cluster))
    received.__dict__.pop("digest", None)

    assert received == cluster
    assert received.digest == cluster.digest
