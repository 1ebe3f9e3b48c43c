"""Workloads: bytes a parameter, tokens, and what is refused."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from cost_models.workload import PRECISIONS, Serving, Training

SERVING = {"prompt_tokens": 100, "output_tokens": 10, "requests_per_s": 2.0}


@pytest.mark.parametrize(
    ("precision", "optimizer", "total"),
    [
        ("bf16", "adam", 18), ("fp16", "adam", 18), ("fp8", "adam", 18), ("fp32", "adam", 16),
        ("bf16", "sgd", 10), ("fp32", "sgd", 8),
    ],
)  # fmt: skip
def test_bytes_a_parameter(precision, optimizer, total):
    """16-bit weight, fp32 gradient, fp32 master copy, two fp32 moments; fp32 needs no master copy."""
    work = Training(seq_len=1, global_batch=1, precision=precision, optimizer=optimizer)

    assert work.recipe.weight_bytes + work.recipe.gradient_bytes + work.optimizer_bytes == total


def test_every_precision_has_a_recipe():
    for precision, recipe in PRECISIONS.items():
        assert Training(seq_len=1, global_batch=1, precision=precision).recipe is recipe
        assert recipe.compute == precision


def test_tokens_a_step():
    assert Training(seq_len=8192, global_batch=128).tokens == 2**20


@pytest.mark.parametrize(
    "fields",
    [
        {"seq_len": 0}, {"seq_len": -1}, {"seq_len": 2**24 + 1}, {"global_batch": 0}, {"global_batch": 1.5},
        {"precision": "int4"}, {"optimizer": "lion"}, {"batch": 3}, {"seq_len": math.nan}, {"seq_len": None},
    ],
)  # fmt: skip
def test_training_refuses(fields):
    with pytest.raises(ValidationError):
        Training(**({"seq_len": 8, "global_batch": 8} | fields))


def test_a_workload_does_not_change():
    with pytest.raises(ValidationError):
        Training(seq_len=8, global_batch=8).seq_len = 9


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("field", ["requests_per_s", "time_to_first_token_s", "time_per_output_token_s"])
def test_serving_refuses(field, value):
    with pytest.raises(ValidationError, match=field):
        Serving(**(SERVING | {field: value}))


def test_serving_without_limits():
    assert Serving(**SERVING).time_to_first_token_s is None
    assert Serving(**SERVING, time_to_first_token_s=0.5).time_to_first_token_s == 0.5
