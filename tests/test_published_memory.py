"""Memory of published rows: whose figure it is, what a release keeps, which modules run again."""

from __future__ import annotations

import dataclasses

import pytest

from cost_models.calibration import calibrate
from cost_models.strategy import uniform_stages
from planner.published.predict import GIB, memory_gib, prepared
from planner.published.switches import recompute_modules, whole_layers
from planner.published.training import training_case
from tests.published_rows import LLAMA_8B, MIXTRAL, bigscience_row, training_row


def job(row):
    case = training_case(row)
    assert case.job is not None, case.missing
    return prepared(case.job)


@pytest.mark.parametrize(
    ("words", "again"),
    [
        ("selective(core_attn)", "attention"),
        ("selective(moe)", "network"),
        ("selective(moe,layernorm)", "network"),
        ("selective(mlp,core_attn)", "network"),
        ("selective(layernorm,moe_act)", "activation"),
        ("selective(mla_up_proj)", "up_projection"),
        ("selective(mla_up_proj,mlp)", "up_projection"),
        ("selective (per-op SAC)", ""),
        ("recompute RMSNorm and MLA up-projection", "small_modules"),
        ("full", ""),
    ],
)
def test_modules_that_run_again(words, again):
    assert recompute_modules(words) == again


@pytest.mark.parametrize(
    ("words", "layers"),
    [
        ("full, block, 21 layers", 21), ("full (block, 3)", 3), ("full block 12", 12), ("full", 0),
        ("full, uniform, 1", 0), ("selective", 0), ("none", 0), ("full, block, recompute_num_layers=3", 3),
        ("full in every block, 2 GPUs", 0),
    ],
)  # fmt: skip
def test_layers_of_every_stage_that_run_again(words, layers):
    assert whole_layers(words) == layers


def test_a_figure_is_that_of_its_rank():
    """Of a pipeline of four the first rank keeps most micro-batches and the last fewest."""
    it = job(training_row(n_gpus="32", pp="4", tp="8", vpp="1", global_batch="128", recompute="none"))
    fits = calibrate(it.cluster, it.workload.stack)
    first, last, most = (memory_gib(it, fits, "allocated", rank) for rank in ("first", "last", None))

    assert last < 0.8 * first
    assert first == most


@pytest.mark.parametrize(("prefix", "rank"), [("mlpf", "first"), ("mbs", "last"), ("mb", None)])
def test_sources_say_whose_figure_they_print(prefix, rank):
    row = training_row(id=f"{prefix}-001", source="mlcommons/training_results_v5.0/X", peak_mem_gib="40")
    found = next(one for one in training_case(row).measured if one.quantity == "peak_mem_gib")

    assert found.rank == rank


@pytest.mark.parametrize(("section", "held"), [("GBS Variations", 2), ("Rebalancing layers", 6)])
def test_gradients_of_the_chronicle_add_up_in_fp32_in_its_last_section(section, held):
    row = bigscience_row(source=f'bigscience/train/tr11-176B-ml/chronicles-prequel.md@9e64edec "{section}"')

    assert job(row).workload.stack.held_gradient_bytes == held


@pytest.mark.parametrize(("section", "layers"), [("Re-do", [7] * 11 + [1]), ("Rebalancing layers", None)])
def test_stages_of_the_chronicle_are_filled_until_it_counts_the_embeddings_too(section, layers):
    arch = '{"hidden":13824,"layers":78,"heads":96,"kv_heads":96,"ffn":55296,"vocab":250880}'
    row = bigscience_row(
        source=f'bigscience/train/tr11-176B-ml/chronicles-prequel.md@9e64edec "{section}"', arch_json=arch,
        n_gpus="384", pp="12", tp="4", dp="8", micro_batch="2", global_batch="2048",
    )  # fmt: skip
    found = job(row).strategy.stages

    assert [stage.layers for stage in found] == (layers or [stage.layers for stage in uniform_stages(78, 12)])


@pytest.mark.parametrize(("prefix", "flags", "copies", "gathers"), [
    ("tt-1", "FSDP; 2D", True, True), ("tune-1", "LoRA; torch.compile", True, False), ("mb-1", "", False, False),
])  # fmt: skip
def test_torch_stacks_copy_keys_for_every_head_and_torchtitan_what_it_gathers(prefix, flags, copies, gathers):
    stack = job(training_row(id=prefix, other_flags=flags, arch_json=LLAMA_8B)).workload.stack

    assert (stack.repeats_kv, stack.copies_gathered) == (copies, gathers)


