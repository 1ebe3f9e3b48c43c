"""Models that published rows name: parameters as published, a row's own sizes first, and what cannot be built."""

import pytest

from cost_models.model_graph import Layer
from planner.published.models import model_of, recipe_prediction_passes, shaped_by_size, table
from planner.read_model import read_config
from planner.read_model.more_families import MORE_FAMILIES
from tests.published_rows import job
from topologies.errors import BadInput

ENTRIES = {entry["titles"][0]: entry for entry in table()["model"]}
SORTS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
COMPRESSED = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}


def with_figure(name: str) -> list[str]:
    return [title for title, entry in ENTRIES.items() if name in entry]


def operators(layer: Layer) -> dict:
    return {op.name: op for op in layer.operators}


def kind(model, name: str) -> Layer:
    return next(layer for layer in model.kinds if layer.kind == name)


@pytest.mark.parametrize("title", with_figure("parameters"))
def test_parameters_are_the_published_ones(title):
    """Within 1 %; within 3 % where the publisher rounds. Grok-1's 314 B counts 0.5 % less than its files hold."""
    entry = ENTRIES[title]

    found = model_of(title, {}, 2048).parameters / 1e9

    assert found == pytest.approx(entry["parameters"], rel=0.01 if entry.get("exact", True) else 0.03)


@pytest.mark.parametrize("title", with_figure("active"))
def test_active_parameters_are_the_published_ones(title):
    assert model_of(title, {}, 2048).active_parameters / 1e9 == pytest.approx(ENTRIES[title]["active"], rel=0.03)


@pytest.mark.parametrize("title", with_figure("active_bare"))
def test_active_parameters_without_the_token_embedding(title):
    model = model_of(title, {}, 2048)

    bare = model.active_parameters - model.embedding.parameters

    assert bare / 1e9 == pytest.approx(ENTRIES[title]["active_bare"], rel=0.03)


# llm-foundry prints the parameters of each run; learned positions make them follow the sequence.
MPT = [
    ("MPT-125m", 768, 12, 12, 2048, 125_311_488), ("MPT-350m", 1024, 24, 16, 65_536, 420_997_120),
    ("MPT-760m", 1536, 24, 12, 1024, 758_897_664), ("MPT-1b", 2048, 24, 16, 512, 1_312_804_864),
    ("MPT-3b", 2560, 32, 20, 8192, 2_667_566_080), ("MPT-7b", 4096, 32, 32, 16_384, 6_717_579_264),
    ("MPT-13b", 5120, 40, 40, 2048, 12_853_954_560), ("MPT-30b", 7168, 48, 56, 8192, 30_019_254_272),
    ("MPT-70b", 8192, 80, 64, 2048, 64_862_437_376),
]  # fmt: skip


@pytest.mark.parametrize("row", MPT, ids=[row[0] for row in MPT])
def test_mpt_to_the_last_parameter(row):
    title, hidden, layers, heads, seq_len, parameters = row
    arch = {"hidden": hidden, "layers": layers, "heads": heads, "ffn": 4 * hidden, "vocab": 50368}

    assert model_of(title, arch, seq_len).parameters == parameters
    assert model_of(title, {}, seq_len).parameters == parameters


# Megatron-LM's tables: Narayanan et al., arXiv:2104.04473, Table 1 (tied), and the README of 2024 (untied).
MEGATRON = [
    (1.7, 2304, 24, 24, 51200, 2048), (3.6, 3072, 30, 32, 51200, 2048), (7.5, 4096, 36, 32, 51200, 2048),
    (18.4, 6144, 40, 48, 51200, 2048), (39.1, 8192, 48, 64, 51200, 2048), (76.1, 10240, 60, 80, 51200, 2048),
    (145.6, 12288, 80, 96, 51200, 2048), (310.1, 16384, 96, 128, 51200, 2048), (529.6, 20480, 105, 128, 51200, 2048),
    (1008.0, 25600, 128, 160, 51200, 2048), (7.1, 4096, 30, 32, 131072, 4096), (16, 6144, 32, 48, 131072, 4096),
    (70, 8192, 84, 64, 131072, 4096), (177, 12288, 96, 96, 131072, 4096), (462, 18432, 112, 144, 131072, 4096),
]  # fmt: skip


@pytest.mark.parametrize("row", MEGATRON, ids=[str(row[0]) for row in MEGATRON])
def test_megatron_sizes(row):
    billions, hidden, layers, heads, vocab, seq_len = row
    model = model_of("GPT", {"hidden": hidden, "layers": layers, "heads": heads, "vocab": vocab}, seq_len)

    assert model.parameters / 1e9 == pytest.approx(billions, rel=0.01, abs=0.05)
    assert model.tied == (vocab == 51200)


