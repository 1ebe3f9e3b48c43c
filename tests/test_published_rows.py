"""Published rows become cases: what was measured, in seconds and GiB, and what is missing for a job."""

import pytest

from planner.published.rows import read_rows
from planner.published.settings import with_settings
from planner.published.training import training_case
from tests.published_rows import (
    LLAMA_8B,
    MIXTRAL,
    bigscience_row,
    csv_file,
    measured,
    power_row,
    step_s,
    sweep_row,
    training_row,
)
from topologies.errors import BadInput

# The file


def test_three_schemas(tmp_path):
    for row, source in ((training_row(), "mb"), (sweep_row(), "vt"), (power_row(), "pow")):
        (case,) = read_rows(csv_file(tmp_path, row))
        assert (case.id, case.source) == (row["id"], source)
        assert case.job is not None, case.missing


def test_rows_keep_their_order(tmp_path):
    rows = [training_row(id=f"mb-{k}") for k in (3, 1, 2)]

    assert [case.id for case in read_rows(csv_file(tmp_path, *rows))] == ["mb-3", "mb-1", "mb-2"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        ("a,b\n1,2\n", "no known schema"),
        (",".join(sweep_row()) + "\nvt-1,2\n", "row 2.*13 cells.* 2"),
        (",".join(power_row()) + '\n"pow-1', "not CSV"),
    ],
)
def test_files_of_another_kind(tmp_path, text, complaint):
    path = tmp_path / "rows.csv"
    path.write_text(text)

    with pytest.raises(BadInput, match=complaint):
        read_rows(path)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(BadInput, match="not a file"):
        read_rows(tmp_path / "none.csv")
    (tmp_path / "rows.csv").write_bytes(b"id\xff\xfe")
    with pytest.raises(BadInput, match="not UTF-8"):
        read_rows(tmp_path / "rows.csv")


def test_an_id_stands_once(tmp_path):
    with pytest.raises(BadInput, match=r"mb-001.*twice"):
        read_rows(csv_file(tmp_path, training_row(), training_row()))


@pytest.mark.parametrize(
    ("column", "value"),
    [("n_gpus", "8.5"), ("tp", "nan"), ("seq_len", "1e400")],
)
def test_broken_numbers_are_refused(column, value):
    with pytest.raises(BadInput, match=f"mb-001.*{column}"):
        training_case(training_row(**{column: value}))


@pytest.mark.parametrize(
    ("column", "value"), [("metric_value", "fast"), ("peak_mem_gib", "-1"), ("metric_value", "1e400")]
)
def test_broken_measurements_are_told_and_not_compared(column, value):
    case = training_case(training_row(**{column: value}))

    assert f"mb-001': {column} is a number" in case.missing and case.job is not None
    assert measured(case, "step_s" if column == "metric_value" else column) is None


@pytest.mark.parametrize("text", ["{", "[1]", "7"])
def test_broken_architecture_is_refused(text):
    with pytest.raises(BadInput, match="arch_json"):
        training_case(training_row(arch_json=text))


# Time: 128 sequences of 8192 tokens are 1,048,576 tokens; 8 devices


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("iter_time_s", 2.0),
        ("samples_per_s", 64.0),
        ("tokens_per_s_total", 524288.0),
        ("tokens_per_s_per_gpu", 65536.0),
        ("gpu_hours_per_T_tokens", 1e12 / 3600 / 65536),
        ("Step_time_ms", 2000.0),
        ("sequences/day", 64.0 * 86400),
        ("steps per hour", 1800.0),
        ("Tokens per minute per GPU", 65536.0 * 60),
    ],
)
def test_every_metric_means_two_seconds(kind, value):
    assert step_s(metric_kind=kind, metric_value=repr(value)) == pytest.approx(2.0)


def test_model_flop_of_llama_8b_by_hand():
    """Megatron-Bridge 25.09 on GB200: 31357 tokens/s are stated as 1614 TFLOP/s: 51.47 GFLOP a token."""
    by_rate = step_s(metric_kind="tflops_per_gpu", metric_value="1614")

    assert by_rate == pytest.approx(128 * 8192 / (31357 * 8), rel=1e-3)


