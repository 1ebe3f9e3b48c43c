"""Tensor-parallel rules: where they come from, and that a split module computes what the whole one does."""

import dataclasses
import re

import pytest
import torch
import torch_models as models
from test_torch_module import FAMILIES
from torch import nn

from planner.read_model.torch_rules import tensor_rules
from planner.read_model.torch_rules_check import check_rules
from planner.read_model.traced_parts import Entered
from planner.read_model.traced_rules import Divided
from topologies.errors import BadInput

TOKENS = torch.randint(0, 300, (1, 16), generator=torch.Generator().manual_seed(0))


def built(transformers, family: str) -> nn.Module:
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family])
    return transformers.AutoModelForCausalLM.from_config(config)


def styles(rules) -> dict[str, tuple[str, str]]:
    """Style and source by module name, layer numbers left out."""
    return {re.sub(r"(?<=\.)\d+\.", "*.", rule.module, count=1): (rule.style, rule.source) for rule in rules.rules}


def decoder(layers: int = 2, **parts) -> nn.Module:
    return models.Decoder(layers=layers, **parts)


def test_rules_are_inferred():
    """Columns before rows, the vocabulary at both ends, and the heads that each rank has fewer of."""
    rules = tensor_rules(decoder(), TOKENS)

    assert styles(rules) == {
        "embed": ("vocabulary", "inferred"), "head": ("colwise_gathered", "inferred"),
        "blocks.*.attention.q": ("colwise", "inferred"), "blocks.*.attention.k": ("colwise", "inferred"),
        "blocks.*.attention.v": ("colwise", "inferred"), "blocks.*.attention.o": ("rowwise", "inferred"),
        "blocks.*.network.0": ("colwise", "inferred"), "blocks.*.network.2": ("rowwise", "inferred"),
    }  # fmt: skip
    assert rules.divided == (Divided("blocks.0.attention", "heads"), Divided("blocks.1.attention", "heads"))


def test_hugging_face_states_its_own(transformers):
    found = styles(tensor_rules(built(transformers, "llama"), {"input_ids": TOKENS}))

    assert found["model.layers.*.self_attn.q_proj"] == ("colwise", "hugging face")
    assert found["model.layers.*.mlp.down_proj"] == ("rowwise", "hugging face")
    assert found["lm_head"] == ("colwise_gathered", "inferred")


def test_norms_of_heads_have_a_part_of_their_gradient_on_each_rank(transformers):
    """Between columns and rows; what is whole on every rank (norms of hidden states, all of olmo2's) has all of it."""
    summed = tensor_rules(built(transformers, "qwen3"), {"input_ids": TOKENS}).summed

    norms = [f"model.layers.{i}.self_attn.{name}_norm" for i in (0, 1) for name in ("k", "q")]
    assert summed == tuple((name, f"{name}.weight") for name in norms)
    assert tensor_rules(built(transformers, "llama"), {"input_ids": TOKENS}).summed == ()


def test_numbers_of_key_value_heads_are_divided_down_to_one():
    """Of a fused product: heads, widths of slices, and how many queries share a head; 2 KV heads, 4 of queries."""
    rules = tensor_rules(models.Grouped(layers=1), TOKENS)
    found = {it.name: (it.among(2), it.among(4)) for it in rules.divided}
    [fused] = [rule for rule in rules.rules if rule.module.endswith("qkv")]

    assert found == {"heads": (2, 4), "kv_heads": (2, 2), "repeats": (1, 2), "q_size": (2, 4), "kv_size": (2, 2)}
    assert (fused.sections, fused.kv_heads) == ((64, 32, 32), (0, 2, 2))


@pytest.mark.parametrize("tp", [2, 4])
def test_ranks_share_heads_of_keys_and_values(transformers, tp):
    """1 and 2 KV heads, of gpt_bigcode's in slices whose widths are called ``embed_dim`` and ``kv_dim``.

    Without its config's plan qwen3's one head, which a norm reads whole, is made by all ranks.
    """
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    qwen = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes, num_key_value_heads=1, vocab_size=64))
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_key_value_heads=1, vocab_size=64))
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0}
    fused = transformers.GPTBigCodeForCausalLM(transformers.GPTBigCodeConfig(**sizes))
    words = {"input_ids": SAME}
    for module, example in ((qwen, words), (llama, words), (fused, words), (models.Grouped(layers=1), SAME)):
        check_rules(module, example, tensor_rules(module, example), tp)
    qwen.config.base_model_tp_plan = None
    inferred = tensor_rules(qwen, {"input_ids": SAME})

    assert "model.layers.0.self_attn.k_proj" not in inferred.styles
    assert inferred.entered == (Entered("model.layers.0.self_attn.k_proj", (128,), (True,)),)