# Megatron-Bridge docs/performance-summary.md: tokens/s and TFLOP/s of one GPU, with or without MTP.
STATED = [
    ("Llama3.1 405B", 8192, 1048, 2646, 0), ("Qwen3 235B A22B", 4096, 7280, 1077, 0), ("Kimi K2", 4096, 5372, 1099, 0),
    ("DeepSeek V3", 4096, 6288, 1635, 1), ("DeepSeek V3", 4096, 3848, 961, 0),
    ("DeepSeek V4 Flash", 4096, 8224, 748, 1), ("Nemotron 3 Super", 8192, 9856, 831, 2),
    ("Nemotron 3 Ultra", 8192, 2528, 923, 2),
]  # fmt: skip


@pytest.mark.parametrize("row", STATED, ids=[f"{row[0]} {row[4]}" for row in STATED])
def test_flop_a_token_are_those_that_recipes_state(row):
    """Within 1.5 %, backward being twice the forward pass; a pass of MTP is 4 to 6 % and would show."""
    title, seq_len, tokens_per_s, tflop_per_s, passes = row

    forward = model_of(title, {"mtp": passes}, seq_len).forward_flop_per_token(seq_len)

    assert 3 * forward == pytest.approx(tflop_per_s * 1e12 / tokens_per_s, rel=0.015)


# Each family with a configuration, and the same in the words of transformers where they differ.
V4 = {"vocab_size": 1000, "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 32}
BASE = {**V4, "num_key_value_heads": 4, "num_hidden_layers": 6}
HYBRID = {**BASE, "num_hidden_layers": 4, "intermediate_size": 448, "mamba_num_heads": 32, "n_routed_experts": 16}
COMPARED = [
    ("nemotron", {**BASE, "intermediate_size": 448}, {}),
    ("nemotron_h", {**HYBRID, "moe_latent_size": 64}, {"layers_block_type": [SORTS[mark] for mark in "M-*E"]}),
    ("nemotron_h", {**HYBRID, "hybrid_override_pattern": "MEM*"}, {}),
    ("llama4_text", {**BASE, "interleave_moe_layer_step": 2}, {}),
    ("llama4_text", {**BASE, "num_local_experts": 4}, {}),
    ("qwen3_next", {**BASE, "intermediate_size": 448}, {}),
    ("qwen3_next", {**BASE, "intermediate_size": 448, "layer_types": ["linear_attention", "full_attention"] * 3}, {}),
    ("qwen3_5_text", {**BASE, "intermediate_size": 448}, {}),
    ("qwen3_5_moe_text", BASE, {}),
    ("deepseek_v4", {**V4, "compress_ratios": [0, 4, 128]}, {"layer_types": list(COMPRESSED.values())}),
    ("deepseek_v4", V4, {"layer_types": list(COMPRESSED.values())}),
]
assert {row[0] for row in COMPARED} == set(MORE_FAMILIES) - {"grok"}, "a family is not compared"


@pytest.mark.parametrize("row", COMPARED, ids=[f"{row[0]} {i}" for i, row in enumerate(COMPARED)])
def test_families_have_the_parameters_of_transformers(transformers, row):
    """To the last one; DeepSeek-V4 but for the final mix of four streams, 4 x (4 h + 1) + 1."""
    import torch

    model_type, config, theirs = row
    asked = {**config, **theirs} if "layer_types" not in theirs else {**V4, **theirs}
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(model_type, **asked))
    left_out = 4 * (4 * 256 + 1) + 1 if model_type == "deepseek_v4" else 0

    ours = read_config({**config, **theirs, "model_type": model_type}, model_type)

    assert ours.parameters + left_out == sum(p.numel() for p in model.parameters())


def test_a_row_wins_over_the_table():
    """Grok's two-layer proxy, and a Llama cut to 7 layers."""
    assert model_of("Grok-1 314B", {"layers": 2}, 4096).layers == 2
    assert model_of("Llama3.1 405B", {"layers": 7, "hidden": 16384, "vocab": 1000}, 8192).vocab == 1000
    assert model_of("Nemotron 3 Nano", {"layers": 6}, 8192).order == (0, 1, 0, 1, 0, 2)


@pytest.mark.parametrize(
    ("title", "layers"),
    [
        ("Llama-3.1-405B", 126), ("Qwen2.5 32B 2-node", 64), ("Nemotron V3 Super 120B (26.02)", 88),
        ("gpt3-175B", 96), ("MPT-7b", 32), ("Kimi K2", 61), ("Qwen3 30B A3B", 48), ("Llama 1B (nanotron bench)", 24),
    ],
)  # fmt: skip
def test_titles_are_found_however_they_are_written(title, layers):
    assert model_of(title, {}, 4096).layers == layers