def test_a_query_that_sees_all_keys_counts_double():
    """NeMo 24.12, Llama 2 7B: 16934 tokens/s are stated as 780 TFLOP/s, with whole attention."""
    arch = '{"hidden":4096,"layers":32,"heads":32,"kv_heads":32,"ffn":11008,"vocab":32000}'
    row = {"id": "nemo-1", "model": "Llama2 7B", "arch_json": arch, "seq_len": "4096", "metric_kind": "tflops_per_gpu"}

    assert step_s(**row, metric_value="780") == pytest.approx(128 * 4096 / (16934 * 8), rel=1e-3)


def test_hardware_flop_of_bigscience():
    """123.69 s are stated as 130.34 TFLOP/s: 96 B s l h^2 (1 + s/6h + V/16lh), recomputation counted."""
    row = bigscience_row(metric_kind="tflops_per_gpu", metric_value="130.34")

    assert measured(training_case(row), "step_s") == pytest.approx(123.69, rel=1e-3)


def test_the_first_estimator_of_bigscience():
    """160 devices, 200B: 430.21 s were printed as 97.07 TFLOP/s before the estimator was mended."""
    arch = '{"hidden":14400,"layers":80,"heads":96,"vocab":250000}'
    cells = {"n_gpus": "160", "pp": "10", "dp": "2", "micro_batch": "1", "arch_json": arch, "model": "GPT 200B"}
    row = bigscience_row(**cells, metric_kind="tflops_per_gpu", metric_value="97.07", notes="the old estimator")

    assert measured(training_case(row), "step_s") == pytest.approx(430.21, rel=1e-3)


def test_frozen_weights_have_two_passes():
    full = step_s(metric_kind="tflops_per_gpu", metric_value="500")
    lora = step_s(metric_kind="tflops_per_gpu", metric_value="500", other_flags="LoRA")

    assert lora == pytest.approx(full * 2 / 3)


def test_utilisation_is_of_the_precision_in_use():
    """H100: 989 TFLOP/s in bf16."""
    share = step_s(metric_kind="mfu", metric_value="0.5")

    assert step_s(metric_kind="mfu", metric_value="50") == share
    assert step_s(metric_kind="tflops_per_gpu", metric_value="494.5") == pytest.approx(share)


def test_times_that_the_source_calls_useless_are_left_out():
    case = training_case(training_row(peak_mem_gib="50", notes="use the memory, not the timing"))

    assert measured(case, "step_s") is None
    assert measured(case, "peak_mem_gib") is not None


# Memory and feasibility


@pytest.mark.parametrize(
    ("identity", "gib", "meter"),
    [("tt-1", 50.0, "reserved"), ("lit-1", 50e9 / 2**30, "allocated"), ("bs-1", 50.0, "device")],
)
def test_memory_units_and_meters(identity, gib, meter):
    case = training_case(training_row(id=identity, peak_mem_gib="50"))
    (one,) = [m for m in case.measured if m.quantity == "peak_mem_gib"]

    assert one.value == pytest.approx(gib)
    assert one.meter == meter


def test_a_row_that_ran_fits():
    assert measured(training_case(training_row()), "fits") == 1.0


@pytest.mark.parametrize(
    "cells",
    [
        {"metric_kind": "oom", "metric_value": "OOM", "peak_mem_gib": "62"},
        {"metric_kind": "OOM", "metric_value": "crashed", "peak_mem_gib": "62"},
        {"metric_value": "Out of memory", "peak_mem_gib": "62"},
        {"notes": "result: OOM (fragmentation)"},
    ],
)
def test_out_of_memory_has_no_step(cells):
    case = training_case(training_row(**cells))

    assert measured(case, "fits") == 0.0
    assert measured(case, "step_s") is None
    assert measured(case, "peak_mem_gib") is None
    assert case.job is not None


