"""Reading models: parameters equal transformers', FLOP and saved elements by hand, and every bad input refused."""

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from cost_models.model_graph import Layer, ModelGraph
from planner.read_model import preset_names, read_config, read_model
from planner.read_model.config_fields import LAYER_TYPES
from planner.read_model.families import FAMILIES
from topologies.errors import BadInput, PlannerError, UnknownName

PRESETS = Path(__file__).parents[1] / "planner" / "read_model" / "presets"
NEEDED = {
    "vocab_size": 1000, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 32,
    "intermediate_size": 448,
}  # fmt: skip
LLAMA = {**NEEDED, "model_type": "llama", "num_key_value_heads": 8}
GPT2 = {"model_type": "gpt2", "vocab_size": 1000, "n_embd": 256, "n_layer": 6, "n_head": 32}
NO_WIDTH = {key: value for key, value in NEEDED.items() if key != "intermediate_size"}
BLOOM = {"model_type": "bloom", "vocab_size": 1000, "hidden_size": 256, "n_layer": 6, "n_head": 32}
OPT = {**NO_WIDTH, "ffn_dim": 448, "model_type": "opt"}

# Each family with nothing but what it needs, then each of its switches.
CONFIGS = {
    "llama minimal": {**NEEDED, "model_type": "llama"},
    "llama biases": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "llama head_dim": {**LLAMA, "head_dim": 64, "tie_word_embeddings": True},
    "mistral minimal": {**NEEDED, "model_type": "mistral"},
    "mixtral minimal": {**NEEDED, "model_type": "mixtral"},
    "qwen2 minimal": {**NEEDED, "model_type": "qwen2"},
    "qwen3 minimal": {**NEEDED, "model_type": "qwen3"},
    "qwen3 biases": {**NEEDED, "model_type": "qwen3", "attention_bias": True, "num_key_value_heads": None},
    "qwen2_moe minimal": {**NEEDED, "model_type": "qwen2_moe"},
    "qwen2_moe dense": {**NEEDED, "model_type": "qwen2_moe", "mlp_only_layers": [0, 3], "qkv_bias": False},
    "qwen3_moe minimal": {**NEEDED, "model_type": "qwen3_moe"},
    "qwen3_moe dense": {**NEEDED, "model_type": "qwen3_moe", "decoder_sparse_step": 2, "mlp_only_layers": [1]},
    "deepseek_v2 minimal": {**NEEDED, "model_type": "deepseek_v2", "num_experts_per_tok": 6},
    "deepseek_v2 switches": {
        **NEEDED, "model_type": "deepseek_v2", "num_experts_per_tok": 6, "q_lora_rank": None,
        "attention_bias": True, "mlp_bias": True, "first_k_dense_replace": 2,
    },
    "deepseek_v3 minimal": {**NEEDED, "model_type": "deepseek_v3"},
    "deepseek_v3 switches": {**NEEDED, "model_type": "deepseek_v3", "attention_bias": True, "mlp_bias": True},
    "gpt_oss minimal": {**NEEDED, "model_type": "gpt_oss"},
    "gpt2 minimal": GPT2,
    "gpt2 width": {**GPT2, "n_inner": 448, "tie_word_embeddings": False},
    "gpt_neox minimal": {**NEEDED, "model_type": "gpt_neox"},
    "gpt_neox serial": {**NEEDED, "model_type": "gpt_neox", "use_parallel_residual": False, "attention_bias": False},
    "bloom minimal": BLOOM,
    "opt minimal": OPT,
    "opt narrow": {**OPT, "word_embed_proj_dim": 64, "do_layer_norm_before": False},
    "opt bare": {**OPT, "enable_bias": False, "layer_norm_elementwise_affine": False},
    "falcon minimal": {**NO_WIDTH, "model_type": "falcon"},
    "falcon serial": {
        **NO_WIDTH, "model_type": "falcon", "parallel_attn": False, "multi_query": False, "bias": True, "alibi": True,
    },
    "falcon new": {
        **NO_WIDTH, "model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 4,
        "num_ln_in_parallel_attn": 1,
    },
    "gemma minimal": {**NEEDED, "model_type": "gemma"},
    "gemma2 minimal": {**NEEDED, "model_type": "gemma2"},
    "gemma3_text minimal": {**NEEDED, "model_type": "gemma3_text"},
    "phi minimal": {**NEEDED, "model_type": "phi"},
    "phi normed": {**NEEDED, "model_type": "phi", "qk_layernorm": True, "num_key_value_heads": 8},
    "phi3 minimal": {**NEEDED, "model_type": "phi3", "vocab_size": 40000},
}  # fmt: skip
assert {config["model_type"] for config in CONFIGS.values()} == set(FAMILIES), "a family is not compared"


