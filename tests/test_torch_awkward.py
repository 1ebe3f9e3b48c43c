"""Modules that are awkward to trace: each gives a right graph, or an error that names the line and what to do."""

import dataclasses

import pytest

from planner.read_model import read_model
from planner.read_model.torch_module import read_example, traced
from topologies.errors import BadInput

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional

import torch_models as models  # noqa: E402

W = 32
X = torch.zeros(4, 16, W)
ONE = 2 * 4 * 16 * W * W
"""FLOP of one product of ``X``."""


class Two(nn.Module):
    """Two products, with whatever ``between`` does between them."""

    def __init__(self, between, **state):
        super().__init__()
        self.first, self.last, self.between = nn.Linear(W, W), nn.Linear(W, W), between
        for name, value in state.items():
            self.register_buffer(name, value)

    def forward(self, x, *others):
        return self.last(self.between(self, self.first(x), *others))


def read(module, inputs=X):
    """The graph, and the trace that it comes from."""
    return read_model(module, inputs), traced(module, read_example(module, inputs))


def said(module, inputs=X):
    with pytest.raises(BadInput) as refused:
        read_model(module, inputs)
    return str(refused.value)


def branch(module, x):
    if x.sum() > 0:
        return x + 1
    return x


def loop(module, x):
    while x.norm() > 1:
        x = x / 2
    return x


def checked(module, x):
    assert not torch.isnan(x).any(), "not a number"
    return x


def logged(module, x):
    module.seen = float(x.mean())
    return x


def in_numpy(module, x):
    return x * x.detach().numpy().mean()


def repeated(module, x):
    return torch.repeat_interleave(x, (x[0, :, 0] * 3).long(), dim=1)


def packed(module, x, lengths):
    rows = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(rows, batch_first=True)[0]


def either(module, x):
    return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))


def sparse(module, x):
    which = torch.sparse_coo_tensor(torch.zeros(2, 3, dtype=torch.long), torch.ones(3), (16, 16))
    return torch.stack([torch.sparse.mm(which, row) for row in x])


@torch.library.custom_op("awkward::shapeless", mutates_args=())
def shapeless(x: torch.Tensor) -> torch.Tensor:
    return x * 2


REFUSED = [
    (branch, (), "decides by the values of its data", "if x.sum() > 0", "with that branch taken"),
    (loop, (), "decides by the values of its data", "while x.norm() > 1", "with that branch taken"),
    (checked, (), "decides by the values of its data", "assert not", "with that branch taken"),
    (logged, (), "decides by the values of its data", "float(x.mean())", "Keep the number a tensor (no float()"),
    (in_numpy, (), "decides by the values of its data", ".numpy()", "Keep the number a tensor"),
    (repeated, (), "whose size depends on the values of its data", "repeat_interleave", "Make it of a fixed size"),
    (packed, (torch.full((4,), 16),), "packs sequences", "pack_padded_sequence(x", "the padded batch"),
    (either, (), "an operator that takes functions", "torch.cond(", "with the branch taken"),
    (sparse, (), "nested or sparse tensors", "", "index_select and index_add"),
    (lambda module, x: shapeless(x), (), "whose result's shape is not known", "shapeless", "register_fake"),
    (lambda module, x: x + module.missing["x"], (), "fails at", "missing", "AttributeError"),
]


@pytest.mark.parametrize(("between", "others", "rule", "source", "way_out"), REFUSED, ids=range(len(REFUSED)))
def test_the_line_and_the_way_out_are_named(between, others, rule, source, way_out):
    text = said(Two(between), (X, *others))

    assert text.startswith("Two ") and rule in text and way_out in text
    assert "test_torch_awkward.py:" in text and source in text


def test_a_number_that_is_only_computed_with_is_unknown():
    """Both products are there, and the note names the line; an ``if`` on it is refused as it would be."""
    graph, trace = read(Two(lambda module, x: x / x.abs().max().item()))

    assert trace.forward_flop == 2 * ONE
    assert any("test_torch_awkward.py:" in note and "a number is taken from data" in note for note in graph.notes)


def counted(module, x):
    module.step += 1
    return x if module.step < 1000 else x[:, :8]


def test_whole_numbers_in_buffers_keep_their_values():
    """The branch goes as the counter says, which is left as it was."""
    early = Two(counted, step=torch.tensor(0))
    assert read(early)[1].forward_flop == 2 * ONE and early.step == 0
    assert read(Two(counted, step=torch.tensor(2000)))[1].forward_flop == 1.5 * ONE