def test_computed_activations_are_no_measurement():
    row = training_row(id="kor-1", metric_kind="activation_mem_gib", metric_value="59.25")

    assert training_case(row).measured == ()


# What is said and what is not


def test_a_full_row_is_stated():
    case = training_case(training_row())

    assert case.stated
    assert set(case.assumed) == {"zero", "recompute"}


@pytest.mark.parametrize("name", ["seq_len", "global_batch", "tp", "pp", "n_gpus"])
def test_what_is_missing_is_named(name):
    case = training_case(training_row(**{name: ""}))

    assert not case.stated
    assert case.job is None
    assert case.missing == f"{name} not stated"


def test_derived_values_count_as_stated():
    case = training_case(training_row(global_batch="", micro_batch="", notes="gbs_derived=64; dp_derived=8"))

    assert case.stated
    assert case.job.workload.global_batch == 64


def test_kinds():
    moe = {"model": "Mixtral 8x7B", "arch_json": MIXTRAL}

    assert training_case(training_row()).kind == "dense"
    assert training_case(training_row(**moe)).kind == "moe"
    assert training_case(training_row(**moe, other_flags="LoRA packed 4096")).kind == "fine-tuning"
    assert training_case(training_row(other_flags="SFT")).kind == "fine-tuning"
    assert training_case(training_row(notes="arch from configs/7B_sft.py")).kind == "dense"


def test_nemo_tunes_on_short_examples_packed():
    """SQuAD's, which attend to themselves only, on pages too that do not say so: the recipes have no other data.

    Who tunes on what elsewhere is not known.
    """
    row = {"source": "NeMo 24.12, performance_summary (24.12)", "other_flags": "LoRA"}
    nemo, other = (training_case(training_row(id=name, **row)) for name in ("nemo-1", "lab-1"))
    bridge = training_case(training_row(id="mbs-1", source="Megatron-Bridge/skills/SKILL.md", other_flags="SFT"))

    assert nemo.job.workload.packed_len == bridge.job.workload.packed_len == 206
    assert "packed_len" in nemo.assumed
    assert other.job.workload.packed_len is None
    assert training_case(training_row(id="nemo-1", source=row["source"])).job.workload.packed_len is None


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("DeepSeek-R1-Distill-Llama-70B", "dense"), ("DeepSeek-Math 7B", "dense"), ("Distill-Foo 30B A3B", "moe"),
        ("DeepSeek-R1-Distill-Foo-32B", "dense"), ("DeepSeek-V3", "moe"), ("Llama3 8B (no MoE)", "dense"),
    ],
)  # fmt: skip
def test_the_kind_is_that_of_the_model_that_is_priced(title, kind):
    case = training_case(training_row(model=title, arch_json=""))

    assert case.job is not None, case.missing
    assert case.kind == kind and (kind == "moe") == bool(case.job.model.experts)


def test_lora_is_a_workload():
    assert training_case(training_row(other_flags="QLoRA")).job.workload.tuning == "lora"
    assert training_case(training_row(other_flags="SFT")).job.workload.tuning == "all"


@pytest.mark.parametrize(
    ("words", "precision", "scaling"),
    [
        ("MXFP8", "fp8", "mx"),
        ("FP8-CS", "fp8", "tensor"),
        ("FP8", "fp8", None),
        ("NVFP4", "fp4", None),
        ("amp_bf16", "bf16", None),
        ("float8 linear + bf16", "fp8", None),
        ("fp16 mixed", "fp16", None),
    ],
)
def test_precisions(words, precision, scaling):
    job = training_case(training_row(precision=words, accelerator="B200")).job

    assert job.workload.precision == precision
    assert job.switches.get("fp8_scaling") == scaling


