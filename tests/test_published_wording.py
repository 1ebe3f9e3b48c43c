"""What words say of a setting: on, off or nothing."""

import pytest

from planner.published.layouts import recompute_choice, sharding
from planner.published.recipes import Recipe, recipe
from planner.published.sources import source_of
from planner.published.switches import COMPILED, LORA, precision, stated_recompute, switches
from planner.published.training import training_case
from planner.published.wording import contradicts, said
from tests.published_rows import job, training_row

EMPTY = Recipe("s", "r", {})
GRAPHS = "CUDA[ _-]?graphs?"
ON, OFF = True, False


@pytest.mark.parametrize(
    ("text", "pattern", "answer"),
    [
        ("torch.compile", COMPILED, ON), ("torch.compile=False", COMPILED, OFF), ("TORCH_COMPILE: 0", COMPILED, OFF),
        ("torch.compile is off", COMPILED, OFF), ("torch.compile was not used", COMPILED, OFF),
        ("torch.compile=max-autotune", COMPILED, ON), ("torch.compile (off)", COMPILED, OFF),
        ("torch.compile (no CUDA graphs)", COMPILED, ON), ("torch.compile (no CUDA graphs)", GRAPHS, OFF),
        ("no AC torch.compile", COMPILED, ON), ("no AC, torch.compile", COMPILED, ON),
        ("!torch.compile", COMPILED, OFF),
        ("without torch.compile or CUDA graphs", GRAPHS, OFF), ("without torch.compile, CUDA graphs", GRAPHS, ON),
        ("w/o CUDA graphs, torch.compile, and LoRA", COMPILED, OFF), ("no AC, torch.compile or LoRA", LORA, OFF),
        ("w/o LoRA, AC, and SP, torch.compile", COMPILED, ON), ("no AC, no LoRA, and torch.compile", COMPILED, ON),
        ("no LoRA but torch.compile", COMPILED, ON), ("not yet tuned; torch.compile", COMPILED, ON),
        ("--disable-cuda-graphs", GRAPHS, OFF), ("enable_cuda_graph=True", GRAPHS, ON),
        ("CUDA graphs off", GRAPHS, OFF),
        ("no LoRA", LORA, OFF), ("full finetune, not LoRA", LORA, OFF), ("LoRA (disabled)", LORA, OFF),
        ("QLoRA", LORA, ON),
        ("torch.compile=?", COMPILED, None), ("torch.compile not stated", COMPILED, None),
        ("7 % faster than torch.compile", COMPILED, None), ("with/without torch.compile", COMPILED, None),
        ("eager", COMPILED, None), ("torch.compile; no torch.compile", COMPILED, None),
    ],
)  # fmt: skip
def test_on_off_or_nothing(text, pattern, answer):
    assert said(text, pattern) is answer


def test_a_contradiction_is_seen():
    assert contradicts("torch.compile; torch.compile=False", COMPILED)
    assert not contradicts("torch.compile", COMPILED)


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        ("torch.compile=False", "fused_pointwise", False), ("compile=True", "fused_pointwise", True),
        ("CUDA graphs off", "cuda_graphs", False), ("AsyncTP", "tp_overlap", True),
        ("no async TP", "tp_overlap", False),
        ("--no-overlap-grad-reduce", "dp_overlap", False), ("without DeepEP", "dispatcher", None),
        ("pack_sample_into_one=False", "packed", False), ("act_cpu_offload=False", "offload", None),
        ("token dropping off", "token_drop", None), ("token dropping", "token_drop", True),
        ("token dropless", "token_drop", None), ("token dropless", "dispatcher", "deepep"),
        ("no SP", "sequence_parallel", False), ("sequence_parallel=True", "sequence_parallel", True),
    ],
)  # fmt: skip
def test_flags_that_are_negated(flags, field, value):
    row = training_row(other_flags=flags)

    assert switches(row, source_of(row), EMPTY, recompute="none", schedule="").get(field) == value


def test_dropless_is_deepep_only_since_there_is_one():
    found = {date: job(date=date, other_flags="dropless").switches.get("dispatcher") for date in ("2024-06", "2025-06")}

    assert found == {"2024-06": None, "2025-06": "deepep"}


def test_the_first_cell_that_says_anything_decides():
    row = training_row(other_flags="torch.compile", notes="no torch.compile in an earlier table")

    assert training_case(row).job.switches["fused_pointwise"] is True


@pytest.mark.parametrize("words", ["no LoRA", "LoRA=False", "SFT without LoRA", "full fine-tuning, not LoRA"])
def test_adapters_that_are_not_there(words):
    assert training_case(training_row(other_flags=words)).job.workload.tuning == "all"


@pytest.mark.parametrize(
    ("flags", "choice"),
    [
        ("without recompute", "none"),
        ("recompute=full", "full"),
        ("bf16; no AC", "none"),
        ("selective AC", "selective"),
        ("precompute scale; recompute=full", "full"),
        ("force_recompute_fp8_weight_in_bwd; AC: selective", "selective"),
        ("w/o CUDA graphs, recompute, and offloading", "none"),
        ("no full recompute, selective AC", "selective"),
        ("full finetune, selective(mlp, core_attn) recompute", "selective"),
    ],
)
def test_recompute_among_the_flags(flags, choice):
    job = training_case(training_row(other_flags=flags)).job

    assert {run.choice.recompute for stage in job.strategy.stages for run in stage.runs} == {choice}


