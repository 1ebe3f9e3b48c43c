"""What a plan assumes when the user does not say: sequence, batch, precision."""

from __future__ import annotations

from pydantic import ValidationError

from cost_models.model_graph import ModelGraph
from cost_models.stack import runtime_stack
from cost_models.workload import Training
from planner.errors import BadInput
from planner.options import complaints
from topologies.cluster import Cluster

USUAL_SEQ_LEN = 8192
USUAL_STEP_TOKENS = 4 * 2**20
TOKENS_PER_DEVICE = 8 * 2**10
MOST_SEQUENCES = 2**17
"""Pre-training runs take 4 to 60 million tokens a step; Llama 3 took 16 Mi on 16,384 devices, DeepSeek-V3 63 M on
2,048 (arXiv:2407.21783, arXiv:2412.19437)."""


def default_workload(
    model: ModelGraph,
    cluster: Cluster,
    *,
    seq_len: int | None,
    global_batch: int | None,
    precision: str | None,
    optimizer: str,
) -> tuple[Training, list[str]]:
    """The workload, and a note for every value that was not given.

    Sequence: that of the example inputs, else 8,192 tokens or what the model was built for. Batch: a power of two of
    sequences that makes 4 Mi tokens a step, or 8 Ki a device where that is more. Precision: bf16 where the device has
    it. The stack is the project's own runtime where the cluster was measured with it, else Megatron-Core.
    """
    notes = []
    if seq_len is None:
        seq_len, why = _usual_sequence(model)
        notes.append(f"seq_len {seq_len} assumed ({why})")
    if global_batch is None:
        seq_len = read_workload(model, seq_len=seq_len, global_batch=1).seq_len
        tokens = max(USUAL_STEP_TOKENS, TOKENS_PER_DEVICE * cluster.devices)
        usual = _power_of_two(tokens / max(1, seq_len)) if _device_is_big(cluster) else 4 * cluster.devices
        global_batch = min(usual, MOST_SEQUENCES)
        notes.append(f"global_batch {global_batch} assumed ({global_batch * seq_len:,} tokens a step)")
    if precision is None:
        precision = "bf16" if cluster.supports("bf16") and cluster.accelerator.family != "cpu" else (
            "fp16" if cluster.supports("fp16") else "fp32")  # fmt: skip
        notes.append(
            f"precision {precision} assumed (what {cluster.accelerator.name} is fastest in without scaling factors)"
        )
    workload = read_workload(
        model, seq_len=seq_len, global_batch=global_batch, precision=precision, optimizer=optimizer,
        **({"stack": runtime_stack(cluster.accelerator.family)} if cluster.calibration else {}),
    )  # fmt: skip
    return workload, [*notes, *_of_the_device(cluster, workload)]


def _usual_sequence(model: ModelGraph) -> tuple[int, str]:
    if model.example_seq_len is not None:
        return model.example_seq_len, "that of the example inputs"
    usual = min(USUAL_SEQ_LEN, model.max_positions or USUAL_SEQ_LEN)
    return usual, f"the model's {model.max_positions} positions, at most {USUAL_SEQ_LEN}"


def _of_the_device(cluster: Cluster, workload: Training) -> list[str]:
    """What to know of the accelerator's figures before trusting the plan."""
    part, notes = cluster.accelerator, []
    if not cluster.supports(workload.precision):
        notes.append(
            f"{part.name} has no peak for {workload.precision}: products are priced in the next wider type it has"
        )
    if cluster.host.scale_up_link.startswith("PCIe") and cluster.levels[0].fanout > 1 and not cluster.calibration:
        notes.append(
            "collectives inside a host are priced as between devices that copy to each other over PCIe; where they "
            "cannot (nvidia-smi topo -p2p r), steps are longer"
        )
    if part.announced:
        notes.append(f"{part.name} is announced, not measured: its figures are its vendor's promises")
    return notes


def _power_of_two(target: float) -> int:
    power = 1
    while power * 1.5 < target:
        power *= 2
    return power


def _device_is_big(cluster: Cluster) -> bool:
    """Whether a pre-training batch makes sense: CPU ranks are for trying a job out."""
    return cluster.accelerator.family != "cpu"


def read_workload(model: ModelGraph, **fields: object) -> Training:
    """A checked workload. Raises ``BadInput`` naming each field that is wrong, or a sequence the model cannot take."""
    try:
        workload = Training(**fields)
    except ValidationError as error:
        raise BadInput(complaints(error)) from error
    if workload.global_batch > MOST_SEQUENCES:
        raise BadInput(
            f"global_batch={workload.global_batch} sequences a step is absurd; the limit is {MOST_SEQUENCES}"
        )
    if model.max_positions and workload.seq_len > model.max_positions:
        way_out = "raise max_position_embeddings in its config.json"
        way_out = "give example_inputs that long" if model.modules else way_out
        raise BadInput(
            f"seq_len={workload.seq_len} is longer than the {model.max_positions} positions of {model.name!r}; "
            f"take at most {model.max_positions}, or {way_out}"
        )
    return workload