def test_titles_outside_the_table_follow_their_family():
    """GPT: ungated, biases, tied, 51,200 tokens; Llama: gated; BLOOM's vocabulary: no learned positions."""
    sizes = {"hidden": 1024, "layers": 4, "heads": 16}

    gpt, llama = model_of("GPT 123M", sizes, 2048), model_of("Some Llama", {**sizes, "ffn": 2816}, 2048)
    bloom = model_of("GPT 176B", {**sizes, "vocab": 250_000}, 2048)

    assert gpt.tied and gpt.vocab == 51_200 and operators(gpt.kinds[0])["up"].parameters == 4096 * 1025
    assert not llama.tied and operators(llama.kinds[0])["gate_up"].n == 2 * 2816
    assert "positions" in operators(gpt.embedding) and "positions" not in operators(bloom.embedding)


def test_a_size_in_the_title_stands_for_layers():
    """Rows of BigScience that state a width of 14,400 and pipeline stages that 80, 78 and 77 layers fill."""
    arch = {"hidden": 14400, "vocab": 250_000}

    assert [model_of(f"GPT {size}B", arch, 2048).layers for size in (200, 194, 191)] == [80, 78, 77]


@pytest.mark.parametrize(
    ("title", "billions", "layers"),
    [("mystery 13B", 13, 40), ("foo-7b", 7, 32), ("GPT3 22B", 22, 48), ("BLOOM-7B1", 7.1, 30), ("GPT 1T", 1000, 128)],
)
def test_a_dense_model_is_shaped_by_its_size(title, billions, layers):
    """Layers within 45 % of those of GPT-3 13B, Llama 7B, Megatron's 22B, BLOOM's 7B1 and Megatron's 1T."""
    model = model_of(title, {}, 2048)

    assert model.parameters / 1e9 == pytest.approx(billions, rel=0.03)
    assert model.layers == pytest.approx(layers, rel=0.45) and model.experts == 0
    assert shaped_by_size(title, {})


@pytest.mark.parametrize(
    ("title", "billions", "active"),
    [("X 30B A3B", 30, 3), ("GLM-4.5 355B-A32B", 355, 32), ("ERNIE 300B A47B", 300, 47), ("Y 1T A50B", 1000, 50)],
)
def test_experts_are_shaped_by_what_works_on_a_token(title, billions, active):
    model = model_of(title, {}, 4096)

    assert model.parameters / 1e9 == pytest.approx(billions, rel=0.15)
    assert model.active_parameters / 1e9 == pytest.approx(active, rel=0.1)
    assert model.experts % 8 == 0


@pytest.mark.parametrize("title", ["Foo 13B 1T tokens", "Foo 1T-token 13B", "Foo 13B (4M batch)", "Foo 13B of 70B"])
def test_the_first_size_in_a_title_is_the_models(title):
    assert model_of(title, {}, 2048).parameters == pytest.approx(13e9, rel=0.05)


def test_eight_times_a_size():
    model = model_of("Tiny 8x3B", {}, 4096)

    assert (model.experts, model.kinds[0].top_k, model.hidden) == (8, 2, 3072)


@pytest.mark.parametrize(
    ("title", "arch", "by_size"),
    [
        ("Llama3 8B", {}, False), ("org/Llama-3.1-8B-Instruct", {}, False), ("Kimi K2 1T", {}, False),
        ("DeepSeek-R1-Distill-Llama-70B", {}, False), ("X 7B", {"hidden": 4096, "layers": 32, "heads": 32}, False),
        ("Grok-2 270B", {}, True), ("X 7B", {"hidden": 4096}, False), ("X 7B", {"vocab": 50257}, True),
    ],
)  # fmt: skip
def test_only_what_no_table_knows_is_shaped_by_size(title, arch, by_size):
    assert shaped_by_size(title, arch) == by_size


