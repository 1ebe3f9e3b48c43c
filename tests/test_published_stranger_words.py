"""Words of strangers' rows for kept tensors, 16-bit states, quantised weights, kernels and what their stack does."""

import pytest

from planner.published.predict import prepared
from planner.published.saved_tensors import in_other_words
from planner.published.training import training_case
from tests.published_rows import MIXTRAL, training_row


def job(**cells):
    """The job of a row of a source in no table."""
    case = training_case(training_row(**({"id": "xyz-1", "notes": ""} | cells)))
    assert case.missing == ""
    return prepared(case.job)


def stack(**cells):
    return job(**cells).workload.stack


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("save_qkv_proj", "selective (save_qkv_proj)"), ("qkv_proj_offloaded", "selective (save_qkv_proj)"),
        ("save_dot_with_context_except_mlp", "selective (mlp)"), ("save_out_proj", "full"),
        ("remat_policy=custom: query_proj, key_proj, value_proj offloaded", "selective (save_qkv_proj)"),
        ("custom: qkv_proj=device, context=device, mlpwo=remat", "selective (mlp)"),
        ("custom: query_proj=device, key_proj=remat, value_proj=remat", "full"),
        ("custom: decoder_layer_input=offload, context=remat", "full"),
        ("custom", "custom"), ("full", "full"), ("selective (mlp)", "selective (mlp)"),
    ],
)  # fmt: skip
def test_a_policy_of_kept_tensors_is_what_is_repeated(policy, words):
    assert in_other_words(policy) == words


def test_a_row_may_name_a_policy_of_kept_tensors():
    kept = stack(source="MaxText", accelerator="TPU v5p", n_gpus="8", recompute="custom: qkv_proj=device").selective

    assert kept == "behind_qkv"


@pytest.mark.parametrize(
    ("words", "kernel"), [("flash_attn v1", "flash1"), ("FA3", "fused"), ("flash attention 3", "fused")]
)
def test_flash_attention_has_a_version(words, kernel):
    it = stack(other_flags=f"torchtitan; {words}")

    assert (it.fused_attention, it.attention_kernel) == (True, kernel)


@pytest.mark.parametrize("words", ["pure bf16", "bf16-true", "bf16 weights and Adam moments"])
@pytest.mark.parametrize("column", ["precision", "other_flags"])
def test_states_wholly_in_16_bits_have_no_master_weights(words, column):
    cells = {"zero_or_fsdp_stage": "FSDP2", "source": "torchtitan", "precision": "bf16", "n_gpus": "8"}
    mixed, pure = stack(**cells), stack(**(cells | {column: words}))

    assert (mixed.optimizer_bytes, mixed.master_weights_sharded) == (12, True)
    assert (pure.gradient_bytes, pure.optimizer_bytes, pure.master_weights_sharded) == (2, 4, False)


@pytest.mark.parametrize(
    ("words", "least", "most"),
    [("LoRA; GPTQ", 0.5, 0.54), ("Q-LoRA", 0.55, 0.6), ("LoRA; load_in_4bit", 0.55, 0.6), ("LoRA", 2, 2)],
)
def test_frozen_weights_have_the_bytes_of_their_format(words, least, most):
    it = stack(other_flags=words, source="DeepSpeed", n_gpus="1")

    assert least <= (it.frozen_bytes or 2) <= most


def test_frozen_weights_under_zero_3_are_held():
    """Adapters alone have fp32 copies: an 8B's 16-bit weights over eight devices are 2 GB of each, not none."""
    cells = {"source": "DeepSpeed", "zero_or_fsdp_stage": "ZeRO-3"}

    assert stack(**cells).master_weights_sharded
    assert not stack(other_flags="LoRA", **cells).master_weights_sharded


@pytest.mark.parametrize(
    ("words", "balanced"),
    [("forced balanced routing", True), ("moe_router_force_load_balancing", True), ("balanced experts=False", False)],
)
def test_whether_routing_is_forced_to_balance(words, balanced):
    assert stack(model="Mixtral 8x7B", arch_json=MIXTRAL, other_flags=words).balanced_routing == balanced


@pytest.mark.parametrize(("source", "in_order"), [("NeMo Automodel", True), ("torchtitan", False)])
def test_automodels_benchmark_gate_deals_experts_out_in_their_order(source, in_order):
    it = stack(source=source, model="Mixtral 8x7B", arch_json=MIXTRAL, zero_or_fsdp_stage="FSDP2")
    assert it.consecutive_experts == in_order


def test_grouped_heads_do_not_make_a_network_gated():
    arch = '{"hidden":2048,"layers":24,"heads":16,"kv_heads":1,"ffn":8192,"vocab":49280%s}'
    plain, gated = (job(model="Coder", arch_json=arch % said).model for said in (',"gated":false', ',"gated":true'))
    third = 24 * 2048 * 8192  # one matrix of each layer

    assert gated.parameters - plain.parameters == pytest.approx(third, rel=0.01)


@pytest.mark.parametrize(("identity", "hidden"), [("xyz-1", True), ("prm-1", False)])
def test_primus_hides_communication_but_for_one_article_s_runs(identity, hidden):
    assert stack(id=identity, source="Primus", accelerator="MI300X").dp_overlap == hidden


@pytest.mark.parametrize(
    ("date", "words", "fused"),
    [
        ("2025-08", "torch.compile", True), ("2026-02", "torch.compile", True), ("2025-08", "eager", False),
        ("2025-03", "torch.compile", False),
    ],
)  # fmt: skip
def test_torchtitan_compiles_its_loss_since_mid_2025(date, words, fused):
    assert stack(source="torchtitan", date=date, other_flags=words).fused_loss == fused
