"""What reading a module leaves behind: its hooks and containers as they were, and no plan for another question."""

from collections import deque

import pytest

from planner.read_model import read_model
from topologies.errors import BadInput

torch = pytest.importorskip("torch")

from test_torch_awkward import Two, W, X  # noqa: E402


class HooksItself(Two):
    """Hooks a layer of its own the first time it runs, as transformers does to collect hidden states."""

    def __init__(self):
        super().__init__(lambda module, x: x * len(module.seen))
        self.seen, self.hooked, self.runs = [], False, deque(maxlen=4)

    def forward(self, x):
        if not self.hooked:
            self.first.register_forward_hook(lambda _, args, out: self.seen.append(out.shape))
            self.hooked = True
        self.seen.clear()
        self.runs.append(1)
        return super().forward(x)


def test_hooks_and_containers_of_a_module_are_put_back():
    module = HooksItself()
    theirs = module.last.register_forward_hook(lambda *_: None)
    runs = module.runs
    first, again = read_model(module, X), read_model(module, X)
    assert first.digest == again.digest
    assert not module.first._forward_hooks and not module.hooked
    assert module.runs is runs and not runs
    module(X)
    assert len(module.seen) == 1
    theirs.remove()
    assert not module.last._forward_hooks


def test_a_model_whose_hidden_states_are_collected_is_read_twice():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=W, intermediate_size=W, num_hidden_layers=2, num_attention_heads=4, vocab_size=64,
        output_hidden_states=True,
    )  # fmt: skip
    model, ids = transformers.LlamaForCausalLM(config), torch.zeros(1, 8, dtype=torch.long)
    read_model(model, {"input_ids": ids})
    assert len(model(input_ids=ids).hidden_states) == 3


@pytest.mark.parametrize(
    ("given", "says"),
    [({"ids": (1, 8)}, "exactly one of input_ids"), ({"input_ids": (1, 8), "inputs_embeds": (1, 8, W)}, "exactly one")],
)
def test_arguments_that_a_model_refuses_are_not_read_from_its_config(given, says):
    """A plan for another sequence than the example's would be an answer to another question."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=W, intermediate_size=W, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )
    inputs = {
        name: torch.zeros(shape, dtype=torch.float if len(shape) > 2 else torch.long) for name, shape in given.items()
    }
    with pytest.raises(BadInput, match=f"LlamaForCausalLM fails at .* on example_inputs of .*{says}"):
        read_model(transformers.LlamaForCausalLM(config), inputs)
