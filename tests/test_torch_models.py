"""Modules of every sort, traced: parameters, FLOP and cuts by hand; what cannot be read is refused by name."""

import dataclasses

import pytest
import torch
import torch_models as models
from torch import nn

from cost_models.calibration import calibrate
from cost_models.compute import layer_compute
from cost_models.model_graph import Layer, Operator
from cost_models.price import price
from cost_models.rows import Rows
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner import plan
from planner.named import named_strategy
from planner.read_model import read_model
from planner.read_model.torch_module import read_example, traced
from topologies.errors import BadInput
from topologies.ready import read_cluster

TOKENS = torch.zeros(2, 32, dtype=torch.long)
CASES = {
    "decoder": (models.Decoder, TOKENS),
    "tied": (lambda: models.Decoder(tied=True), TOKENS),
    "windows": (lambda: models.Decoder(windows=(8, None)), TOKENS),
    "experts": (lambda: models.Decoder(network=models.Experts), TOKENS),
    "own backward": (lambda: models.Decoder(network=models.SquaredNetwork), TOKENS),
    "convolutions": (models.Convolutional, torch.zeros(2, 8, 16, 16)),
    "u-net": (models.UNet, torch.zeros(2, 3, 32, 32)),
    "dit": (models.DiT, (torch.zeros(2, 4, 16, 16), torch.zeros(2, 32))),
    "two towers": (models.TwoTowers, (torch.zeros(2, 16, 64), torch.zeros(2, 24, 32))),
    "nn.Transformer": (
        lambda: nn.Transformer(64, 4, 2, 2, 128, batch_first=True), (torch.zeros(2, 16, 64), torch.zeros(2, 8, 64)),
    ),
    "lstm": (lambda: nn.Sequential(nn.LSTM(32, 64, 2, batch_first=True)), torch.zeros(2, 16, 32)),
}  # fmt: skip


def operators(layer) -> dict:
    return {op.name: op for op in layer.operators}


def saved(layer) -> float:
    return sum(op.saved for op in layer.operators)


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_lost_between_trace_and_graph(name):
    """Every parameter once, and the FLOP of every operator in the layers together."""
    build, inputs = CASES[name]
    module = build()
    graph, trace = read_model(module, inputs), traced(module, read_example(module, inputs))
    seq_len = graph.max_positions

    assert graph.parameters == sum(p.numel() for p in module.parameters())
    assert graph.forward_flop_per_token(seq_len) * seq_len * 2 == pytest.approx(trace.forward_flop, rel=1e-9)
    assert trace.backward_flop == pytest.approx(2 * trace.forward_flop, rel=0.2)


def test_windows_as_attributes_are_told_apart():
    graph = read_model(*(f() if callable(f) else f for f in CASES["windows"]))

    assert (graph.order, len(graph.kinds)) == ((0, 1, 0, 1), 2)
    assert [operators(kind)["attention"].attention.window for kind in graph.kinds] == [8, None]


def test_tied_weights_are_counted_once():
    tied, untied = (read_model(models.Decoder(tied=it), TOKENS) for it in (True, False))

    assert (tied.tied, untied.tied) == (True, False)
    assert untied.parameters - tied.parameters == 300 * 64


def test_experts_in_a_loop_are_experts():
    """Four of 64 -> 96 -> 64, two a token: even shares of the rows, which a note says."""
    graph = read_model(models.Decoder(network=models.Experts), TOKENS)
    layer = graph.kinds[0]
    up, down = (operators(layer)[name] for name in ("experts_up", "experts_down"))

    assert (graph.order, layer.experts, layer.top_k) == ((0, 0, 0, 0), 4, 2)
    assert [(op.n, op.k, op.groups, op.active) for op in (up, down)] == [(96, 64, 4, 2), (64, 96, 4, 2)]
    assert up.parameters + down.parameters == 4 * (2 * 96 * 64 + 96 + 64)
    assert graph.expert_widths == (("expert feed-forward width", 96),)
    assert operators(layer)["dispatch"].moved == 2 * 2 * 64
    assert "a share of 0.25, as if choices were even: 32 of 128" in " ".join(graph.notes)


def test_a_function_with_its_own_backward_keeps_what_it_saves():
    """The input of the function (160), not its clamp or its square; its output is the product's input (160)."""
    layer = read_model(models.Decoder(network=models.SquaredNetwork), TOKENS).kinds[0]

    attention = 4 * 64 + 2 * 4 + 64
    assert saved(layer) == 3 * 64 + attention - 64 + 64 + 2 * 160


def test_depthwise_convolution_backward():
    """Three taps by three for each of 8 channels, as much for the weight's gradient; the input needs none."""
    module, inputs = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)), torch.zeros(2, 8, 16, 16)
    trace = traced(module, read_example(module, inputs))

    assert trace.forward_flop == 2 * 2 * 16 * 16 * 8 * 9
    assert trace.backward_flop == trace.forward_flop


def test_skips_cross_every_cut():
    """The first skip (8 x 32 x 32) passes the bottom: it is on the edge from the first block to where it is read."""
    graph = read_model(models.UNet(), torch.zeros(2, 3, 32, 32))
    skips = [edge for edge in graph.edges if edge.target > edge.source + 1]

    assert [(edge.source, edge.target, edge.elements) for edge in skips] == [(0, 5, 8192), (1, 4, 4096)]
    assert graph.crossing == 16384
    assert [name for (name, *_) in graph.modules[1:-1]] == [
        "down.0", "down.1", "down.2", "middle", "up.2", "up.1", "up.0",
    ]  # fmt: skip


