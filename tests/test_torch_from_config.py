"""A ``config.json`` of a family without a reading: what transformers builds of it, traced, planned and verified."""

from __future__ import annotations

import json

import pytest

import planner.read_model
from planner import plan
from planner.checks.verify import verify
from planner.errors import BadInput, UnknownName
from planner.explanations.mine import same_inputs_of
from planner.read_model import read_config, read_model, torch_from_config
from planner.read_model.families import FAMILIES

torch = pytest.importorskip("torch")

from planner.runtime.blocks import read_blocks  # noqa: E402

SIZES = {
    "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "max_position_embeddings": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OLMO = {**SIZES, "model_type": "olmo2"}
BERT = {**SIZES, "model_type": "bert"}
PAIR = {
    "model_type": "encoder-decoder", "is_encoder_decoder": True, "encoder": BERT,
    "decoder": {**BERT, "is_decoder": True, "add_cross_attention": True, "max_position_embeddings": 50},
}  # fmt: skip
CONFIGS = {
    "olmo2": OLMO,
    "encoder-decoder": PAIR,
    "cohere": {**SIZES, "model_type": "cohere"},
    "stablelm": {**SIZES, "model_type": "stablelm"},
    "olmoe": {**SIZES, "model_type": "olmoe", "num_experts": 8, "num_experts_per_tok": 2},
    "bert": BERT,
    "t5": {"model_type": "t5", "vocab_size": 512, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2,
           "num_heads": 4},
    "vit": {"model_type": "vit", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 96, "image_size": 32, "patch_size": 8},
}  # fmt: skip
XLNET = {"model_type": "xlnet", "vocab_size": 512, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 96}
ASKED = {"global_batch": 8, "seq_len": 64}

pytestmark = pytest.mark.usefixtures("transformers")


@pytest.mark.parametrize("name", CONFIGS)
def test_families_without_a_reading_have_the_parameters_of_transformers(transformers, name):
    assert name not in FAMILIES
    graph = read_config(CONFIGS[name], name)
    architecture = graph.notes[0].split(": ")[1].split()[0]
    module = getattr(transformers, architecture)(transformers.CONFIG_MAPPING[name].from_dict(dict(CONFIGS[name])))

    assert graph.parameters == sum(p.numel() for p in module.parameters())
    assert graph.config == CONFIGS[name]
    assert graph.notes[0].startswith("its family has no reading here: ")


@pytest.mark.parametrize("name", CONFIGS)
def test_encoders_and_models_of_images_are_no_decoders(name):
    assert read_config(CONFIGS[name], name).is_decoder == (name not in {"bert", "t5", "vit", "encoder-decoder"})


def test_the_sample_is_as_long_as_positions_allow():
    assert read_config(OLMO, "olmo").example_seq_len == 64
    assert read_config({**OLMO, "max_position_embeddings": 10**6}, "olmo").example_seq_len == 8192
    assert read_config(CONFIGS["vit"], "vit").example_seq_len == (32 // 8) ** 2 + 1
    assert read_config(PAIR, "pair").example_seq_len == 32


def test_architectures_say_what_is_trained():
    def built(names: list[str] | None) -> str:
        return read_config({**BERT, "architectures": names}, "bert").notes[0]

    assert "BertForMaskedLM" in built(None)
    assert "BertForMaskedLM" in built(["BertForMaskedLM"])
    assert "BertLMHeadModel" in built(["BertLMHeadModel"])


def test_a_plan_of_it_is_verified_from_what_it_carries(tmp_path):
    path = tmp_path / "my-olmo"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(OLMO))

    found = plan(path, "cpu-local:1", **ASKED)
    assert (found.status, found.model.name) == ("optimal", "my-olmo")
    saved = type(found).from_json(found.to_json())
    assert verify(saved, *same_inputs_of(saved)).verdict == "verified"


@pytest.mark.parametrize("name", ["olmo2", "stablelm", "starcoder2", "olmoe", "bert", "qwen3", "gemma2", "phi3"])
def test_a_plan_of_a_config_is_one_of_the_module_that_transformers_builds(transformers, name):
    """``apply`` takes it: as many parameters, and a module for every layer."""
    config = CONFIGS.get(name, {**SIZES, "model_type": name, "head_dim": 16})
    settings = transformers.AutoConfig.for_model(**config)
    task = transformers.AutoModelForMaskedLM if name == "bert" else transformers.AutoModelForCausalLM
    found = plan(config, "cpu-local:2", **ASKED, pins={"tp": 1, "pp": 2})

    blocks = read_blocks(found, task.from_config(settings), {"input_ids": torch.zeros(1, 64, dtype=torch.long)})
    assert len(blocks.chain("pp")) == found.model.layers == 3


def test_infinities_are_read_as_transformers_writes_them(transformers, tmp_path):
    """Of a Mamba: its time steps have no upper limit; a text that is no number is the config's error."""
    settings = transformers.Mamba2Config(
        vocab_size=512, hidden_size=64, num_hidden_layers=2, num_heads=8, head_dim=16, n_groups=2, state_size=16,
        chunk_size=16,
    )  # fmt: skip
    settings.save_pretrained(tmp_path)
    written = (tmp_path / "config.json").read_text()

    assert "__float__" in written and read_model(tmp_path).layers == 2
    with pytest.raises(BadInput, match="could not convert string to float: 'all'"):
        read_config(json.loads(written.replace('"Infinity"', '"all"')), "m")


def test_a_text_part_of_such_a_family_is_read_through_its_wrapper():
    wrapped = {"model_type": "some-wrapper", "text_config": OLMO}
    assert read_model(wrapped).parameters == read_model(OLMO).parameters


def test_models_of_the_hub_are_read_from_its_cache(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refs, snapshot = tmp_path / "models--my-org--My-Olmo" / "refs", tmp_path / "models--my-org--My-Olmo/snapshots/0a1b"
    refs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (refs / "main").write_text("0a1b")
    (snapshot / "config.json").write_text(json.dumps(OLMO))

    found = read_model("my-org/My-Olmo")
    assert (found.name, found.parameters) == ("My-Olmo", read_model(OLMO).parameters)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("meta-llama/Llama-3.1-70B", "hf download meta-llama/Llama-3.1-70B config.json .* preset 'llama-3.1-70b'"),
        ("my-org/no-such-thing", "hf download my-org/no-such-thing config.json --local-dir no-such-thing$"),
        ("my-org/no-such-thing/", "give a config.json, its directory or a preset name$"),
    ],
)
def test_models_of_the_hub_that_are_not_here_are_refused_with_the_way_to_get_them(name, said):
    with pytest.raises(BadInput, match=said):
        read_model(name)