def test_a_key_that_all_heads_read_has_a_part_of_its_gradient_on_each_rank(transformers):
    """deepseek_v3 projects latents and one rotated key by one matrix, which is whole; of the latents ranks have all."""
    entered = tensor_rules(built(transformers, "deepseek_v3"), {"input_ids": TOKENS}).entered

    assert [(it.module, it.sections, it.marked) for it in entered] == [
        (f"model.layers.{i}.self_attn.kv_a_proj_with_mqa", (32, 8), (False, True)) for i in range(2)
    ]


class Leaking(models.Block):
    """The network's inner values meet hidden states, which are whole, before rows have summed them."""

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        inner = self.network[1](self.network[0](self.norm2(x)))
        return x + self.network[2](inner * x.mean(-1, keepdim=True))


def test_hidden_states_that_meet_parts_are_refused(monkeypatch):
    """Each rank has a part of their gradient by that way, and all of it by the others; no rule is inferred here."""
    monkeypatch.setattr(models, "Block", Leaking)
    module, given = decoder(), {"blocks.*.network.0": "colwise", "blocks.*.network.2": "rowwise"}
    check_rules(module, TOKENS, tensor_rules(module, TOKENS))
    with pytest.raises(BadInput, match=r"what .* makes is worked with on whole data and on parts of it under tp"):
        check_rules(module, TOKENS, tensor_rules(module, TOKENS, given))


class Twice(models.Block):
    """A norm's weight on hidden states, and on the network's, which ranks have parts of."""

    def __init__(self, width: int, heads: int, network=None, **attention):
        super().__init__(width, heads, network, **attention)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        x = x + self.attention(self.norm1(x)) * self.scale
        return x + self.network[2](self.network[1](self.network[0](self.norm2(x))) * self.scale)


def test_a_parameter_of_whole_data_and_of_parts_is_refused(monkeypatch):
    monkeypatch.setattr(models, "Block", Twice)
    module = decoder()
    with pytest.raises(BadInput, match=r"parameter 'blocks\.\d\.scale' works on whole data and on parts"):
        check_rules(module, TOKENS, tensor_rules(module, TOKENS))


def test_columns_that_are_gathered_keep_their_order(transformers):
    """Of fused matrices only those that ranks keep parts of are reordered."""
    rules = tensor_rules(built(transformers, "phi3"), {"input_ids": TOKENS}).rules
    fused = [rule for rule in rules if rule.module.endswith(("qkv_proj", "gate_up_proj"))]

    assert {(rule.style, rule.sections) for rule in fused} == {("colwise_gathered", ())}


def test_as_many_positions_as_tokens_are_no_vocabulary(transformers):
    """Positions are one row of samples to all; a rank's share of a batch is not looked up in them."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    module = transformers.BertForMaskedLM(transformers.BertConfig(**sizes, vocab_size=64, max_position_embeddings=64))
    rules = tensor_rules(module, {"input_ids": SAME})

    assert rules.styles["bert.embeddings.word_embeddings"] == "vocabulary"
    assert "bert.embeddings.position_embeddings" not in rules.styles
    check_rules(module, {"input_ids": SAME}, rules)


SAME = torch.zeros(1, 12, dtype=torch.long)
"""An example of zeros, as plans are made of: one and the same token."""


def test_queries_that_meet_other_keys_are_noticed_on_an_example_of_zeros():
    """Ranks have queries of heads 0 and 2 beside keys of 0 and 1; attention to like values would hide it."""
    module = decoder()
    rules = tensor_rules(module, SAME)
    check_rules(module, SAME, rules)
    crossed = [
        dataclasses.replace(rule, sections=(32, 32)) if rule.module.endswith(".q") else rule for rule in rules.rules
    ]
    with pytest.raises(BadInput, match=r"rule 'blocks\.0\.attention\.k' .* is wrong: on 2 ranks"):
        check_rules(module, SAME, dataclasses.replace(rules, rules=tuple(crossed)))


def test_gradients_that_are_only_rounding_refuse_no_rule(transformers):
    """gemma2 takes softmaxes in fp32: of like tokens all that queries and keys are given back is its rounding."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 8, "query_pre_attn_scalar": 8, "vocab_size": 64}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    module = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**sizes, **heads))

    check_rules(module, {"input_ids": SAME}, tensor_rules(module, {"input_ids": SAME}))