def built(transformers, config: dict):
    """The transformers model of ``config`` on the meta device."""
    import torch

    rest = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(config["model_type"], **rest)
        )


def preset(name: str) -> dict:
    return json.loads((PRESETS / f"{name}.json").read_text())


def operators(layer: Layer) -> dict:
    return {op.name: op for op in layer.operators}


@pytest.mark.parametrize("name", preset_names())
def test_presets_have_the_parameters_of_transformers(transformers, name):
    model = built(transformers, preset(name))

    assert read_model(name).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_families_read_as_transformers_does(transformers, name):
    """Parameters, and the sizes that a family's defaults decide."""
    model, graph = built(transformers, CONFIGS[name]), read_config(CONFIGS[name], name)

    assert graph.parameters == sum(p.numel() for p in model.parameters())
    assert graph.tied == model.config.tie_word_embeddings
    if "deepseek" not in name and "falcon" not in name:
        assert graph.kv_heads == getattr(model.config, "num_key_value_heads", graph.heads)
    if "bloom" not in name:
        assert graph.max_positions == model.config.max_position_embeddings


# As published: model cards and papers, in billions.
PUBLISHED = {
    "llama-2-7b": 6.738, "llama-2-70b": 68.98, "llama-3.1-8b": 8.03, "llama-3.1-70b": 70.55, "llama-3.1-405b": 405.85,
    "mistral-7b": 7.242, "mixtral-8x7b": 46.70, "mixtral-8x22b": 140.6, "deepseek-v3": 671.0, "deepseek-v2": 235.7,
    "gpt-oss-20b": 20.91, "gpt-oss-120b": 116.83, "qwen3-235b-a22b": 235.1, "bloom-176b": 176.247, "gpt2": 0.1244,
    "gemma-2-27b": 27.23, "gpt-neox-20b": 20.55,
}  # fmt: skip
ACTIVE = {"mixtral-8x7b": 12.9, "deepseek-v3": 37.6, "qwen3-30b-a3b": 3.35, "qwen3-235b-a22b": 22.2}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters(name):
    assert read_model(name).parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=1e-3)


@pytest.mark.parametrize("name", ACTIVE)
def test_published_active_parameters(name):
    """Published to two or three digits, embedding included."""
    assert read_model(name).active_parameters / 1e9 == pytest.approx(ACTIVE[name], rel=5e-3)


def test_dense_flop_by_hand():
    """Llama-3.1-8B, 8,191 tokens: a query meets 4,096 keys on average."""
    matrices = 6144 * 4096 + 4096 * 4096 + 3 * 14336 * 4096
    attention = 2 * 32 * (128 + 128) * 4096

    flop = read_model("llama-3.1-8b").forward_flop_per_token(8191)

    assert flop == 32 * (2 * matrices + attention) + 2 * 4096 * 128256 == 17_156_800_512


def test_experts_flop_by_hand():
    """Mixtral-8x7B, 8,191 tokens: two of eight experts at work, and the router."""
    matrices = 6144 * 4096 + 4096 * 4096 + 8 * 4096 + 2 * 3 * 14336 * 4096
    attention = 2 * 32 * (128 + 128) * 4096

    flop = read_model("mixtral-8x7b").forward_flop_per_token(8191)

    assert flop == 32 * (2 * matrices + attention) + 2 * 4096 * 32000 == 27_644_657_664


def test_dense_saved_elements_by_hand():
    """Llama-3.1-8B, 139,392 bytes a token and layer in bf16."""
    block = read_model("llama-3.1-8b").kinds[0].operators

    assert sum(op.saved for op in block) == 4 * 4096 + 6144 + (4096 + 64) + 3 * 14336 == 139_392 / 2
    assert sum(op.saved_selective for op in block) == 2 * 4096 + 6144 + (4096 + 64) + 2 * 14336
    assert sum(op.saved for op in block if op.split == "sequence") == 4 * 4096


