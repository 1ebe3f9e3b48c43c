"""Torch modules read by passing shapes through them: against configurations, by hand, and refused by name."""

import pytest

from cost_models.model_graph import Layer, ModelGraph
from planner import estimate, plan
from planner.read_model import read_config, read_model
from topologies.errors import BadInput

torch = pytest.importorskip("torch")
nn = torch.nn

SIZES = {
    "vocab_size": 1000, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8,
    "intermediate_size": 224, "max_position_embeddings": 256,
}  # fmt: skip
NO_WIDTH = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
GROUPED = {**SIZES, "num_key_value_heads": 4}
WIDE_HEADS = {**GROUPED, "head_dim": 32}
LATENT = {
    "kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "first_k_dense_replace": 1, "num_experts_per_tok": 2, "n_routed_experts": 8, "moe_intermediate_size": 64,
}  # fmt: skip
MANY = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
PLAIN = {"vocab_size": 1000, "n_layer": 2, "n_head": 8, "bos_token_id": 0, "eos_token_id": 0}

FAMILIES = {
    "llama": {**GROUPED, "attention_bias": True},
    "mistral": GROUPED,
    "mixtral": {**GROUPED, "num_local_experts": 4},
    "qwen2": GROUPED,
    "qwen3": WIDE_HEADS,
    "qwen2_moe": {**GROUPED, **MANY, "shared_expert_intermediate_size": 96},
    "qwen3_moe": {**WIDE_HEADS, **MANY},
    "deepseek_v2": {**SIZES, **LATENT, "n_shared_experts": 2},
    "deepseek_v3": {**SIZES, **LATENT, "n_shared_experts": 1, "n_group": 2, "topk_group": 1},
    "gpt_oss": {**WIDE_HEADS, "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 16},
    "gpt2": {**PLAIN, "n_embd": 128},
    "gpt_neox": SIZES,
    "bloom": {**PLAIN, "hidden_size": 128},
    "opt": {**NO_WIDTH, "ffn_dim": 224, "word_embed_proj_dim": 128},
    "falcon": {**NO_WIDTH, "new_decoder_architecture": True, "num_kv_heads": 4},
    "gemma": WIDE_HEADS,
    "gemma2": {**WIDE_HEADS, "sliding_window": 16},
    "gemma3_text": {**WIDE_HEADS, "sliding_window": 16, "num_hidden_layers": 6},
    "phi": SIZES,
    "phi3": {**GROUPED, "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 0},
}  # fmt: skip
TOKENS = 64


def tokens(batch: int = 1, length: int = TOKENS) -> dict:
    return {"input_ids": torch.zeros(batch, length, dtype=torch.long)}


def built(transformers, model_type: str, sizes: dict) -> nn.Module:
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def saved(layer: Layer, name: str = "saved") -> float:
    return sum(getattr(op, name) for op in layer.operators)


def layers(graph: ModelGraph) -> list[Layer]:
    return [graph.embedding, *(graph.kinds[k] for k in graph.order), graph.head]


def test_every_family_is_compared():
    from planner.read_model.families import FAMILIES as read

    assert set(FAMILIES) == set(read)


@pytest.mark.parametrize("family", FAMILIES)
def test_trace_and_config_agree(transformers, family):
    """Parameters and FLOP of every layer, what it keeps, how tensor parallelism divides it, and which layers repeat."""
    agree(transformers, family, FAMILIES[family])


def agree(transformers, family: str, sizes: dict) -> None:
    """The trace of what transformers builds of ``sizes`` against what is read of them without torch."""
    found = read_model(built(transformers, family, sizes), tokens())
    stated = read_config({**sizes, "model_type": family}, family)

    assert (found.parameters, found.active_parameters) == (stated.parameters, stated.active_parameters)
    assert (found.order, found.tied, found.flows) == (stated.order, stated.tied, ())
    for name in ("hidden", "vocab", "heads", "kv_heads", "expert_widths", "experts"):
        assert getattr(found, name) == getattr(stated, name), name
    assert [it for it in found.widths if it[0] != "key-value heads"] == [*stated.widths]
    for one, other in zip(layers(found), layers(stated), strict=True):
        assert one.forward_flop_per_token(TOKENS) == pytest.approx(other.forward_flop_per_token(TOKENS), rel=1e-9)
        for which in ("parameters", "column_parameters", "whole_parameters", "expert_parameters"):
            assert getattr(one, which) == getattr(other, which), which
        assert (one.boundaries, one.experts, one.top_k) == (other.boundaries, other.experts, other.top_k)
        for which in ("saved", "saved_selective") if one is not found.embedding else ():
            assert saved(one, which) == pytest.approx(saved(other, which), rel=0.05), which
    for which in ("saved", "saved_selective"):
        sums = [sum(saved(layer, which) for layer in layers(graph)) for graph in (found, stated)]
        assert sums[0] == pytest.approx(sums[1], rel=0.05), which


@pytest.mark.parametrize("strategy", ["tp=4,pp=2,micro_batch=2", "dp=8,zero=3"])
def test_a_module_costs_what_its_config_costs(transformers, strategy):
    """To the last digit, since every operator is the same."""
    sizes = {**GROUPED, "hidden_size": 512, "intermediate_size": 1024}
    asked = {"seq_len": 256, "global_batch": 64}

    module = built(transformers, "llama", sizes)
    traced = estimate(module, "dgx-h100:1", strategy, example_inputs=tokens(), **asked)
    stated = estimate({**sizes, "model_type": "llama"}, "dgx-h100:1", strategy, **asked)

    assert traced.step_s == pytest.approx(stated.step_s, rel=1e-9)
    assert traced.memory == stated.memory


SMALL = {"vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
OTHERS = {
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": 500, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
         "decoder_start_token_id": 0, "pad_token_id": 0},
        {"input_ids": torch.zeros(2, 64, dtype=torch.long), "labels": torch.zeros(2, 32, dtype=torch.long)}, 32, 5,
    ),
    "bert": ("BertForMaskedLM", {**SMALL, "intermediate_size": 128}, tokens(2), 64, 2),
    "vit": (
        "ViTForImageClassification", {**SMALL, "intermediate_size": 128, "image_size": 32, "patch_size": 8},
        {"pixel_values": torch.zeros(2, 3, 32, 32)}, 17, 2,
    ),
    "mamba2": (
        "Mamba2ForCausalLM",
        {"vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 16, "num_heads": 8,
         "head_dim": 16, "n_groups": 2, "chunk_size": 16}, tokens(2, 32), 32, 2,
    ),
    "jamba": (
        "JambaForCausalLM",
        {**SMALL, "num_hidden_layers": 4, "num_key_value_heads": 2, "intermediate_size": 128, "num_experts": 4,
         "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
         "mamba_d_state": 8, "use_mamba_kernels": False, "pad_token_id": 0}, tokens(2, 8), 8, 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_of_transformers(transformers, name):
    """Encoder-decoders, encoders, images, scans and hybrids: every parameter and FLOP, sequence and layers."""
    from planner.read_model.torch_module import read_example, traced

    kind, sizes, inputs, seq_len, count = OTHERS[name]
    with torch.device("meta"):
        module = getattr(transformers, kind)(transformers.AutoConfig.for_model(name, **sizes))
    graph, trace = read_model(module, inputs), traced(module, read_example(module, inputs))

    assert graph.parameters == sum(p.numel() for p in module.parameters())
    assert graph.forward_flop_per_token(seq_len) * seq_len * 2 == pytest.approx(trace.forward_flop, rel=1e-9)
    assert graph.layers == count
    assert f"2 samples of {seq_len} tokens" in graph.notes[0]


def test_a_decoder_behind_a_vision_tower_is_divided_as_it_is_alone(transformers):
    """Its config is inside the whole module's; keys and values kept for decoding would leave attention whole."""
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "image_size": 32, "patch_size": 8, "projection_dim": 64, "model_type": "clip_vision_model"}  # fmt: skip
    text = {**FAMILIES["llama"], "model_type": "llama"}
    config = transformers.LlavaConfig(vision_config=tower, text_config=text, image_token_index=5)
    with torch.device("meta"):
        module = transformers.LlavaForConditionalGeneration(config)
    pictured = tokens()["input_ids"].clone()
    pictured[0, :16] = 5

    graph = read_model(module, {"input_ids": pictured, "pixel_values": torch.zeros(1, 3, 32, 32)})

    decoder, alone = graph.kinds[graph.order[-1]], built(transformers, "llama", FAMILIES["llama"])
    assert decoder.operators == read_model(alone, tokens()).kinds[0].operators
    assert ("attention heads", 8) in graph.widths and ("attention heads", 4) in graph.widths
    assert module.config.text_config.use_cache


def test_tp_may_exceed_the_key_value_heads_where_ranks_can_share_them(transformers):
    """As a config's may; not where one product makes queries, keys and values head by head."""
    heads = FAMILIES["llama"]["num_key_value_heads"]
    wide = {"global_batch": 64, "pins": {"tp": 2 * heads}}
    module = built(transformers, "llama", FAMILIES["llama"])
    for model, asked in (
        ({**FAMILIES["llama"], "model_type": "llama"}, {"seq_len": TOKENS}),
        (module, {"example_inputs": tokens()}),
    ):
        assert plan(model, "dgx-h100:1", **asked, **wide).strategy.tp == 2 * heads
    with pytest.raises(BadInput, match=rf"tp={2 * heads} is not legal: tp must divide .*, {heads} key-value heads"):
        plan(built(transformers, "falcon", FAMILIES["falcon"]), "dgx-h100:1", example_inputs=tokens(), **wide)


class SharedLayer(nn.Module):
    """All tokens through one layer, as often as there are tokens."""

    def __init__(self):
        super().__init__()
        self.embed, self.cell, self.head = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 50)

    def forward(self, tokens):
        x = self.embed(tokens)
        for _ in range(tokens.shape[1]):
            x = x + self.cell(x)
        return self.head(x)


class Recurrent(SharedLayer):
    """Tokens one after the other through a cell."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(8, 8)

    def forward(self, tokens):
        x, state, states = self.embed(tokens), torch.zeros(len(tokens), 8), []
        for i in range(tokens.shape[1]):
            state = self.cell(x[:, i], state)
            states.append(state)
        return self.head(torch.stack(states, 1))


@pytest.mark.parametrize(("module", "loops"), [(Recurrent, 1), (SharedLayer, 0)])
def test_a_loop_over_time_steps_is_told_from_layers_that_share_weights(module, loops):
    notes = read_model(module(), torch.zeros(2, 6, dtype=torch.long)).notes

    assert sum(note.startswith("module 'cell' runs 6 times, on one slice of a tensor") for note in notes) == loops
    assert any("used by several layers" in note for note in notes)


def test_a_module_that_does_not_run_is_read_from_its_config(transformers):
    """What is lost is a note."""

    class Branching(transformers.LlamaForCausalLM):
        def forward(self, input_ids, scale=None, **rest):
            found = super().forward(input_ids=input_ids, **rest)
            return found if found.logits.sum() > 0 else None

    with torch.device("meta"):
        module = Branching(transformers.LlamaConfig(**GROUPED))
    graph = read_model(module, tokens())

    assert graph.kinds == read_config({**GROUPED, "model_type": "llama"}, "m").kinds
    assert graph.modules == () and "read from its config alone, without module names" in graph.notes[0]


class Network(nn.Module):
    """Three products, as written by hand."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(64, 256), nn.Linear(256, 192), nn.Linear(192, 10)

    def forward(self, x):
        return self.out(self.second(self.first(x).relu()).relu())


def test_network_by_hand():
    """32 samples of one token; each product keeps its input, which is all that ReLU keeps too."""
    graph = read_model(Network(), torch.zeros(32, 64))

    assert graph.parameters == 64 * 256 + 256 + 256 * 192 + 192 + 192 * 10 + 10
    assert graph.forward_flop_per_token(1) == 2 * (64 * 256 + 256 * 192 + 192 * 10)
    assert [saved(graph.kinds[k]) for k in graph.order] == [64, 256, 192]
    assert [graph.kinds[k].entering for k in graph.order] == [0, 256, 192]
    assert graph.crossing == 256
    assert graph.modules == ((), ("first",), ("second",), ("out",), ())


def test_network_is_planned():
    found = plan(Network(), "dgx-h100:1", example_inputs=torch.zeros(32, 64), global_batch=4096)

    assert found.status == "optimal"
    assert (found.strategy.tp, found.workload.seq_len) == (1, 1)


BAD = [
    (None, "give example_inputs=, for example"),
    ((), "example_inputs holds no tensor"),
    ("words", "example_inputs holds no tensor (found str)"),
    (torch.zeros(0, 64), "shape (0, 64), without elements"),
    (torch.zeros(4, 65), "fails at"),
    ({"y": torch.zeros(4, 64)}, "cannot be called with example_inputs of (4, 64) float32"),
]


@pytest.mark.parametrize(("inputs", "message"), BAD, ids=range(len(BAD)))
def test_wrong_inputs_are_refused(inputs, message):
    with pytest.raises(BadInput) as refused:
        read_model(Network(), inputs)
    assert message in str(refused.value)
    assert "Network" in str(refused.value) or "example_inputs has" in str(refused.value) or "holds" in message


def test_inputs_without_a_module_are_refused():
    with pytest.raises(BadInput, match="example_inputs are for torch modules; the model is 'gpt2'"):
        read_model("gpt2", tokens())


class Clamped(nn.Module):
    """A product with a weight held between -1 and 1, for which no formula counts the clamp."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(32, 32))

    def forward(self, x):
        return torch.tanh(x @ self.weight.clamp(-1.0, 1.0))


def test_an_operator_without_a_formula_is_noted_once():
    graph = read_model(nn.Sequential(*(Clamped() for _ in range(6))), torch.zeros(2, 16, 32))
    said = [note for note in graph.notes if "FLOP formula" in note]

    assert said == ["clamp in 0 and 5 more modules has no FLOP formula; counted as moving data"]