@pytest.mark.parametrize(
    ("words", "gathered", "blocks", "rows"),
    [
        ("MXFP8", 1, True, False), ("FP8", 1, False, False), ("BF16", None, False, False),
        ("float8 rowwise", 1, False, True), ("FP8 row-wise", 1, False, True),
    ],
)  # fmt: skip
def test_fp8_weights_cross_in_a_byte(words, gathered, blocks, rows):
    stack = with_settings(training_case(training_row(precision=words)).job).workload.stack

    assert (stack.gather_bytes, stack.block_scaled, stack.row_scaled) == (gathered, blocks, rows)


@pytest.mark.parametrize(
    ("cells", "stack", "release"),
    [
        ({"notes": "NeMo container 26.02.01"}, "megatron-core", "26.02.01"),
        ({"source": 'docs "26.04 Pre-Training Performance"'}, "megatron-core", "26.04"),
        ({"id": "dgxc-1", "source": "README.md@v25.05.01", "other_flags": "MaxText (JAX)"}, "maxtext", "v25.05.01"),
        ({"id": "dgxc-1", "source": "README.md@v24.11.1"}, "megatron-core", "v24.11.1"),
        ({"id": "nemo-1", "source": "/archive/25.04-performance-summary.html"}, "megatron-core", "25.04"),
        ({"id": "mlpf-1", "source": "training_results_v5.1/AMD", "other_flags": "ROCm 7.0"}, "amd-mlperf", "v5.1"),
        ({"id": "bs-1", "source": "tr8-104B.md", "notes": "chronicles-prequel"}, "megatron-deepspeed", "tr8-104B"),
        ({"id": "mlm-1", "source": "images/tables.tex", "date": "2020-09"}, "megatron-lm-2021", "2020"),
        ({"id": "mlpf-1", "accelerator": "TPU v5p", "source": "training_results_v4.0/Google"}, "maxtext", "v4.0"),
        ({"id": "tt-1", "date": "2024-12"}, "torchtitan", "2024-12"),
    ],
)  # fmt: skip
def test_stack_and_release(cells, stack, release):
    job = training_case(training_row(**{"notes": ""} | cells)).job

    assert (job.stack, job.release) == (stack, release)


def test_layouts_of_one_problem_share_a_key():
    key = training_case(training_row(tp="1", other_flags="GA=16; DeepEP")).layout

    assert training_case(training_row(tp="2", micro_batch="4", other_flags="GA=8; DeepEP")).layout == key
    assert training_case(training_row(recompute="full", other_flags="DeepEP; schedule=zbv")).layout == key
    for other in (
        {"global_batch": "256"},
        {"precision": "FP8"},
        {"model": "Llama3.1 8B"},
        {"other_flags": "tokendrop"},
    ):
        assert training_case(training_row(**{"other_flags": "DeepEP"} | other)).layout != key


# Sweep and power


def test_a_point_of_the_sweep(tmp_path):
    (case,) = read_rows(csv_file(tmp_path, sweep_row()))
    job = case.job

    assert measured(case, "step_s") == pytest.approx(3.5665)
    assert (job.model.layers, job.model.hidden, job.model.vocab) == (30, 3072, 50257)
    assert (job.strategy.degrees.dp, job.strategy.zero, job.workload.precision) == (64, 0, "fp16")
    assert {run.choice.recompute for stage in job.strategy.stages for run in stage.runs} == {"full"}
    assert job.cluster.levels[1].bandwidth_bytes_per_s == pytest.approx(12.5e9)


def test_any_mixture_of_cells_is_a_case_or_a_refusal():
    """Cells swapped between rows and emptied: never another error."""
    import random

    rng, rows = random.Random(7), [training_row(), bigscience_row(), training_row(id="mlpf-2", arch_json=LLAMA_8B)]
    odd = ["", "0", "3", "7", "1e9", "x", "{}", "none", "999999999"]
    for _ in range(300):
        row = dict(rng.choice(rows))
        for column in rng.sample(sorted(row), 3):
            row[column] = rng.choice([*odd, rng.choice(rows)[column]]) if column != "id" else row["id"]
        try:
            case = training_case(row)
        except BadInput:
            continue
        assert case.job is not None or case.missing
