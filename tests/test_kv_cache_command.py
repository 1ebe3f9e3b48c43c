"""``meshwright kv-cache`` and ``kv_cache``: what they say, and what they refuse."""

from __future__ import annotations

import re

import pytest
from command import meshwright, refused

from cost_models.workload import PRECISIONS
from planner.errors import BadInput, InfeasiblePlan
from planner.infrastructure.kv_cache import kv_cache
from planner.infrastructure.kv_cache_command import STORED


def test_the_command_says_what_fits_where():
    answer = meshwright("kv-cache", "llama-3.1-70b", "-c", "dgx-h100:1", "--context", "131072", "--batch", "16")
    assert (answer.code, answer.err) == (0, "")
    assert "16 sequences of 131,072 tokens, 327.7 kB a token in bf16" in " ".join(answer.out.split())
    it = meshwright("kv-cache", "llama-3.1-70b", "-c", "dgx-h100:1", "--context", "131072", "--batch", "16", "--json")
    assert it.json["token_s"] == pytest.approx(sum(it.json["terms"].values()))
    assert it.json["most_batch"] < 16
    assert it.json["joules_per_token"] > 0 and it.json["usd_per_million"] > 0
    fits = kv_cache("llama-3.1-70b", "dgx-h100:1", context=131072, batch=it.json["most_batch"])
    assert fits.places[0].share == 1.0
    assert fits.terms["memory tiers"] == 0.0


@pytest.mark.parametrize(("batch", "limited"), [("1", True), ("1000", False)])
def test_the_command_says_where_the_model_not_memory_is_the_limit(batch, limited):
    answer = meshwright("kv-cache", "llama-3.1-8b", "-c", "dgx-h100:1", "--context", "1000", "--batch", batch)
    said = "up to 131,072 tokens (all the model takes) at this batch" in " ".join(answer.out.split())

    assert said == limited and ("(all the" in answer.out) == limited


def test_stages_are_the_fewest_whose_weights_fit_and_copies_fill_the_cluster():
    it = kv_cache("llama-3.1-405b", "dgx-h100:5", context=8192, batch=4)

    assert (it.tp, it.pp, it.copies) == (8, 2, 2)
    assert it.terms["pipeline"] > 0
    assert kv_cache("llama-3.1-405b", "dgx-h100:5", context=8192, batch=4, weights="fp8").pp == 1


def test_refusals():
    words = ("kv-cache", "llama-3.1-8b", "-c", "dgx-h100:1", "--context")
    assert "--context 131073 is outside 1 to 131072, positions of 'llama-3.1-8b'" in refused(*words, "131073")
    assert "--tp 3 does not divide the sizes" in refused(*words, "8192", "--tp", "3")
    assert "--tp 16 is outside 1 to 8" in refused(*words, "8192", "--tp", "16")
    wide = ("kv-cache", "llama-3.1-8b", "-c", "gb200-nvl72:1", "--context", "8192", "--tp", "16")
    assert "--tp 16 divides the sizes of 'llama-3.1-8b', but not a scale-up domain of 72 devices; l" in refused(*wide)
    assert "--pp 2 is outside 1 to 1, stages of 8 devices in groups of tp=8" in refused(*words, "8192", "--pp", "2")
    with pytest.raises(InfeasiblePlan, match=r"keep .* a device; weights leave .*tiers none.*--cache fp8"):
        kv_cache("llama-3.1-8b", "dgx-h100:1", context=131072, batch=1000, tiers=())
    with pytest.raises(InfeasiblePlan, match=r"^one pass's logits of 2097152 .* take 1.08 TB.*fewer --batch"):
        kv_cache("llama-3.1-8b", "dgx-h100:1", context=131072, batch=2**24, tp=1)
    with pytest.raises(InfeasiblePlan, match=r"weights of 'llama-3.1-405b' in bf16 take 101.*more hosts"):
        kv_cache("llama-3.1-405b", "dgx-h100:1", context=8192, batch=1)
    assert "no memory tier 'cxl-nope' in the catalogue" in refused(*words, "8192", "--tiers", "cxl-nope")
    with pytest.raises(BadInput, match="hosts of 'irregular-64' differ"):
        kv_cache("llama-3.1-8b", "irregular-64", context=8192, batch=1)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"context": "5"}, "--context '5' is no whole number; give one from 1 to 131072"),
        ({"context": 5.7}, "--context '5.7' is no whole number"),
        ({"context": 0}, "--context 0 is outside 1 to 131072"),
        ({"batch": 1.5}, "--batch '1.5' is no whole number"),
        ({"batch": True}, "--batch 'True' is no whole number"),
        ({"pp": 1.5}, "--pp '1.5' is no whole number"),
        ({"tp": 2.0}, "--tp '2.0' is no whole number"),
        ({"headroom": "5%"}, "--headroom '5%' is no number from 0 to below 1"),
        ({"headroom": float("nan")}, "--headroom 'nan' is no number"),
        ({"cache": "int4"}, "--cache 'int4' is none of bf16, fp16, fp8, fp4, fp32"),
    ],
)
def test_from_python_nothing_is_taken_for_a_number_that_is_none(given, complaint):
    with pytest.raises(BadInput, match=re.escape(complaint)):
        kv_cache("llama-3.1-8b", "dgx-h100:1", **{"context": 8192, "batch": 1, **given})


def test_the_command_takes_every_precision_of_the_model():
    words = ("kv-cache", "llama-3.1-8b", "-c", "dgx-b200:1", "--context", "8192", "--tp", "1", "--json")
    half, quarter = (meshwright(*words, "--weights", name, "--cache", name).json for name in ("fp8", "fp4"))

    assert quarter["bytes_per_token"] == pytest.approx(0.5625 * half["bytes_per_token"])
    assert quarter["token_s"] < half["token_s"]
    assert all(name in STORED for name in PRECISIONS)