@pytest.mark.parametrize(
    ("title", "arch", "message"),
    [
        ("(small Llama, size not in excerpt)", {}, "states no hidden size (hidden) and no number of layers"),
        ("Falcon", {"hidden": 4096, "heads": 32, "kv_heads": 8}, "no number of layers (layers); give"),
        ("T5 11B", {}, "only plain decoders"),
        ("Qwen3-VL 30B A3B", {}, "only plain decoders"),
        ("Grok-2 270B", {"experts": 8}, "work on a token is stated nowhere"),
        ("Flux 12B", {}, "is a diffusion model"),
        ("BERT large", {"hidden": 1024, "layers": 24, "heads": 16}, "only T5"),
        ("GPT", {"hidden": 1000, "layers": 2, "heads": 16}, "must divide hidden_size"),
        *((f"Bar {size}", {}, "fewer parameters work") for size in ("3B A30B", "30B A60B", "30B A0B", "8x7B A60B")),
        *((f"Foo {size}", {}, "names from 1 to 1e+14 parameters") for size in ("0B", "0x7B", "900T", "99999x9999B")),
        ("Llama3 8B", {"hidden": -1}, "hidden in arch_json is a whole number from 1; got '-1'"),
    ],
)
def test_what_cannot_be_built_says_why(title, arch, message):
    with pytest.raises(BadInput) as error:
        model_of(title, arch, 2048)

    assert message in str(error.value)


@pytest.mark.parametrize("pattern", ["", "MEX", 7, None])
def test_a_bad_pattern_is_refused(pattern):
    config = {**HYBRID, "model_type": "nemotron_h", "hybrid_override_pattern": pattern}

    with pytest.raises(BadInput, match="hybrid_override_pattern"):
        read_config(config, "hybrid")


def test_a_pattern_and_a_number_of_layers_must_agree():
    with pytest.raises(BadInput, match="4; hybrid_override_pattern has 3 marks"):
        read_config({**HYBRID, "model_type": "nemotron_h", "hybrid_override_pattern": "MEM"}, "hybrid")


def test_experts_that_are_a_layer_of_their_own_may_be_in_groups():
    grouped = {**HYBRID, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2}
    kinds = read_config({**grouped, "model_type": "nemotron_h", "hybrid_override_pattern": "MEM*"}, "hybrid").kinds

    assert {kind.expert_groups for kind in kinds if kind.experts} == {(4, 2)}


@pytest.mark.parametrize(("title", "heads", "state"), [("Nemotron 3 Nano", 64, 128), ("Nemotron-H 56B", 256, 256)])
def test_the_scan_costs_what_chunks_of_mamba_cost(title, heads, state):
    """2 Q (G N + H P) + 4 H N P FLOP a token, with Q = 128, G = 8, P = 64, within 9 %."""
    scan = operators(kind(model_of(title, {}, 8192), "mamba"))["scan"]
    chunks = 2 * 128 * (8 * state + heads * 64) + 4 * heads * state * 64

    assert scan.forward_flop_per_token(8192) == pytest.approx(chunks, rel=0.09)


def test_a_mamba_layer_by_hand():
    """Nano: width 4096, convolution over 6144, projection to 10304; states of 4096 x 128 in fp32, four times."""
    parts = operators(kind(model_of("Nemotron 3 Nano", {}, 8192), "mamba"))

    assert parts["mamba_in"].n == 10304 and parts["conv"].parameters == 6144 * 5
    assert parts["states"].moved == 2 * 6144 + 4096 + 2 * 4 * 4096 * 128 / 128
    assert sum(op.saved for op in parts.values()) == 2 * 2688 + 10304 + 4096 + 4096


def test_lone_layers_gather_once():
    model = model_of("Nemotron 3 Super", {}, 8192)

    assert {layer.kind: layer.boundaries for layer in model.kinds} == {"mamba": 1, "experts": 1, "attention": 1}
    assert dict(model.widths)["scan heads"] == 128


def test_latent_experts_travel_narrow():
    """Super: 22 copies of 1,024 elements instead of 4,096; experts without a gate; projections on tokens."""
    parts = operators(kind(model_of("Nemotron 3 Super", {}, 8192), "experts"))

    assert parts["dispatch"].saved == 22 * 1024
    assert (parts["experts_up"].n, parts["experts_up"].k) == (2688, 1024)
    assert parts["latent_down"].split == "sequence" and parts["latent_up"].n == 4096


def test_predictions_add_a_layer_and_a_head():
    """DeepSeek-V3's files hold 685 B: a layer, its join, and copies of embedding and head that training shares."""
    plain, model = model_of("DeepSeek V3", {}, 4096), model_of("DeepSeek V3", {"mtp": 1}, 4096)
    copies = 2 * 129280 * 7168

    assert (model.parameters + copies) / 1e9 == pytest.approx(685, rel=2e-3)
    assert model.layers == plain.layers + 1 and operators(model.kinds[-1])["logits"].parameters == 0
    assert {kind.expert_groups for kind in model.kinds if kind.experts} == {(8, 4)}
    assert recipe_prediction_passes("DeepSeek V3") == 1 and recipe_prediction_passes("Llama3 8B") == 0