def test_what_crosses_is_what_is_sent_and_what_enters_is_kept():
    """Twice the elements on every edge: a hop moves twice as much, and full recompute keeps twice as much."""
    graph = read_model(models.UNet(), torch.zeros(2, 3, 32, 32))
    wider = dataclasses.replace(
        graph,
        flows=tuple(dataclasses.replace(edge, elements=2 * edge.elements) for edge in graph.flows),
        kinds=tuple(dataclasses.replace(kind, entering=2 * kind.entering) for kind in graph.kinds),
    )  # fmt: skip
    cluster, workload = read_cluster("dgx-h100:1"), Training(seq_len=1, global_batch=4096)
    strategy = named_strategy(graph, cluster, workload, {"pp": 2, "dp": 1, "micro_batch": 4096})
    fits, rows = calibrate(cluster), Rows.of(strategy)
    one, two = (price(it, cluster, workload, rows, fits, Ticks(1e-9)) for it in (graph, wider))

    sent = 4096 * 16384 * 2 / cluster.levels[0].bandwidth_bytes_per_s / fits.p2p_fraction
    assert (two.hop - one.hop)[0] * 1e-9 == pytest.approx(sent, rel=1e-3)
    for k, kind in enumerate(graph.kinds):
        assert two.saved["full"][0, k] == pytest.approx(2 * one.saved["full"][0, k], rel=1e-6)
        assert one.saved["full"][0, k] >= 4096 * 2 * kind.entering


def test_rows_are_tokens_of_another_sequence():
    """A product on four rows a token costs what one on one row does in a micro-batch four times as large."""
    cluster, workload = read_cluster("dgx-h100:1"), Training(seq_len=512, global_batch=8)
    fits = calibrate(cluster)
    rows = [Rows.of(_strategy(cluster, size, 8 // size)) for size in (1, 4)]
    op = Operator("encoder", "matmul", "whole", parameters=0, n=4096, k=4096)
    many, plain = Layer("a", (dataclasses.replace(op, rows=4.0),)), Layer("b", (op,))

    few = layer_compute(many, rows[0], cluster, workload, fits).forward.seconds
    assert few == pytest.approx(layer_compute(plain, rows[1], cluster, workload, fits).forward.seconds)


def _strategy(cluster, micro_batch: int, micro_batches: int):
    graph = read_model("tiny-llama")
    workload = Training(seq_len=512, global_batch=micro_batch * micro_batches)
    return named_strategy(graph, cluster, workload, {"dp": 1, "micro_batch": micro_batch})


def test_frozen_positions_are_trained_with_the_rest():
    graph = read_model(models.DiT(), (torch.zeros(2, 4, 16, 16), torch.zeros(2, 32)))

    assert graph.order == (0, 0, 0)
    assert graph.edges[1].elements == 1.0  # the condition: 64 elements a sample of 64 tokens


def test_every_sort_is_planned():
    """One of each shape of graph: two streams, images with skips, and experts; cut in two."""
    pins = {"pp": 2, "tp": 1, "cp": 1}
    for name in ("two towers", "u-net", "experts"):
        build, inputs = CASES[name]
        found = plan(build(), "dgx-h100:1", example_inputs=inputs, global_batch=16, pins=pins, alternatives=0)
        assert (found.status, len(found.strategy.layers_per_stage)) == ("optimal", 2), name


def test_the_module_is_left_as_it_was():
    module = models.Convolutional().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    read_model(module, torch.zeros(2, 8, 16, 16))

    assert not module.training and not module._forward_hooks and not module.stem._forward_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


def test_weights_are_not_needed():
    with torch.device("meta"):
        module = models.Decoder()

    assert read_model(module, TOKENS.to("meta")) == read_model(models.Decoder(), TOKENS)


def test_whole_numbers_keep_their_values():
    """A loop over an integer input goes as often as the example says."""

    class Loop(nn.Linear):
        def forward(self, x, times):
            for _ in range(int(times.max())):
                x = super().forward(x)
            return x

    module = Loop(8, 8)
    trace = traced(module, read_example(module, (torch.zeros(4, 8), torch.tensor([1, 3]))))
    assert trace.forward_flop == 3 * 2 * 4 * 8 * 8


class Branches(nn.Linear):
    def forward(self, x):
        if x.sum() > 0:
            return super().forward(x)
        return x


class Counts(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y[: int(y.abs().max())]


class MakesOnCuda(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.zeros(8, device="cuda")


class Silent(nn.Linear):
    def forward(self, x):
        return super().forward(x).detach()


def frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
    module[0].requires_grad_(False)
    return module


REFUSED = [
    (Branches(8, 8), "decides by the values of its data at test_torch_models.py:", "if x.sum() > 0"),
    (Counts(8, 8), "decides by the values of its data at test_torch_models.py:", "a mask instead of a loop over data"),
    (MakesOnCuda(8, 8), "makes tensors on a CUDA device at test_torch_models.py:", "on the device of an input"),
    (Silent(8, 8), "no output of the module depends on a parameter", "outside torch.no_grad()"),
    (nn.LazyLinear(8), "parameter 'weight' has no shape yet", "call it once on an example batch"),
    (nn.ReLU(), "ReLU has no parameters", "nothing to train"),
    (nn.Linear(8, 8).requires_grad_(False), "every parameter of Linear is frozen", "requires_grad_(True)"),
    (frozen(), "2 of 4 parameters of Sequential are frozen (72 of 81 elements, the first '0.weight')", "lora"),
    (nn.Linear(9, 8), "fails at", "on example_inputs of (4, 8) float32"),
]


@pytest.mark.parametrize(("module", "complaint", "way_out"), REFUSED, ids=[type(it[0]).__name__ for it in REFUSED])
def test_what_cannot_be_read_is_refused(module, complaint, way_out):
    with pytest.raises(BadInput) as refused:
        read_model(module, torch.zeros(4, 8))
    assert complaint in str(refused.value)
    assert way_out in str(refused.value)