class Sorted(models.Experts):
    """Tokens sorted by expert, and as many to each as chose it."""

    def forward(self, x):
        flat = x.flatten(0, 1)
        chosen = self.router(flat).softmax(-1).topk(self.top_k).indices
        order = chosen.flatten().argsort()
        rows = flat[order // self.top_k].split(torch.bincount(chosen.flatten(), minlength=4).tolist())
        out = torch.cat([expert(part) for expert, part in zip(self.experts, rows, strict=True)])
        return torch.zeros_like(flat).index_add(0, order // self.top_k, out).view_as(x)


class Skipping(models.Experts):
    """A loop over experts that leaves out those that nobody chose."""

    def forward(self, x):
        flat = x.flatten(0, 1)
        weights, chosen = self.router(flat).softmax(-1).topk(self.top_k)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            if (chosen == i).any():
                rows, slot = torch.where(chosen == i)
                out = out.index_add(0, rows, expert(flat[rows]) * weights[rows, slot, None])
        return out.view_as(x)


@pytest.mark.parametrize("network", [Sorted, Skipping])
def test_dispatch_that_counts_is_as_even_choices(network):
    """As many FLOP as experts in a plain loop, and as many experts; a note says what was taken for what."""
    tokens = torch.zeros(2, 16, dtype=torch.long)
    graph, trace = read(models.Decoder(layers=2, network=network), tokens)
    plain, wanted = read(models.Decoder(layers=2, network=models.Experts), tokens)

    assert trace.forward_flop == wanted.forward_flop
    assert (graph.experts, graph.kinds[0].top_k) == (plain.experts, 2)
    assert any("taken as if choices were even" in note for note in graph.notes)


def test_unique_is_the_largest_possible():
    graph, trace = read(Two(lambda module, x: torch.unique(x, sorted=False).view(-1, W)))

    assert trace.forward_flop == 2 * ONE
    assert "taken as the largest possible: 2048 of 2048" in str(graph.notes)


def hooked(module, x):
    return torch.vmap(module.last)(x)


def inner_gradient(module, x):
    return torch.func.grad(lambda y: module.last(y).square().sum())(x)


@pytest.mark.parametrize(("between", "products"), [(hooked, 3), (inner_gradient, 4)])
def test_functions_of_torch_func_are_followed(between, products):
    """A vmapped product is one; a gradient taken inside is a forward and a backward one."""
    assert read(Two(between))[1].forward_flop == products * ONE


def test_what_cannot_be_watched_is_noted():
    assert "what eager torch keeps is not known" in str(read_model(Two(inner_gradient), X).notes)


@pytest.mark.parametrize("parametrize", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrised_layers_are_layers(parametrize):
    """Not containers of how their weight is made: two layers with a sequence, as without."""
    wrap = getattr(nn.utils.parametrizations, parametrize)
    graph = read_model(nn.Sequential(wrap(nn.Linear(W, W)), nn.Linear(W, W)), X)

    assert (graph.layers, graph.hidden, graph.example_seq_len) == (2, W, 16)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_modules_are_read_as_what_was_compiled():
    plain = nn.Sequential(nn.Linear(W, W), nn.Linear(W, W))

    assert read_model(torch.compile(plain), X) == read_model(plain, X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused():
    assert "give the module as it was before torch.jit.script" in said(
        nn.Sequential(nn.Linear(W, W), torch.jit.script(nn.Linear(W, W)))
    )


@dataclasses.dataclass
class Batch:
    x: torch.Tensor


class Unpacked(Two):
    def forward(self, batch):
        return super().forward(batch.x)


def test_objects_of_the_users_own_are_registered_first():
    """A class that torch's trees do not open is refused by name, and read once it is registered."""
    module = Unpacked(lambda module, x: x)
    assert "holds a Batch, whose tensors torch does not find; register the class" in said(module, (Batch(X),))
    torch.export.register_dataclass(Batch)

    assert read(module, (Batch(X),))[1].forward_flop == 2 * ONE


@pytest.mark.parametrize("kind", ["nested", "sparse"])
def test_tensors_whose_shape_is_not_their_size_are_refused(kind):
    odd = X.to_sparse() if kind == "sparse" else torch.nested.nested_tensor([X[0], X[1, :3]], layout=torch.jagged)

    assert f"holds a {kind} tensor" in said(Two(lambda module, x: x), odd)


class Held:
    """An output with slots, which holds another in a list."""

    __slots__ = ("parts",)

    def __init__(self, parts):
        self.parts = parts


class Holding(Two):
    def forward(self, x):
        return Held([{"deep": super().forward(x)}])


def test_outputs_in_slots_and_nested_objects_are_found():
    assert read(Holding(lambda module, x: x))[1].backward_flop == 3 * ONE


class Listed(nn.Linear):
    """A product that the module lists, and one in a Python list."""

    def __init__(self):
        super().__init__(W, W)
        self.hidden = [nn.Linear(W, W)]

    def forward(self, x):
        return self.hidden[0](super().forward(x))


def test_weights_that_the_module_does_not_list_are_refused():
    """They would be priced and never trained; a constant is no weight."""
    text = said(Listed())
    assert "test_torch_awkward.py:" in text and "reads a weight (32, 32) that module.parameters() does not" in text
    module = Listed()
    module.hidden[0].requires_grad_(False)

    assert read(module)[1].forward_flop == 2 * ONE


def test_parameters_without_gradients_are_noted():
    def stopped(module, x):
        with torch.no_grad():
            return module.idle(x)

    module = Two(stopped)
    module.idle = nn.Linear(W, W)
    assert "no gradient reaches 4 parameters in this pass (the first is 'first.weight'" in str(read(module)[0].notes)
    assert "no gradient" not in str(read(Two(lambda module, x: x))[0].notes)


def test_inputs_are_of_the_parameters_type():
    """As the runtime gives them: fp32 inputs of a bf16 module are not priced as fp32 hidden states."""
    module = Two(lambda module, x: x).bfloat16()
    graph, wanted = read_model(module, X), read_model(module, X.bfloat16())

    assert graph.kinds == wanted.kinds and graph.hidden == W
    assert "inputs of float32 are taken as bfloat16, the parameters' type" in graph.notes


def test_complex_numbers_are_noted():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.filter = nn.Parameter(torch.zeros(9, W, dtype=torch.cfloat))

        def forward(self, x):
            return torch.fft.irfft(torch.fft.rfft(x, dim=1) * self.filter, n=16, dim=1)

    notes = str(read_model(Spectral(), X).notes)
    assert "complex numbers are priced as real ones" in notes and "no gradient" not in notes


@torch.library.custom_op("awkward::product", mutates_args=())
def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight


product.register_fake(lambda x, weight: x.new_empty((*x.shape[:-1], weight.shape[1])))
product.register_autograd(
    lambda ctx, gradient: (gradient @ ctx.saved_tensors[1].T, None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def test_operators_of_the_users_own_have_the_flop_they_say():
    """Without a formula a note says so, and how to give one."""
    module = Two(lambda module, x: product(x, module.last.weight))
    graph, trace = read(module)
    assert trace.forward_flop == 2 * ONE
    assert any(note.startswith("awkward::product in the module has no FLOP formula") for note in graph.notes)
    formula = torch.utils.flop_counter.register_flop_formula(torch.ops.awkward.product)
    formula(lambda x, weight, *rest, out_shape=None, **named: 2 * 4 * 16 * W * W)

    graph, trace = read(module)
    assert trace.forward_flop == 3 * ONE and "no FLOP formula" not in str(graph.notes)


def test_products_with_vectors_and_distances_are_counted():
    """``[m, k] x [k]``, and rows against rows of a table."""
    spread = Two(lambda module, x: x * (x.flatten(0, 1) @ module.first.bias).view(4, 16, 1))
    assert read(spread)[1].forward_flop == 2 * ONE + 2 * 4 * 16 * W
    near = Two(lambda module, x: torch.cdist(x.flatten(0, 1), module.first.weight).view(4, 16, W))
    assert read(near)[1].forward_flop == 3 * ONE


def test_members_of_an_ensemble_are_no_experts():
    """Weights stacked and run side by side on one input: nothing is dispatched."""

    class Ensemble(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.Parameter(torch.zeros(3, W, W))

        def forward(self, x):
            return torch.vmap(lambda weight, x: x @ weight, (0, None))(self.weights, x).mean(0)

    assert read_model(Ensemble(), X).experts == 0


def test_bags_of_rows_are_lookups():
    module = nn.Sequential(nn.EmbeddingBag(100, W, mode="sum"), nn.Linear(W, W))
    graph = read_model(module, torch.zeros(4, 16, dtype=torch.long))

    assert graph.kinds[graph.order[0]].operators[0].kind == "lookup"
    assert "no FLOP formula" not in str(graph.notes)