BY_CARD = '{"vocab":128256,"arch_src":"model card, not the source"}'
MLPERF = {"id": "mlpf-001", "source": "mlcommons/training_results_v5.1/llama31_405b"}
DGXC = {"id": "dgxc-001", "source": "NVIDIA/dgxc-benchmarking/llama3.1/README_405b.md@v25.02.02"}


@pytest.mark.parametrize(
    ("cells", "vocabulary"),
    [
        (DGXC, 51200), (MLPERF, 32768), (DGXC | {"source": "dgxc-benchmarking/README.md@v25.04.02"}, 128256),
        (DGXC | {"arch_json": '{"vocab":128256}'}, 128256), (DGXC | {"model": "Llama3 70B"}, 128256),
        ({"id": "mb-001"}, 128256),
    ],
)  # fmt: skip
def test_benchmarks_tokenizers_stand_for_those_of_model_cards(cells, vocabulary):
    """dgxc up to v25.02 ran 405B on mock data with GPT-2's tokenizer, MLPerf runs it with Mixtral's."""
    usual = {"model": "Llama3.1 405B", "arch_json": BY_CARD, "n_gpus": "64", "tp": "8", "pp": "8", "notes": ""}

    assert job(**(usual | cells)).model.vocab == vocabulary


def test_recipes_of_several_stacks_train_predictions():
    """Automodel's for Nemotron Ultra does, by its configuration and the 359.5 GFLOP a token that its row states."""
    passes = {name: recipe_prediction_passes(f"Nemotron V3 {name}", "automodel") for name in ("Super", "Ultra")}
    assert passes == {"Super": 0, "Ultra": 2} and recipe_prediction_passes("Nemotron V3 Ultra", "torchtitan") == 0
    ultra = model_of("Nemotron V3 Ultra 550B", {"mtp": 2}, 4096)
    assert 3 * ultra.forward_flop_per_token(4096) == pytest.approx(293e12 / 815, rel=0.01)


def test_repeated_predictions_share_weights():
    plain = model_of("Nemotron 3 Super", {}, 8192)
    once, twice = (model_of("Nemotron 3 Super", {"mtp": passes}, 8192) for passes in (1, 2))
    flop = [model.forward_flop_per_token(8192) for model in (plain, once, twice)]

    assert twice.parameters == once.parameters and twice.layers == plain.layers + 2
    assert flop[2] - flop[1] == pytest.approx(flop[1] - flop[0])


def test_t5_by_hand():
    """Large: 24 + 24 layers; 114 decoder tokens for 512; attention sees all keys of the encoder, half of its own."""
    model, s, d, h, i = model_of("T5-v1.1-large", {}, 512), 512, 114, 1024, 2816
    encoder = 24 * (2 * s * (4 * h * h + 3 * h * i) + 4 * s * s * h)
    decoder = 24 * (2 * d * (6 * h * h + 3 * h * i) + 2 * s * 2 * h * h + 4 * d * s * h + 2 * d * d * h)
    logits = 2 * d * 32128 * h

    assert model.forward_flop_per_token(s) * s == pytest.approx(encoder + decoder + logits, rel=2e-3)


def test_known_layouts_of_layers():
    """DeepSeek-V4 Flash: 2 windows, 21 finely and 20 coarsely compressed; Maverick: experts in every other layer."""
    flash, maverick = model_of("DeepSeek V4 Flash", {}, 4096), model_of("Llama4 Maverick", {}, 8192)

    assert [flash.order.count(i) for i in range(3)] == [2, 21, 20]
    assert sum(maverick.kinds[i].experts > 0 for i in maverick.order) == 24


def test_every_source_is_named():
    sources = table()["sources"]

    assert {entry["source"] for entry in table()["model"]} == set(sources)


@pytest.mark.parametrize("title", ["Hunyuan 389B A52B", "Foo 100B A10B", "Foo 235B A22B", "Foo 57B A14B"])
def test_a_model_of_a_size_has_that_size(title):
    size = float(title.split()[1].rstrip("B")) * 1e9

    assert model_of(title, {}, 4096, has_experts=True).parameters == pytest.approx(size, rel=0.06)


def test_a_size_that_no_usual_shape_has_is_refused():
    with pytest.raises(BadInput, match="nearest usual shape"):
        model_of("Foo 30B A3B", {"moe_ffn": 65536}, 4096, has_experts=True)


def test_experts_whose_heads_eight_does_not_divide():
    assert model_of("Arctic 480B (128x3.66B MoE)", {}, 4096, has_experts=True).experts == 128
