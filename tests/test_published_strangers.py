"""Rows as strangers write them: read where they can be, else a reason of their own."""

import pytest

from planner.published.predict import predict, prepared
from planner.published.rows import read_rows
from planner.published.training import training_case
from tests.published_rows import csv_file, measured, step_s, training_row


def test_unknown_models_and_machines_are_reasons_not_crashes():
    reasons = [
        training_case(training_row(model="Nobody", arch_json="")).missing,
        training_case(training_row(accelerator="abacus")).missing,
        training_case(training_row(precision="roman")).missing,
        training_case(training_row(precision="TF32")).missing,
    ]

    for reason, word in zip(reasons, ("Nobody", "abacus", "roman", "TF32"), strict=True):
        assert word in reason


@pytest.mark.parametrize(
    ("cells", "word"),
    [
        ({"recompute": "by hand"}, "by hand"), ({"zero_or_fsdp_stage": "magic"}, "magic"),
        ({"other_flags": "schedule=bubblegum", "pp": "2"}, "bubblegum"),
        ({"other_flags": "CPU offload"}, "not modelled"),
        ({"other_flags": "torch.compile; torch.compile=False"}, "both"),
        ({"gpus_per_node": "mixed"}, "mixed"), ({"gpus_per_node": "4-8"}, "4-8"), ({"gpus_per_node": "eight"}, "eight"),
    ],
)  # fmt: skip
def test_words_that_are_not_understood_are_told_and_taken_as_not_stated(cells, word):
    """The job is that of a row that does not say: never the opposite, never silence."""
    case, silent = training_case(training_row(**cells)), training_case(training_row(pp=cells.get("pp", "1")))

    assert word in case.missing and silent.missing == ""
    assert (case.job.strategy, case.job.workload) == (silent.job.strategy, silent.job.workload)


@pytest.mark.parametrize(
    ("words", "stack"), [("", "megatron-core"), ("HF Trainer FSDP", "torchtitan"), ("MaxText on TPU", "maxtext")]
)
def test_a_source_in_no_table_is_read_by_the_stack_that_it_names(words, stack):
    """What stands in for what is not known is told, and makes the interval wider."""
    case = training_case(training_row(id="xyz-1", source=words, model="mystery 13B", arch_json="", accelerator="GH200"))

    assert (case.job.stack, case.source) == (stack, "xyz")
    assert {"source", "model", "accelerator"} <= set(case.assumed)
    assert not {"source", "model", "accelerator"} & set(training_case(training_row()).assumed)


@pytest.mark.parametrize(
    ("cells", "batch", "devices"),
    [
        ({"global_batch": "1,024"}, 1024, 8), ({"global_batch": "1K", "vpp": "None", "dp": "-1"}, 1024, 8),
        ({"n_gpus": "", "dp": "16", "tp": "2"}, 128, 32), ({"tp": "", "other_flags": "TP4 PP2", "pp": "n/a"}, 128, 8),
    ],
)  # fmt: skip
def test_numbers_as_strangers_write_them(tmp_path, cells, batch, devices):
    (case,) = read_rows(csv_file(tmp_path, training_row(**cells)))

    assert case.stated
    assert (case.job.workload.global_batch, case.job.strategy.degrees.world_size) == (batch, devices)


