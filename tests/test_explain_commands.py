"""``meshwright explain`` and ``meshwright why-not``: of a plan found first and of a saved one; bad input refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import meshwright, refused

TINY = ("tiny-llama", "--cluster", "cpu-local")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A plan.json as the command writes it."""
    folder = tmp_path_factory.mktemp("plan") / "launch"
    answer = meshwright("plan", *TINY, "--out", str(folder))
    assert answer.code == 0, answer.err
    return str(folder / "plan.json")


def test_a_saved_plan_is_explained_as_the_one_that_is_found(saved: str):
    found, read = meshwright("explain", *TINY, "--json"), meshwright("explain", saved, "--json")

    assert (found.code, read.code) == (0, 0), (found.err, read.err)
    for record in (found.json, read.json):
        for row in record["bought"]:
            row.pop("search_s")
    assert found.json["bought"][0]["name"] == "memory"
    assert [{k: v for k, v in row.items() if k != "search_s"} for row in found.json["bought"]] == [
        {k: v for k, v in row.items() if k != "search_s"} for row in read.json["bought"]
    ]


def test_limits_and_objectives_of_a_saved_plan_are_not_asked_again(saved: str):
    said = refused("explain", saved, "--limit", "step-time=1 h", "--tokens", "1T", "--objective", "energy")

    assert "leave out --objective, --tokens, --limit" in said


@pytest.mark.slow
def test_the_plan_to_be_explained_may_offload_and_run_slower():
    asked = ("llama-3.1-8b", "--cluster", "rtx-4090-host:1", "--tiers", "dram", "--power-cap", "5.5 kW", "--clocks",
             "--global-batch", "8", "--pin", "pp=4,micro_batch=1")  # fmt: skip
    explained, other = meshwright("explain", *asked, "--json"), meshwright("why-not", *asked[:1], "tp=2", *asked[1:])

    assert (explained.code, other.code) == (0, 0), (explained.err, other.err)
    assert "memory tiers" in {term["name"] for term in explained.json["time"]}
    for part in ("clocks ", "of the full clock", "offload ", "to dram"):
        assert part in other.out


def test_an_explanation_is_printed_with_its_parts():
    answer = meshwright("explain", *TINY, "--more", "25%")

    assert answer.code == 0, answer.err
    for part in ("where the time goes", "which limits bind", "25% more", "memory", "left out: power cap"):
        assert part in answer.out


def test_why_not_answers_of_a_found_and_of_a_saved_plan(saved: str):
    for source in (TINY, (saved,)):
        answer = meshwright("why-not", *source[:1], "tp=4", *source[1:])
        assert answer.code == 0, answer.err
        assert "why not tp=4: the best plan with it takes" in answer.out
    assert meshwright("why-not", saved, "tp=4", "--json").json["verdict"] == "worse"


def test_what_is_ruled_out_is_an_answer_and_no_failure(saved: str):
    answer = meshwright("why-not", saved, "tp=3")

    assert answer.code == 0
    assert "tp=3 is not legal: tp must divide" in " ".join(answer.out.split())


def test_nothing_to_explain_where_nothing_fits():
    answer = meshwright("explain", "llama-3.1-70b", "-c", "dgx-h100", "--json")

    assert answer.code == 1
    assert answer.json["status"] == "infeasible"
    assert answer.json["repairs"][0].keys() >= {"change", "changes", "need_bytes", "limit_bytes", "step_s"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("explain", "tiny-llama"), "needs a cluster"),
        (("explain", "no-such-file.json"), "needs a cluster"),
        (("explain", *TINY, "--more", "ten"), "is a percentage"),
        (("explain", *TINY, "--more", "-10%"), "more=-0.1"),
        (("explain", *TINY, "--more", "nan%"), "more=nan"),
        (("why-not", TINY[0], "tp=two", *TINY[1:]), "tp='two' must be a whole number"),
        (("why-not", TINY[0], "speed=1", *TINY[1:]), "cannot pin 'speed'"),
        (("why-not", TINY[0], "", *TINY[1:]), "at least one pin"),
    ],
)
def test_bad_input_is_refused(words: tuple[str, ...], says: str):
    assert says in refused(*words)


def test_a_saved_plan_keeps_its_own_options(saved: str):
    message = refused("explain", saved, "--pin", "tp=2", "--seq-len", "64")
    assert "--pin" in message
    assert "--seq-len" in message


def test_a_saved_plan_of_another_cluster_is_refused(saved: str, tmp_path: Path):
    assert "plan again" in refused("why-not", saved, "tp=2", "--cluster", "cpu-local:2")