def test_the_user_has_the_last_word(transformers):
    given = {"model.layers.*.mlp.down_proj": "replicated", "model.layers.1.mlp.up_proj": "colwise"}
    rules = tensor_rules(built(transformers, "llama"), {"input_ids": TOKENS}, given)

    assert "model.layers.0.mlp.down_proj" not in rules.styles
    sources = {rule.module: rule.source for rule in rules.rules}
    assert (sources["model.layers.1.mlp.up_proj"], sources["model.layers.0.mlp.up_proj"]) == ("user", "hugging face")


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("network", [lambda: None, models.Experts], ids=["dense", "experts"])
def test_inferred_rules_hold_by_hand(network, tp):
    module = decoder(1, network=network)
    check_rules(module, TOKENS, tensor_rules(module, TOKENS), tp)


@pytest.mark.parametrize("family", ["gpt2", "phi3", "deepseek_v3"])
def test_rules_hold(transformers, family):
    """Hugging Face's, and inferred: fused slices (gpt2), gathered ones (phi3), latents and experts (deepseek_v3)."""
    module, inputs = built(transformers, family), {"input_ids": TOKENS}
    check_rules(module, inputs, tensor_rules(module, inputs))


@pytest.mark.parametrize(
    ("family", "complaint"),
    [("bloom", "query_key_value' colwise"), ("gpt_oss", "self_attn.k_proj' colwise")],
)
def test_what_ranks_cannot_share_is_refused(transformers, family, complaint):
    """Slopes or sinks of every head are added to the scores of a rank that has some of the heads."""
    module, inputs = built(transformers, family), {"input_ids": TOKENS}
    with pytest.raises(BadInput) as refused:
        check_rules(module, inputs, tensor_rules(module, inputs))
    assert complaint in str(refused.value) and "is wrong: on 2 ranks" in str(refused.value)


class Normed(nn.Module):
    """A norm of the whole inner width between two products: they cannot be split."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(64, 96), nn.Linear(96, 64), nn.LayerNorm(96)

    def forward(self, x):
        return self.down(self.norm(self.up(x)))


class Gated(Normed):
    """The same with a gate, which alone could be split."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(64, 96)

    def forward(self, x):
        return self.down(self.norm(self.up(x)) * self.gate(x).sigmoid())


@pytest.mark.parametrize("network", [Normed, Gated])
def test_what_needs_the_whole_width_is_not_split(network):
    rules = tensor_rules(decoder(1, network=network), TOKENS)

    assert not [name for name in rules.styles if "network" in name]
    assert rules.styles["blocks.0.attention.q"] == "colwise"


WRONG = [
    (
        decoder(1, network=Normed),
        {"blocks.0.network.up": "colwise", "blocks.0.network.down": "rowwise"},
        "'blocks.0.network.up' colwise (user)",
    ),
    (decoder(1), {"blocks.0.network.2": "replicated"}, "'blocks.0.network.0' colwise (inferred)"),
    (decoder(1), {"blocks.0.attention.o": "colwise_gathered"}, "'blocks.0.attention."),
    (decoder(1), {"blocks.0.attention.q": "replicated"}, "'blocks.0.attention."),
    (decoder(1), {"embed": "colwise"}, "rule 'embed' colwise (user) does not fit a Embedding"),
]


@pytest.mark.parametrize(("module", "given", "complaint"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_rule_is_named(module, given, complaint):
    with pytest.raises(BadInput) as refused:
        check_rules(module, TOKENS, tensor_rules(module, TOKENS, given))
    assert complaint in str(refused.value)


def test_rules_of_nothing_are_refused():
    with pytest.raises(BadInput, match=r"rule 'blocks\.\*\.attn' names no module with a weight; there are for example"):
        tensor_rules(decoder(), TOKENS, {"blocks.*.attn": "colwise"})
    with pytest.raises(BadInput, match="rule 'head' has the style 'columns'; known: colwise"):
        tensor_rules(decoder(), TOKENS, {"head": "columns"})


def test_widths_that_do_not_divide():
    module = decoder()
    with pytest.raises(BadInput, match="tp=3 does not divide"):
        check_rules(module, TOKENS, tensor_rules(module, TOKENS), 3)


def test_modules_that_mix_samples_are_not_checked():
    module, inputs = models.TwoTowers(), (torch.zeros(2, 16, 64), torch.zeros(2, 24, 32))
    with pytest.raises(BadInput, match="it mixes the samples of a batch"):
        check_rules(module, inputs, tensor_rules(module, inputs))


def test_large_modules_are_not_checked():
    with torch.device("meta"):
        module = models.Decoder(width=1024, layers=4, vocab=50_000)
    with pytest.raises(BadInput, match="at most 50,000,000 parameters, and this one has 152,"):
        check_rules(module, TOKENS, tensor_rules(module, TOKENS))


def test_the_check_leaves_the_module_alone():
    module = decoder()
    before = [p.clone() for p in module.parameters()]
    check_rules(module, TOKENS, tensor_rules(module, TOKENS))

    assert module.blocks[0].attention.heads == 4 and "forward" not in vars(module.head)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
