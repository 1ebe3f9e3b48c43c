"""Experts cut into narrower ones: which are sums of their slices, found by running them, and which are refused."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402

from planner.errors import BadInput, Unsupported  # noqa: E402
from planner.runtime.expert_slices import slice_list  # noqa: E402


@pytest.fixture(scope="module")
def mesh():
    """Rank 0 of two that exchange nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


class Gated(nn.Module):
    """Gate and network in one matrix, halves behind each other; ``act`` sees the gate's columns."""

    def __init__(self, act=functional.silu):
        super().__init__()
        self.up, self.down, self.act = nn.Linear(6, 16), nn.Linear(8, 6), act

    def forward(self, x):
        gate, inner = self.up(x).chunk(2, -1)
        return self.down(self.act(gate) * inner)


def test_a_rank_has_half_of_the_columns_of_every_matrix(mesh):
    """Columns 0 to 3 of gate and network; the bias of the sum counts half on each of two ranks."""
    expert = Gated()
    whole = {name: it.detach().clone() for name, it in expert.named_parameters()}
    layouts = slice_list({"experts.0": expert}, mesh)
    x = torch.randn(5, 6)
    inner = functional.linear(x, whole["up.weight"], whole["up.bias"])
    wanted = (functional.silu(inner[:, :4]) * inner[:, 8:12]) @ whole["down.weight"][:, :4].T + whole["down.bias"] / 2

    torch.testing.assert_close(expert(x), wanted)
    assert {name: it.sections for name, it in layouts.items()} == {
        "experts.0.up.weight": (8, 8), "experts.0.up.bias": (8, 8),
    }  # fmt: skip


def test_zeros_of_a_fresh_output_matrix_do_not_hide_the_layout(mesh):
    """Every layout adds up to 0 = 0 + 0; gate and network are still two sections."""
    expert = Gated()
    nn.init.zeros_(expert.down.weight)
    nn.init.zeros_(expert.down.bias)
    assert {it.sections for it in slice_list({"e": expert}, mesh).values()} == {(8, 8)}


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), *layers, nn.Linear(8, 6))


@pytest.mark.parametrize(
    ("expert", "error", "said"),
    [
        (nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 6)), BadInput, "etp = 2 does not divide 7, the inner width of"),
        (chain(nn.LayerNorm(8)), Unsupported, "experts of 'e': 1.weight, 1.bias: not columns"),
        (chain(nn.Linear(8, 8)), Unsupported, "0, 1, 2: not columns whose products"),
        (Gated(lambda gate: gate.softmax(-1)), Unsupported, "more than act on every inner column alone; pin etp=1"),
    ],
)
def test_experts_that_are_no_sum_of_narrower_ones_are_refused(expert, error, said, mesh):
    before = {name: id(it) for name, it in expert.named_parameters()}
    with pytest.raises(error, match=said):
        slice_list({"e": expert}, mesh)
    assert {name: id(it) for name, it in expert.named_parameters()} == before