@pytest.mark.parametrize(
    ("column", "text", "value"),
    [
        ("n_gpus", "8 GPUs", 8), ("n_gpus", "2 x 8", 16), ("n_gpus", "2 nodes", 16), ("seq_len", "4k", 4096),
        ("seq_len", "4096 tokens", 4096), ("seq_len", "4096-token", 4096),
        ("global_batch", "1M tokens", 128), ("global_batch", "64 (GA=8)", 64),
        ("tp", "TP=2", 2), ("other_flags", "--tensor-parallel-size 2", 2),
    ],
)  # fmt: skip
def test_a_number_may_have_words_around_it(tmp_path, column, text, value):
    name = "tp" if column == "other_flags" else column
    (case,) = read_rows(csv_file(tmp_path, training_row(**{"gpus_per_node": "8", name: "", column: text})))
    job = case.job
    found = {
        "n_gpus": job.strategy.degrees.world_size, "seq_len": job.workload.seq_len, "tp": job.strategy.degrees.tp,
        "global_batch": job.workload.global_batch,
    }  # fmt: skip

    assert found[name] == value


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("Step time (ms)", "2000"), ("s/iter", "2.0"), ("iter_time_s", "2000 ms"), ("sec/it", "2.0 ± 0.1"),
        ("it/s", "0.5"),
        ("Tokens/sec/GPU", "65,536"), ("tok/s/gpu", "65.536k"), ("TGS", "65536"), ("samples/s/GPU", "8"),
        ("TPS/GPU", "65536"), ("WPS per GPU", "65536"), ("tokens/s/GCD", "65536"), ("tokens/s/NeuronCore", "65536"),
        ("train_tokens_per_second", "524288"), ("train_samples_per_second", "64"), ("sentences/sec", "64"),
        ("train_step_timing in s", "2.0"), ("tokens/s per node", "524288"),
        ("global tokens/sec", "524288"), ("minutes per step", "0.0333333333"),
    ],
)  # fmt: skip
def test_metrics_as_strangers_name_them(kind, value):
    """128 sequences of 8192 tokens on 8 devices in 2 s."""
    assert step_s(metric_kind=kind, metric_value=value) == pytest.approx(2.0)


@pytest.mark.parametrize("kind", ["Model FLOPs Utilization", "model flops utilization (MFU)", "MFU %"])
def test_utilisation_in_full_is_mfu(kind):
    assert step_s(metric_kind=kind, metric_value="40") == step_s(metric_kind="mfu", metric_value="40")


@pytest.mark.parametrize(
    ("text", "gib", "meter"),
    [
        ("76/80", 76, "device"), ("76GiB / 80 GiB", 76, "device"), ("76 GiB nvidia-smi", 76, "device"),
        ("76 GiB/GPU", 76, "allocated"), ("76 GiB reserved", 76, "reserved"), ("76", 76, "allocated"),
    ],
)  # fmt: skip
def test_memory_out_of_the_device_s_is_what_its_driver_shows(text, gib, meter):
    (found,) = (one for one in training_case(training_row(id="xyz-1", peak_mem_gib=text)).measured if one.meter)

    assert (found.value, found.meter) == (pytest.approx(gib), meter)


@pytest.mark.parametrize(("text", "gib"), [("50", 50), ("50 GiB", 50), ("51,200 MiB", 50), ("50 GiB (63%)", 50)])
def test_memory_in_the_unit_it_states(text, gib):
    assert measured(training_case(training_row(id="tt-1", peak_mem_gib=text)), "peak_mem_gib") == pytest.approx(gib)


@pytest.mark.parametrize(
    ("cells", "step", "memory"),
    [
        ({"metric_value": ">30%", "metric_kind": "mfu"}, None, None), ({"metric_value": "1.9-2.1 s"}, 2.0, None),
        ({"metric_value": "1,900-2,100", "metric_kind": "iter_time_ms"}, 2.0, None),
        ({"peak_mem_gib": "<80"}, 2.0, None), ({"id": "tt-1", "peak_mem_gib": "65-70"}, 2.0, 67.5),
        ({"id": "tt-1", "peak_mem_gib": "70 GiB reserved"}, 2.0, 70), ({"metric_value": "CUDA OOM"}, None, None),
    ],
)  # fmt: skip
def test_a_measured_cell_never_costs_the_prediction(cells, step, memory):
    """What cannot be read is told and not compared; a range is its middle."""
    case = training_case(training_row(**cells))

    assert case.job is not None
    assert (measured(case, "step_s"), measured(case, "peak_mem_gib")) == (pytest.approx(step), pytest.approx(memory))
    assert bool(case.missing) is any(text.startswith((">", "<")) for text in cells.values())