def test_the_families_of_the_tables_are_not_built(monkeypatch):
    monkeypatch.setattr(torch_from_config, "read_built", None)
    assert read_config({**SIZES, "model_type": "llama"}, "llama").parameters


def test_kimi_k2_is_a_deepseek_v3():
    sizes = {**SIZES, "num_key_value_heads": 4}
    kimi, deepseek = (read_config({**sizes, "model_type": kind}, "it") for kind in ("kimi_k2", "deepseek_v3"))
    assert kimi.digest == deepseek.digest


@pytest.mark.parametrize("missing", ["torch", "transformers"])
@pytest.mark.parametrize(
    ("config", "error"), [(OLMO, UnknownName), (CONFIGS["t5"] | {"is_encoder_decoder": True}, BadInput)]
)
def test_without_transformers_the_refusal_says_what_to_install(monkeypatch, missing, config, error):
    monkeypatch.setattr(planner.read_model, "find_spec", lambda name: None if name == missing else True)
    with pytest.raises(error, match=r"pip install 'meshwright\[transformers\]'"):
        read_config(config, "it")


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        ({**OLMO, "model_type": "olmoo2"}, UnknownName, "'olmoo2' is no family of transformers .* nearest: olmo"),
        ({**OLMO, "num_hidden_layers": 10**6}, BadInput, "num_hidden_layers is 1000000; .* at most 1,024"),
        ({**PAIR, "encoder": {**BERT, "num_hidden_layers": 10**6}}, BadInput, "'bert' config: num_hidden_layers"),
        ({**CONFIGS["vit"], "num_labels": 10**9}, BadInput, "num_labels is 1000000000; .* at most 1,000,000"),
        ({"model_type": "dpt", "backbone": "my-org/x", "use_pretrained_backbone": True}, BadInput, "offline mode"),
        ({**OLMO, "hidden_size": "wide"}, BadInput, "'olmo2' config: transformers .* does not build it"),
        ({**OLMO, "num_attention_heads": 0}, BadInput, "'olmo2' config: transformers .* does not build it"),
        ({"model_type": "wav2vec2"}, BadInput, "neither a language model nor an image classifier"),
        (XLNET, BadInput, "its last layer has 1: it lays out its hidden states"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_refused(config, error, said):
    with pytest.raises(error, match=said):
        read_config(config, "it")


def test_code_that_loops_over_tokens_is_refused():
    looping = {**SIZES, "model_type": "mamba", "max_position_embeddings": 8192}
    with pytest.raises(BadInput, match="MambaForCausalLM calls torch more than 1,000 times in one module"):
        read_config(looping, "mamba")


def test_transformers_is_left_as_it_was(transformers, monkeypatch):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    before = transformers.logging.get_verbosity()
    read_config(OLMO, "olmo")
    assert (transformers.logging.get_verbosity(), constants.HF_HUB_OFFLINE) == (before, False)


def test_kernels_and_packed_weights_of_whoever_ran_it_are_nothing_to_a_plan():
    run = {"_attn_implementation": "flash_attention_2", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    assert read_config({**OLMO, **run}, "olmo").digest == read_config(OLMO, "olmo").digest
