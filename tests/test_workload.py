"""Workloads: bytes a parameter, tokens, and what is refused."""

from __future__ import annotations

import dataclasses
import math

import pytest
from pydantic import ValidationError

from cost_models.stack import Stack
from cost_models.workload import PRECISIONS, Serving, Training

SERVING = {"prompt_tokens": 100, "output_tokens": 10, "requests_per_s": 2.0}


@pytest.mark.parametrize(
    ("precision", "optimizer", "total"),
    [
        ("bf16", "adam", 18), ("fp16", "adam", 18), ("fp8", "adam", 18), ("fp4", "adam", 18), ("fp32", "adam", 16),
        ("bf16", "sgd", 10), ("fp32", "sgd", 8),
    ],
)  # fmt: skip
def test_bytes_a_parameter(precision, optimizer, total):
    """16-bit weight, fp32 gradient, fp32 master copy, two fp32 moments; fp32 needs no master copy."""
    work = Training(seq_len=1, global_batch=1, precision=precision, optimizer=optimizer)

    assert work.recipe.weight_bytes + work.recipe.gradient_bytes + work.optimizer_bytes == total


def test_every_precision_has_a_recipe():
    for precision, recipe in PRECISIONS.items():
        assert Training(seq_len=1, global_batch=1, precision=precision).recipe == recipe
        assert recipe.compute == precision


@pytest.mark.parametrize("name", ["weight_bytes", "gradient_bytes", "reduce_bytes", "gather_bytes"])
def test_a_stack_may_keep_or_send_other_bytes(name):
    """The one that is given replaces the precision's; 0 is a size too."""
    for size in (0.0, 1.5):
        recipe = Training(seq_len=1, global_batch=1, stack=Stack(**{name: size})).recipe
        assert recipe == dataclasses.replace(PRECISIONS["bf16"], **{name: size})


def test_a_stack_may_have_another_optimiser():
    assert Training(seq_len=1, global_batch=1, stack=Stack(optimizer_bytes=3.0)).optimizer_bytes == 3.0
    assert Training(seq_len=1, global_batch=1, stack=Stack(optimizer_bytes=0.0)).optimizer_bytes == 0.0


@pytest.mark.parametrize(("packed", "length"), [(None, 512), (100.5, 100.5), (512, 512), (4096, 512)])
def test_attention_sees_an_example_and_no_more_than_a_sequence(packed, length):
    assert Training(seq_len=512, global_batch=1, packed_len=packed).attended_len == length


@pytest.mark.parametrize("name", ["weight_bytes", "optimizer_bytes"])
@pytest.mark.parametrize("value", [-1, 65, math.inf, math.nan])
def test_a_stack_refuses_impossible_bytes(name, value):
    with pytest.raises(ValidationError, match=name):
        Stack(**{name: value})


def test_tokens_a_step():
    assert Training(seq_len=8192, global_batch=128).tokens == 2**20


@pytest.mark.parametrize(
    "fields",
    [
        {"seq_len": 0}, {"seq_len": -1}, {"seq_len": 2**24 + 1}, {"global_batch": 0}, {"global_batch": 1.5},
        {"precision": "int4"}, {"optimizer": "lion"}, {"batch": 3}, {"seq_len": math.nan}, {"seq_len": None},
        {"tuning": "prompt"}, {"lora_rank": 0}, {"packed_len": 0.5}, {"packed_len": math.inf},
        {"stack": {"selective": "most"}}, {"stack": {"dropouts": True}},
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
