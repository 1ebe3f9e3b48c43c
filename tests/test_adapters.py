"""Adapters beside frozen weights: what is trained, kept and exchanged."""

import pytest

from cost_models.calibration import calibrate
from cost_models.compute import layer_compute
from cost_models.memory import saved_bytes, state_bytes, trained_parameters
from cost_models.rows import Rows
from planner.published.predict import prepared
from planner.published.recipes import Cell, Recipe
from planner.published.rows import read_rows

HEADER = "id,source,date,model,arch_json,seq_len,accelerator,n_gpus,gpus_per_node,global_batch,micro_batch,tp,pp,cp,precision,other_flags,metric_kind,metric_value,notes"  # noqa: E501
ARCH = '"{""hidden"":8192,""layers"":80,""heads"":64,""kv_heads"":8,""ffn"":28672,""vocab"":32000}"'
ROW = f"mlpf-1,mlcommons/training_results_v5.0/A,2025-06,Llama2 70B,{ARCH},8192,NVIDIA Blackwell GPU (GB200),64,4,8,1,1,1,8,FP8,LoRA fine-tune,samples_per_s,30,"  # noqa: E501


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(f"{HEADER}\n{ROW}\n", encoding="utf-8")
    return prepared(read_rows(path)[0].job)


def test_adapters_alone_are_trained(job):
    """Rank 16 beside qkv and output: 16 (8192 + 10240 + 8192 + 8192) parameters; weights stay in one byte."""
    layer, rows = job.model.kinds[0], Rows.of(job.strategy)
    learnt = trained_parameters(layer, rows, job.workload)
    states = state_bytes(layer, rows, job.workload)

    assert learnt.dense[0] == 16 * (8192 + 10240 + 8192 + 8192)
    assert states["weights"][0] == layer.parameters
    assert states["gradients"][0] == 2 * learnt.dense[0]


def test_frozen_matrices_keep_no_input(job):
    """Feed-forward norm and activation leave 36,864 elements less, adapters' dropout 8,192 more and two masks of bytes.

    What attention gives is in bytes itself.
    """
    layer, rows, fits = job.model.kinds[0], Rows.of(job.strategy), calibrate(job.cluster, job.workload.stack)
    plain = job.workload.stack.model_copy(update={"quantised_inputs": False})
    whole = job.workload.model_copy(update={"tuning": "all", "stack": plain})
    tokens = 8192 / job.strategy.degrees.cp

    less = (
        saved_bytes(layer, 8192, rows, whole, fits)["none"] - saved_bytes(layer, 8192, rows, job.workload, fits)["none"]
    )

    assert less[0] == pytest.approx(2 * tokens * (8192 + 28672 - 8192 - 2 * 8192 / 2 + 8192 / 2))


def test_exchanged_heads_see_the_whole_sequence(job):
    """With all-to-all attention takes about an eighth of its time without cp; steps of a ring take longer."""
    times = {}
    for exchange in ("all_to_all", "ring"):
        stack = job.workload.stack.model_copy(update={"context_exchange": exchange})
        work = job.workload.model_copy(update={"stack": stack})
        found = layer_compute(job.model.kinds[0], Rows.of(job.strategy), job.cluster, work, calibrate(job.cluster))
        times[exchange] = sum(float(seconds[0]) for seconds in found.attention)

    assert job.workload.stack.context_exchange == "all_to_all"
    assert times["ring"] > times["all_to_all"]


def test_default_by_device_memory():
    by_size = {"0 GB": 4, "100 GB": 2, "160 GB": 1}
    table = Recipe("s", "r", {"tp": Cell(by_size, "somewhere"), "pp": Cell(3, "somewhere")})

    assert [table.by_memory("tp", size) for size in (80e9, 141e9, 192e9)] == [4, 2, 1]
    assert (table.by_memory("pp", 80e9), table.by_memory("cp", 80e9, 5)) == (3, 5)
