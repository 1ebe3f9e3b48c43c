"""Weights at both ends of a pipeline: which they are, and what a step does to the gradients of their copies."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
import torch_models  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402

from planner.runtime.tied_ends import TiedEnds  # noqa: E402

OTHERS = 5.0
"""What the other end adds to every element."""


@pytest.fixture
def ends(monkeypatch):
    """The first of two stages of a decoder whose head is its embedding; the other one adds ``OTHERS``."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    mesh = init_device_mesh("cpu", (2, 1, 1, 1), mesh_dim_names=("pp", "dp_replicate", "dp_shard", "tp"))
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, group: tensor.add_(OTHERS))
    module = torch_models.Decoder(width=32, layers=2, vocab=8, tied=True)
    name = next(name for name, it in module.named_parameters() if it.shape == (8, 32))
    yield TiedEnds(module, {name: name}, mesh)
    dist.destroy_process_group()


def weight_of(ends: TiedEnds) -> nn.Parameter:
    (weight,) = ends.parameters()
    return weight


def test_what_a_step_adds_is_summed_and_what_was_there_stays(ends):
    weight = weight_of(ends)
    weight.grad = torch.full_like(weight, 100.0)
    with ends.summed():
        assert weight.grad is None
        weight.grad = torch.full_like(weight, 2.0)

    assert (weight.grad == 100.0 + 2.0 + OTHERS).all()


def test_an_end_without_a_gradient_takes_part(ends):
    """The other end has one and waits."""
    with ends.summed():
        pass

    assert (weight_of(ends).grad == OTHERS).all()


def test_frozen_weights_have_nothing_to_sum(ends, monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: pytest.fail("both ends are frozen"))
    weight_of(ends).requires_grad_(False)
    with ends.summed():
        pass

    assert weight_of(ends).grad is None