@pytest.mark.parametrize(("value", "fits"), [("CUDA OOM", 0), ("2.0", 1), ("2.0 (OOM at 4)", 1), ("crashed", None)])
def test_whether_a_row_ran(value, fits):
    assert measured(training_case(training_row(metric_value=value)), "fits") == fits


def test_a_share_of_the_memory_is_no_gib(tmp_path):
    (case,) = read_rows(csv_file(tmp_path, training_row(peak_mem_gib="78 %")))

    assert "peak_mem_gib" in case.missing


@pytest.mark.parametrize("separator", ["\t", ";"])
def test_files_with_other_separators(tmp_path, separator):
    path = csv_file(tmp_path, training_row(arch_json="", notes=""))
    path.write_text(path.read_text().replace(",", separator).replace("n_gpus", "N GPUs"))

    assert read_rows(path)[0].job is not None


def test_petaflops_are_those_of_all_devices():
    assert step_s(metric_kind="PFLOPS", metric_value="4") == step_s(metric_kind="tflops_per_gpu", metric_value="500")
    assert step_s(metric_kind="MFU (%)", metric_value="45") == step_s(metric_kind="mfu", metric_value="45")


@pytest.mark.parametrize(
    ("cells", "passes"),
    [
        ({"date": "2022-01"}, 4), ({"date": "2023-01"}, 3), ({"date": "2022"}, 3), ({}, 3),
        ({"date": "June 2021"}, 4), ({"date": "Aug. 3, 2022"}, 3), ({"date": "2022/4"}, 4), ({"date": "08/2022"}, 3),
        ({"date": "2021-2022"}, 4), ({"date": "05.2022"}, 4),
        ({"date": "2023-01", "source": "Megatron-DeepSpeed"}, 4),
        ({"date": "2022-01", "metric_kind": "mfu"}, 3), ({"metric_kind": "hfu"}, 4),
    ],
)  # fmt: skip
def test_whether_recomputation_is_counted_by_a_source_in_no_table(cells, passes):
    """Layers run three or four times; of ten a little is the head, which always runs three times."""
    usual = {"id": "xyz-1", "recompute": "full", "metric_kind": "tflops_per_gpu", "metric_value": "40"}
    row = training_row(**(usual | cells))
    model = step_s(**(usual | {"metric_kind": "mfu", "date": "2023-01"}))

    ratio = measured(training_case(row), "step_s") / model
    ratio *= 1 if "metric_kind" in cells else 40 / (0.4 * 989.4)
    assert ratio == pytest.approx(1 if passes == 3 else 1.31, rel=0.01)


@pytest.mark.parametrize("text", ["45.3", "45.3 %", "0.453", "~45.3"])
def test_shares_of_the_peak_as_strangers_write_them(text):
    assert step_s(metric_kind="mfu", metric_value=text) == pytest.approx(step_s(metric_kind="mfu", metric_value="45.3"))


def test_a_broken_row_is_one_row(tmp_path):
    """Its reason is its own; the rows beside it are read. A metric that gives no time costs only the measurement."""
    rows = [training_row(), training_row(id="mb-002", tp="two"), training_row(id="mb-003", metric_kind="likes")]
    good, bad, odd = read_rows(csv_file(tmp_path, *rows))

    assert good.job is not None and bad.job is None and "tp is a number" in bad.missing
    assert odd.job is not None and "likes" in odd.missing and measured(odd, "step_s") is None


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"tp": "12\n3"}, "tp is a number"),
        *(({"model": title, "arch_json": arch}, "whole number from")
          for title in ("Foo 7B", "Foo 8x7B", "Nemotron-H 8B")
          for arch in ('{"layers": 0}', '{"layers": -3}', '{"hidden": "abc"}', '{"heads": [1]}', '{"layers": 1.5}')),
        ({"arch_json": '{"mtp": 100000000000}'}, "at most 16"),
    ],
)  # fmt: skip
def test_cells_that_are_no_sizes_are_told(tmp_path, cells, words):
    good, bad = read_rows(csv_file(tmp_path, training_row(), training_row(id="mb-002", **cells)))

    assert good.job is not None and words in bad.missing