@pytest.mark.parametrize(
    ("words", "choice"),
    [
        ("selective, not full", "selective"), ("no full recompute, selective", "selective"), ("not recomputed", "none"),
        ("None", "none"), ("not used", "none"), ("False", "none"), ("True", "full"), ("all layers", "full"),
        ("AC", "full"), ("AC=True", "full"), ("SAC", "selective"), ("AC mode none", "none"),
        ("selective AC", "selective"), ("recompute RMSNorm and MLA up-projection", "selective"), ("recompute", "full"),
    ],
)  # fmt: skip
def test_recompute_cells(words, choice):
    assert recompute_choice(words, EMPTY)[0] == choice


@pytest.mark.parametrize(
    ("words", "zero", "shard"),
    [
        ("FSDP=False x DP=8", 0, None), ("FSDP=1", 3, None), ("FSDP=1 x DP=8", 3, 1),
        ("FSDP (ZeRO-3) disabled", 0, None),
        ("ZeRO-1 (2 nodes)", 1, 16), ("zero_optimization.stage: 3", 3, None), ("use_distributed_optimizer=0", 0, None),
        ("Distributed Optimizer", 1, None), ("os+g", 2, None), ("DP=8", 0, None), ("ZeRO-3, not FSDP", 3, None),
        ("FSDP2 (reshard_after_forward=False)", 2, None), ("HSDP (no resharding after forward)", 2, 8),
        ("FSDP2 (reshard_after_forward=True)", 3, None),
        ("fully sharded data parallel", 3, None), ("hybrid shard=16", 3, 16),
    ],
)  # fmt: skip
def test_sharding_cells(words, zero, shard):
    found, _ = sharding(words, EMPTY, 8)

    assert (found.zero, found.shard) == (zero, shard)


@pytest.mark.parametrize(
    ("words", "precision"),
    [
        ("bf16 (no fp8)", "bf16"),
        ("BF16, FP8 off", "bf16"),
        ("TE E4M3", "fp8"),
        ("16-mixed", "fp16"),
        ("fp-16", "fp16"),
        ("BF16; FP8 no", "bf16"),
        ("FP8 param gather disabled, bf16", "bf16"),
    ],
)
def test_precisions_that_are_negated(words, precision):
    assert training_case(training_row(precision=words)).job.workload.precision == precision


@pytest.mark.parametrize(
    "words",
    [
        "full recompute disabled", "full recomputation: no", "full activation checkpointing = False",
        "selective recompute: off", "selective recomputation (disabled)", "recompute-activations False",
        "recompute_granularity: null", "recompute no",
    ],
)  # fmt: skip
def test_a_noun_between_a_mode_and_its_value(words):
    assert recompute_choice(words, EMPTY)[0] == "none"


@pytest.mark.parametrize(("words", "assumed"), [("FP8 or BF16", True), ("fp8/bf16", True), ("bf16/fp32", False)])
def test_one_of_two_precisions_is_an_assumption(words, assumed):
    assert ("precision" in training_case(training_row(precision=words)).assumed) is assumed


@pytest.mark.parametrize(
    ("words", "zero"),
    [
        ("PyTorch DDP", 0), ("not sharded", 0), ("unsharded", 0), ("fully_shard", 3), ("3.0", 3), ("os+g+p", 3),
        ("ZeRO-Infinity", 3), ("ZeRO-Offload", 2), ("ZeRO-3 + ZeRO-Offload", 3), ("FSDP inside hosts, DDP across", 3),
    ],
)  # fmt: skip
def test_sharding_under_a_stack_that_shards_weights(words, zero):
    assert sharding(words, recipe("torchtitan", ""), 8)[0].zero == zero


OFF_FORMS = ("no {}", "w/o {}", "{} off", "{}: no", "{} disabled", "{}=False", "{} no", "{}: null", "{} (turned off)")


@pytest.mark.parametrize("form", OFF_FORMS)
def test_no_wording_of_off_reads_as_on(form):
    """In a cell of its own and among the flags, first and last in a list."""
    for name in ("full recompute", "selective AC", "CUDA graphs", "activation checkpointing", "torch.compile"):
        for flags in (form.format(name), f"bf16; {form.format(name)}, GA=2", f"GA=2, {form.format(name)}"):
            row = training_row(other_flags=flags)
            found = switches(row, source_of(row), EMPTY, recompute=stated_recompute(row), schedule="")
            assert not (found.get("cuda_graphs") or found.get("fused_pointwise")), flags
            assert recompute_choice(stated_recompute(row) or "none", EMPTY)[0] == "none", flags
    assert recompute_choice(form.format("full recompute"), EMPTY)[0] == "none"
    assert (
        precision(training_row(precision=f"{form.format('fp8')}, bf16"), EMPTY, source_of(training_row()))[0] == "bf16"
    )