def test_experts_saved_elements_by_hand():
    """Mixtral-8x7B: the dense part, router, then two copies of input, gate, up, product and output."""
    block = read_model("mixtral-8x7b").kinds[0].operators

    dense = 4 * 4096 + 6144 + (4096 + 64) + 8
    assert sum(op.saved for op in block) == dense + 2 * (4096 + 3 * 14336 + 4096)
    assert sum(op.saved for op in block if op.split in ("experts", "routed")) == 2 * (4096 + 3 * 14336 + 4096)


def test_latent_attention_by_hand():
    """DeepSeek-V3: 128 heads of 128 + 64 for queries and keys, of 128 for values; latents whole on every rank."""
    graph = read_model("deepseek-v3")
    dense, sparse = graph.kinds
    ops = operators(dense)

    assert (ops["attention"].attention.qk_dim, ops["attention"].attention.v_dim) == (192, 128)
    assert [(name, ops[name].n, ops[name].k) for name in ("q_a", "kv_a", "q_b", "kv_b", "output")] == [
        ("q_a", 1536, 7168), ("kv_a", 576, 7168), ("q_b", 24576, 1536), ("kv_b", 32768, 512), ("output", 7168, 16384),
    ]  # fmt: skip
    assert dense.whole_parameters == (1536 + 576) * 7168 + 1536 + 512 + 2 * 7168
    assert (sparse.experts, sparse.top_k, graph.order) == (256, 8, (0,) * 3 + (1,) * 58)
    assert sparse.expert_groups == (8, 4) != dense.expert_groups
    assert graph.widths == (("attention heads", 128), ("feed-forward width", 18432), ("shared expert width", 2048))
    assert graph.expert_widths == (("expert feed-forward width", 2048),)
    assert sparse.expert_parameters == 256 * 3 * 2048 * 7168


def test_norms_of_queries_and_keys_are_not_divided():
    """Scales whole, data by heads."""
    block = read_model("qwen3-8b").kinds[0]
    ops = operators(block)

    assert (ops["qk_norm"].parameters, ops["qk_norm"].split) == (256, "whole")
    assert (ops["rope"].split, ops["rope"].moved, ops["rope"].saved) == ("columns", 4 * 40 * 128, 40 * 128)


@pytest.mark.parametrize(
    ("name", "boundaries"), [("llama-2-7b", 2), ("falcon-40b", 1), ("gpt2", 2), ("mixtral-8x7b", 1), ("deepseek-v3", 2)]
)
def test_boundaries(name, boundaries):
    assert {kind.boundaries for kind in read_model(name).kinds} == {boundaries}


def test_tied_head_is_counted_once():
    tied, untied = (read_config({**LLAMA, "tie_word_embeddings": tied}, "m") for tied in (True, False))

    assert untied.parameters - tied.parameters == 1000 * 256
    assert tied.head.forward_flop_per_token(1) == untied.head.forward_flop_per_token(1) == 2 * 1000 * 256


def windows(config: dict) -> list[int | None]:
    graph = read_config(config, "m")
    seen = [operators(kind)["attention"].attention.window for kind in graph.kinds]
    return [seen[kind] for kind in graph.order]


SLIDING = {**NEEDED, "num_key_value_heads": 8, "use_sliding_window": True, "sliding_window": 100}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({**SLIDING, "model_type": "mistral"}, [100] * 6),
        ({**SLIDING, "model_type": "mistral", "sliding_window": None}, [None] * 6),
        ({**NEEDED, "model_type": "mistral"}, [4096] * 6),
        ({**NEEDED, "model_type": "mixtral"}, [None] * 6),
        ({**NEEDED, "model_type": "phi3", "sliding_window": 2047}, [2047] * 6),
        ({**SLIDING, "model_type": "qwen2", "use_sliding_window": False}, [None] * 6),
        ({**SLIDING, "model_type": "qwen2", "use_sliding_window": False, "sliding_window": 0}, [None] * 6),
        ({**SLIDING, "model_type": "qwen2", "max_window_layers": 4}, [None] * 4 + [100] * 2),
        ({**SLIDING, "model_type": "qwen3", "layer_types": [*LAYER_TYPES] * 3}, [None, 100] * 3),
        ({**SLIDING, "model_type": "qwen2_moe", "max_window_layers": 4}, [100, None, 100, None, None, None]),
        ({**SLIDING, "model_type": "qwen3_moe"}, [100] * 6),
        ({**NEEDED, "model_type": "gpt_oss"}, [128, None] * 3),
        ({**NEEDED, "model_type": "gemma2"}, [4096, None] * 3),
        ({**NEEDED, "model_type": "gemma3_text"}, [4096] * 5 + [None]),
    ],
)
def test_windows(config, expected):
    assert windows(config) == expected