@pytest.mark.parametrize(
    ("words", "split"), [("none", False), ("SP off", False), ("no", False), ("yes (SP)", True), ("", None)]
)
def test_sequence_parallelism_that_is_off(words, split):
    assert training_case(training_row(tp="2", sequence_parallel=words)).job.switches.get("sequence_parallel") == split


def test_a_model_without_experts_may_say_so():
    case = training_case(training_row(model="Foo 7B", arch_json='{"experts": 0, "topk": 0}'))

    assert case.kind == "dense" and case.job.model.experts == 0


@pytest.mark.parametrize(("precision", "accelerator"), [("FP8", "A100"), ("NVFP4", "H100")])
def test_products_that_a_device_has_no_units_for_are_refused(precision, accelerator):
    assert "has no" in training_case(training_row(precision=precision, accelerator=accelerator)).missing


@pytest.mark.parametrize(
    ("name", "device", "stands_in"),
    [
        ("NVIDIA H100 PCIe", "h100-pcie", False), ("H100-NVL 94GB", "h200-nvl", True), ("GH200", "h100-sxm", True),
        ("A100-40GB PCIe", "a100-80-pcie", True), ("GB200 NVL72", "gb200", False), ("TPU v5 lite", "tpu-v5e", False),
        ("p5.48xlarge", "h100-sxm", False), ("AWS p4d (A100)", "a100-40-sxm", False), ("A40", "a6000", True),
        ("NVIDIA A10G 24GB", "a10g", False), ("RTX 3090 24GB", "a10g", True), ("NVIDIA L4", "l4", False),
        ("A30", "a30", False), ("AMD Instinct MI210", "mi250x-gcd", True), ("NVIDIA H20 96GB", "h20", False),
        ("P100 16GB", "p100-sxm2", False), ("Ascend 910B2", "ascend-910b", False), ("Ascend 910C", "ascend-910b", True),
        ("B100", "b100-sxm", False), ("MI308X", "mi308x", False), ("MI300A", "mi300x", True),
        ("TPU v3", "tpu-v3", False), ("Ironwood (TPU7x)", "ironwood", False), ("MI100", "mi250x-gcd", True),
        ("H20 141GB", "h20", True), ("Tesla T4", "t4", False), ("H800", "h800-sxm", False), ("L20", "l20", False),
        ("H800 PCIe", "h100-pcie", True), ("GeForce RTX 5090", "rtx-5090", False), ("RTX A5000", "a6000", True),
        ("H20-3e", "h20", True), ("PCIe H800 80GB", "h100-pcie", True), ("PCIe H100", "h100-pcie", False),
        ("PCIe A100 40GB", "a100-80-pcie", True), ("g6.xlarge", "l4", False), ("g5.xlarge", "a10g", False),
        ("g6e.12xlarge", "l40s", False), ("Tesla V100-SXM2-16GB", "v100-sxm2-32gb", True),
        ("V100 32GB, 16 GPUs", "v100-sxm2-32gb", False), ("16 GPUs, V100 32GB", "v100-sxm2-32gb", False),
    ],
)  # fmt: skip
def test_accelerators_as_strangers_write_them(name, device, stands_in):
    case = training_case(training_row(accelerator=name))

    assert case.job.cluster.accelerator.name == device
    assert ("accelerator" in case.assumed) == stands_in


@pytest.mark.parametrize(
    ("cells", "micro_batch"),
    [({"id": "mb-001"}, 1), ({"id": "xyz-1"}, 2), ({"id": "xyz-1", "micro_batch": "4"}, 4)],
)
def test_a_stranger_who_does_not_state_its_micro_batch_has_tuned_it(cells, micro_batch):
    """Weights that are gathered anew for every micro-batch make one sequence at a time the slower choice."""
    row = training_row(
        **{"micro_batch": "", "zero_or_fsdp_stage": "FSDP", "recompute": "full", "global_batch": "64"} | cells
    )

    assert prepared(training_case(row).job).strategy.schedule.micro_batch == micro_batch