def test_what_megatron_core_and_others_keep():
    """Transformer Engine keeps quantised inputs; experts' results went with Megatron-Core 0.13; FSDP keeps both."""
    new, old = (job(training_row(arch_json=MIXTRAL, ep="8", model="Mixtral 8x7B", notes=f"NeMo container {release}"))
                for release in ("26.08", "25.04"))  # fmt: skip
    other = job(training_row(id="tt-1", date="2024-12", other_flags="FSDP", arch_json=LLAMA_8B))
    kept = [(it.workload.stack.quantised_inputs, it.workload.stack.weights_on_activation) for it in (new, old, other)]

    assert kept == [(True, True), (True, False), (False, False)]
    assert (new.workload.stack.gathers_again, other.workload.stack.gathers_again) == (True, False)


@pytest.mark.parametrize(("accelerator", "choice"), [("RTX 4090", "full"), ("RTX A6000", "none")])
def test_recompute_by_the_memory_of_a_device(accelerator, choice):
    flags = {"other_flags": "LoRA; torch.compile", "zero_or_fsdp_stage": "single device"}
    row = training_row(
        id="tune-1", n_gpus="1", micro_batch="2", global_batch="2", seq_len="2048", accelerator=accelerator, **flags
    )
    it = job(row)

    assert it.strategy.stages[0].runs[0].choice.recompute == choice


@pytest.mark.parametrize(("stack", "gradients", "states"), [("am", 2.0, 4.0), ("mb", 2.0, 12.0)])
def test_states_have_the_type_of_their_parameters_where_torchs_adam_makes_them(stack, gradients, states):
    """Automodel's parameters have 16 bits and no master copy; Megatron-Core's states 32."""
    held = job(training_row(id=f"{stack}-1", zero_or_fsdp_stage="FSDP2" if stack == "am" else "")).workload.stack

    assert (held.gradient_bytes, held.optimizer_bytes) == (gradients, states)


def test_bitsandbytes_keeps_the_moments_of_embeddings_in_32_bits():
    stack = job(bigscience_row(other_flags="--use-bnb-optimizer (8-bit Adam)")).workload.stack

    assert (stack.optimizer_bytes, stack.embedding_optimizer_bytes) == (6.0, 12.0)


def test_internevo_gives_the_layers_left_over_to_the_last_stages():
    row = {"n_gpus": "10", "pp": "5", "global_batch": "100"}
    stages = [
        [stage.layers for stage in job(training_row(id=f"{prefix}-1", **row)).strategy.stages]
        for prefix in ("ie", "tt")
    ]  # fmt: skip

    assert stages == [[6, 6, 6, 7, 7], [6, 7, 7, 6, 6]]


def test_a_meter_shows_no_more_than_the_device_has_unless_that_is_needed_at_once():
    """Bytes of the update beside those of activations, which its pool holds until none is left, on an A100."""
    it = job(bigscience_row(micro_batch="8", pp="6", dp="8"))
    fits = calibrate(it.cluster, it.workload.stack)
    pooled = dataclasses.replace(fits, step_bytes=4 * fits.step_bytes)
    needed = dataclasses.replace(fits, context_bytes=fits.context_bytes + 30 * GIB)

    assert memory_gib(it, pooled) == it.cluster.memory_bytes / GIB
    assert memory_gib(it, needed) == pytest.approx(memory_gib(it, fits) + 30, rel=0.03)


def test_nanotron_cuts_stages_by_cost():
    """Llama3 8B on 8 stages, as its documentation prints the first two."""
    it = job(training_row(id="nano-1", source="nanotron", model="Llama3 8B", arch_json="", n_gpus="8", pp="8", tp="1"))

    assert [stage.layers for stage in it.strategy.stages] == [5, 4, 4, 5, 4, 4, 4, 2]


def test_torchtitan_s_own_figures_are_of_what_is_reserved():
    row = training_row(id="mine-1", source="mine", other_flags="torchtitan", peak_mem_gib="40")
    found = next(one for one in training_case(row).measured if one.quantity == "peak_mem_gib")

    assert found.meter == "reserved"