def test_one_model_by_every_way_in(tmp_path):
    """A dict, a file, a directory, a path as text, a wrapper and the graph itself."""
    config = preset("tiny-llama")
    (tmp_path / "config.json").write_text(json.dumps(config))
    wrapper = {"model_type": "some_wrapper", "text_config": config, "vision_config": None}
    ways = (config, tmp_path, str(tmp_path), tmp_path / "config.json", str(tmp_path / "config.json"), wrapper)
    graph = read_model("tiny-llama")

    assert read_model(graph) is graph
    assert {read_model(way).parameters for way in ways} == {graph.parameters} == {869_504}
    assert read_model(tmp_path).name == tmp_path.name
    assert graph.config == config


def test_aliases_give_the_same_model():
    spelled = {"model_type": "gpt2", "vocab_size": 1000, "hidden_size": 256, "num_layers": 6, "num_heads": 32}

    assert read_config(spelled, "m") == read_config(GPT2, "m")


BAD = [
    ({}, "model_type is None"),
    ({"model_type": 7}, "model_type is 7"),
    ({**LLAMA, "hidden_size": 0}, "hidden_size is 0; it must be a whole number from 1 to 16,777,216, for example 4096"),
    ({**LLAMA, "hidden_size": -1}, "hidden_size is -1"),
    ({**LLAMA, "hidden_size": 2**24 + 1}, "hidden_size is 16777217"),
    ({**LLAMA, "hidden_size": "4096"}, "hidden_size is '4096'"),
    ({**LLAMA, "hidden_size": True}, "hidden_size is True"),
    ({**LLAMA, "hidden_size": None}, "hidden_size is None"),
    ({**LLAMA, "hidden_size": [[10**6000]]}, "hidden_size is a list"),
    ({**LLAMA, "hidden_size": float("nan")}, "hidden_size is nan"),
    ({**LLAMA, "hidden_size": 10**6000}, "is an integer of 19932 bits"),
    ({**LLAMA, "num_hidden_layers": 10_001}, "num_hidden_layers is 10001; it must be a whole number from 1 to 10,000"),
    ({**LLAMA, "num_attention_heads": 40}, "num_attention_heads is 40; it must divide hidden_size, 256"),
    ({**LLAMA, "num_key_value_heads": 5}, "num_key_value_heads is 5; it must divide num_attention_heads, 32"),
    ({**LLAMA, "num_key_value_heads": 64}, "num_key_value_heads is 64"),
    ({**LLAMA, "tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; write true or false"),
    ({**LLAMA, "n_embd": 128}, "hidden_size is 256 but n_embd is 128"),
    ({**LLAMA, "is_encoder_decoder": True}, "is_encoder_decoder true"),
    ({**LLAMA, "vision_config": {}}, "'llama' config has vision_config, whose parameters"),
    ({"model_type": "gemma3", "text_config": LLAMA, "vision_config": {"hidden_size": 1152}}, "vision_config"),
    ({"model_type": "llama", "text_config": 5}, "text_config is 5"),
    ({**NEEDED, "model_type": "mixtral", "num_local_experts": 0}, "num_experts is 0"),
    ({**NEEDED, "model_type": "mixtral", "num_experts_per_tok": 9}, "num_experts_per_tok is 9; a token can go to at"),
    ({**NEEDED, "model_type": "deepseek_v2"}, 'num_experts_per_tok is missing; add it, for example "num_experts_per'),
    ({**NEEDED, "model_type": "qwen3_moe", "mlp_only_layers": [6]}, "mlp_only_layers is [6]; it must list layer numb"),
    ({**NEEDED, "model_type": "gemma2", "layer_types": ["full_attention"]}, "it must list 6 times one of"),
    ({**NEEDED, "model_type": "gemma2", "layer_types": [{}] * 6}, "layer_types is"),
    ({**NEEDED, "model_type": "gemma2", "use_bidirectional_attention": True}, "only causal decoders"),
    ({**GPT2, "add_cross_attention": True}, "add_cross_attention is true"),
    ({**NEEDED, "model_type": "mistral", "sliding_window": 0}, "sliding_window is 0"),
]


@pytest.mark.parametrize(("config", "message"), BAD, ids=range(len(BAD)))
def test_bad_configs_are_refused_by_name(config, message):
    with pytest.raises(BadInput) as refused:
        read_model(config)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("field", NEEDED)
def test_needed_fields(field):
    """The message has the family, the field and an example."""
    with pytest.raises(BadInput, match=f'llama config: {field} is missing; add it, for example "{field}": [0-9]+'):
        read_config({key: value for key, value in LLAMA.items() if key != field}, "m")


def test_unknown_names_list_the_nearest():
    with pytest.raises(UnknownName, match=r"llama-3\.1-8b"):
        read_model("llama-3-8b")
    with pytest.raises(UnknownName, match="mixtral"):
        read_model({"model_type": "mixtrall"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\xff\xfe", "not UTF-8 text"),
        (b"[1, 2]", "holds [1, 2]; a config.json is a JSON object"),
        (b"{", "is not JSON"),
        (b"", "is not JSON"),
        (b"[" * 100_000, "nests too deeply"),
        (b'{"model_type": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b" " * 2_000_001, "2,000,001 bytes; a config.json is at most 2,000,000"),
    ],
    ids=["binary", "list", "cut", "empty", "deep", "huge number", "large"],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)

    with pytest.raises(BadInput) as refused:
        read_model(path)
    assert message in str(refused.value)


NOTHING = ["missing.json", "no/such/dir", "", "nul\0", "a" * 5000, "/dev/null", Path("missing"), 7, None]


@pytest.mark.parametrize("what", NOTHING, ids=range(len(NOTHING)))
def test_what_is_no_model(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(PlannerError) as refused:
        read_model(what)
    assert what != "" or "holds no config.json; give the file itself" in str(refused.value)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.integers(0, 40)
    | st.sampled_from([10**400, "full_attention", 2**24]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
KNOWN = sorted({key for family in FAMILIES.values() for key in family.defaults} | {"layer_types", *NEEDED, *GPT2})


@examples(600)
@given(
    st.sampled_from(sorted(CONFIGS)),
    st.dictionaries(st.sampled_from(KNOWN) | st.text(max_size=8), JUNK, max_size=3),
    st.sets(st.sampled_from(KNOWN), max_size=2),
)
def test_mutated_configs_give_a_graph_or_an_explanation(name, changes, dropped):
    config = {key: value for key, value in copy.deepcopy(CONFIGS[name]).items() if key not in dropped}
    try:
        graph = read_model({**config, **changes})
    except PlannerError as error:
        assert 10 < len(str(error)) < 1000
        return
    assert isinstance(graph, ModelGraph)
    assert graph.parameters >= graph.active_parameters > 0
    assert graph.layers == len(graph.order) and max(graph.order) == len(graph.kinds) - 1
    assert len(graph.digest) == 16


@pytest.mark.parametrize(
    ("fields", "groups"),
    [
        ({"n_group": 4, "topk_group": 2}, (4, 2)), ({"n_group": 4, "topk_group": 4}, (1, 1)),
        ({"n_group": 4, "topk_group": 2, "topk_method": "greedy"}, (1, 1)), ({"n_group": 5, "topk_group": 2}, (1, 1)),
        ({"n_group": 16, "topk_group": 1}, (1, 1)), ({"n_group": None}, (1, 1)),
    ],
)  # fmt: skip
def test_groups_that_a_token_s_experts_are_in(fields, groups):
    """Of 64 experts 8 a token: none where the router is greedy, groups are uneven, or those chosen have too few."""
    sizes = {**NEEDED, "model_type": "deepseek_v3", "n_routed_experts": 64, "num_experts_per_tok": 8}

    assert read_config({**sizes, **fields}, "it").kinds[-1].expert_groups == groups