@pytest.mark.parametrize(("cells", "virtual"), [({}, 8), ({"vpp": "2"}, 2), ({"source": "DeepSpeed"}, 1)])
def test_a_stranger_whose_megatron_states_no_virtual_stages_has_tuned_them(cells, virtual):
    """32 layers on 4 stages and 4 micro-batches: a plain step would mostly wait. DeepSpeed interleaves nothing."""
    few = {"n_gpus": "32", "tp": "8", "pp": "4", "global_batch": "4", "micro_batch": "1", "zero_or_fsdp_stage": ""}
    case = training_case(training_row(**{"id": "xyz-1", "vpp": ""} | few | cells))

    assert prepared(case.job).strategy.schedule.virtual_stages == virtual


@pytest.mark.parametrize(("text", "batch"), [("1M tokens", 120), ("128", None)])
def test_a_batch_in_tokens_is_told_in_a_digit_or_two(text, batch):
    """1M tokens are 128 sequences, of which 24 devices take 120; 128 sequences on 24 devices are a contradiction."""
    case = training_case(training_row(n_gpus="24", global_batch=text, micro_batch="1"))

    assert (case.job.workload.global_batch if case.job else None) == batch


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({}, None), ({"id": "xyz-1", "n_gpus": "16", "global_batch": "8", "cp": ""}, "cp = 2 assumed"),
        ({"n_gpus": "24", "global_batch": "1M tokens"}, "global_batch = 120 assumed"),
        ({"tp": "", "pp": "", "zero_or_fsdp_stage": "FSDP", "id": "xyz-1"}, "tp = 1, pp = 1 assumed"),
    ],
)  # fmt: skip
def test_sizes_that_were_assumed_stand_beside_the_prediction(cells, words):
    (line,) = (one for one in predict([training_case(training_row(**cells))]) if one.quantity == "step_s")

    assert line.predicted and (words in line.reason if words else line.reason == "")


def test_a_recompute_that_nobody_stated_is_the_least_that_fits():
    """Sixteen sequences of 8192 tokens keep more than 80 GB under torchtitan's selective recompute."""
    cells = {"id": "xyz-1", "source": "torchtitan", "zero_or_fsdp_stage": "FSDP", "micro_batch": "16"}
    jobs = [prepared(training_case(training_row(recompute=text, **cells)).job) for text in ("", "selective")]

    assert [job.strategy.stages[0].runs[0].choice.recompute for job in jobs] == ["full", "selective"]


@pytest.mark.parametrize(
    ("name", "gib"),
    [("H100 NVL 94GB", 94), ("GH200 96GB HBM3", 96), ("GH200 480GB", 80), ("GH200", 80), ("H100 94GB", 80),
     ("RTX A5000", 24), ("H20-3e", 141), ("H100 NVL", 94), ("A40", 48)],
)  # fmt: skip
def test_a_machine_that_stands_in_has_the_memory_of_the_name(name, gib):
    """Or of the device that has it; 480 GB are the processor's beside it; a device of our own keeps its own."""
    figures = training_case(training_row(accelerator=name)).job.cluster.accelerator.figures

    assert figures.memory_capacity.value == pytest.approx(gib * 2**30)
    assert figures.memory_usable is None or figures.memory_usable.value < figures.memory_capacity.value


@pytest.mark.parametrize(("identity", "least"), [("xyz-1", 6.0), ("mb-001", 0.0)])
def test_memory_of_a_source_in_no_table_may_be_by_any_meter(identity, least):
    cells = {"id": identity, "peak_mem_gib": "40", "model": "Foo 1B", "zero_or_fsdp_stage": "FSDP"}
    sizes = '{"hidden":2048,"layers":16,"heads":32,"kv_heads":8,"ffn":8192,"vocab":128256}'
    lines = predict([training_case(training_row(**cells, arch_json=sizes))])
    (line,) = (one for one in lines if one.quantity == "peak_mem_gib")

    assert line.predicted - line.low >= least and line.high - line.predicted >= least
    assert least or line.predicted - line.low < 6.0
