"""Gloo jobs that apply many plans in turn and compare gradients with a single process's, one job a world size.

Run by ``gradient_job.py`` as ``FOLDER ci|matrix``. Rank 0 of each job writes ``{case: findings}`` as JSON into the
folder. A mutation case runs with one exchange or division taken out of the job.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import module_faults
import module_worker
import torch
import torch.distributed as dist
from checkpoint_worker import run_checkpoint_case
from gradient_cases import CASES, MATRIX_CASES, Case
from jobs import free_port
from module_cases import CHECKPOINT_MATRIX, CHECKPOINTS, MATRIX, MODULE_CASES, CheckpointCase, ModuleCase
from module_worker import padded, read_of, run_module_case
from plans import make_plan
from torch.distributed import _functional_collectives as functional_collectives
from torch.distributed import device_mesh
from torch.distributed.fsdp._fully_shard import _fsdp_collectives
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ParallelStyle

from planner.mixed.one_mesh import MixedJob
from planner.mixed.uneven import UnevenJob
from planner.result import Plan, StrategyRecord
from planner.runtime import apply, collectives, gather_again
from planner.runtime.mesh import join, leave
from planner.runtime.schedule import AccumulationSchedule
from planner.runtime.small_llama import SmallLlama
from planner.runtime.uneven_stages import HopStage

WORLDS = (2, 4)
TORCH_PASSES = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "B", "BACKWARD_WEIGHT": "W"}
"""Our names of torch's passes."""


def build(case: Case, config: dict[str, Any], seed: int) -> torch.nn.Module:
    """The case's model with weights that depend on the seed alone."""
    torch.manual_seed(seed)
    if not case.hugging_face:
        return SmallLlama(config)
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {key: value for key, value in config.items() if key != "model_type"}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **options))


def batch_of(plan: Plan, with_padding: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets of one global batch, of which some are padding."""
    generator = torch.Generator().manual_seed(7)
    shape = (plan.workload.global_batch, plan.workload.seq_len + 1)
    tokens = torch.randint(0, plan.model.config["vocab_size"], shape, generator=generator)
    return tokens[:, :-1], padded(tokens[:, 1:]) if with_padding else tokens[:, 1:]


def strategy_of(plan: Plan | MixedJob | UnevenJob) -> StrategyRecord:
    """The plan's strategy, of stages that differ the first one's."""
    return plan.stages[0] if isinstance(plan, UnevenJob) else plan.strategy


def reference(
    model: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the whole batch at once, in this process alone."""
    output = model(inputs)
    loss = mean_cross_entropy(getattr(output, "logits", output), targets)
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def mean_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean over the targets that count, by torch."""
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """This rank's gradients, gathered whole, under the names of the unsplit model."""
    found = {}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        whole = grad.full_tensor() if isinstance(grad, DTensor) else grad
        own = name.replace("_checkpoint_wrapped_module.", "")
        found[getattr(model, "tied_copies", {}).get(own, own)] = whole
    return found


def worst_error(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Largest difference over all gradients, relative to the largest element of each; NaN where one is."""
    errors = [(found[name] - wanted[name]).abs().max() / wanted[name].abs().max() for name in found]
    return torch.stack(errors).max().item()


class NoStyle(ParallelStyle):
    """A parallel style that does nothing."""

    def _apply(self, module: torch.nn.Module, device_mesh: Any) -> torch.nn.Module:
        return module


def keep_own_chunk(tensor: torch.Tensor, reduce_op: str, scatter_dim: int, group: Any, tag: str = "") -> torch.Tensor:
    """A reduce-scatter that forgets to reduce."""
    mesh, axis = group
    return tensor.chunk(mesh.size(axis), dim=scatter_dim)[mesh.get_local_rank(axis)].contiguous()


def mutation(name: str | None) -> contextlib.AbstractContextManager[Any]:
    """The job with one thing taken out, while the context lasts."""
    if name == "no all_reduce of gradients":
        return mock.patch.object(dist, "all_reduce", lambda *args, **kwargs: None)
    if name == "no reduce_scatter over tp":
        return mock.patch.object(functional_collectives, "reduce_scatter_single", keep_own_chunk)
    if name == "norm gradients not summed over tp":
        return mock.patch("planner.runtime.tensor_parallel.SequenceParallel", NoStyle)
    if name == "gradients of shared heads not summed":
        return mock.patch.object(collectives, "collect", module_faults.unsummed)
    if name == "the first head for all":
        return mock.patch("planner.runtime.tensor_parallel.own_head", module_faults.first_head)
    if name == "no division by dp":
        undivided = (None, None, dist.ReduceOp.SUM, dist.ReduceOp.SUM)
        return mock.patch.object(_fsdp_collectives, "_get_gradient_divide_factors", lambda *args, **kwargs: undivided)
    if name == "no division by the micro-batches":
        return mock.patch.object(torch.Tensor, "__truediv__", lambda left, right: left)
    if name == "gradients of hops not scaled":
        join = HopStage._join
        return mock.patch.object(HopStage, "_join", lambda self, *args: join(self, *args[:-1], 1.0))
    return contextlib.nullcontext()


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often this rank gathers weights, reduces gradients, and lets go of a gathered input, while it lasts."""
    counts: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        for name in ("all_gather_single", "reduce_scatter_single", "all_reduce"):
            original = getattr(dist, name)

            def count(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
                counts[name] += 1
                return original(*args, **kwargs)

            stack.enter_context(mock.patch.object(dist, name, count))
        pack = gather_again._Kept.pack

        def count_dropped(kept: Any, tensor: torch.Tensor) -> Any:
            packed = pack(kept, tensor)
            counts["not kept"] += isinstance(packed, torch.Size)
            return packed

        stack.enter_context(mock.patch.object(gather_again._Kept, "pack", count_dropped))
        yield counts
    counts += Counter()  # drops the zeros


def order_of(schedule: Any) -> list[list[tuple[str, int, int]]]:
    """The work of every device of a pipeline, in the order in which torch runs it; none where it holds no list."""
    lists = getattr(getattr(schedule, "schedule", None), "pipeline_order", {})
    work = [[it for it in lists[device] if it and it.computation_type.name in TORCH_PASSES] for device in sorted(lists)]
    return [
        [(TORCH_PASSES[it.computation_type.name], it.stage_index, it.microbatch_index) for it in some] for some in work
    ]


def run_case(case: Case) -> dict[str, Any]:
    """Apply the case's plan, take a step, compare; the findings are the worst of all ranks."""
    plan = case.plan()
    config = plan.model.config
    whole = batch_of(plan, with_padding=not case.own_loss)
    alone, precision = build(case, config, seed=1), plan.workload.precision
    if precision == "fp32":
        loss, wanted = reference(alone, *whole)
    else:
        loss, wanted = module_worker.reference(alone, *whole, strategy_of(plan).micro_batch, precision)
    # Every rank starts from other weights where the job has to make them agree.
    model = build(case, config, seed=1 + (dist.get_rank() if case.own_seeds else 0))
    with mutation(case.mutation if case.mutation and "norm" in case.mutation else None):
        loss_fn = mean_cross_entropy if case.own_loss else None
        model, schedule = apply(plan, model, device_type="cpu", loss_fn=loss_fn)
    inputs, targets = (schedule.local(tensor) for tensor in whole)
    for _ in range(case.steps):
        model.zero_grad()
        with mutation(case.mutation), counted() as counts:
            own_loss = schedule.step(inputs, targets)
    assert isinstance(schedule, AccumulationSchedule) == (strategy_of(plan).pp == 1)
    found = gradients(model)
    names: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(names, (sorted(found), worst_error(found, wanted)))
    return {
        "loss": schedule.mean_loss(own_loss, torch.device("cpu")),
        "wanted_loss": loss,
        "error": module_worker.worst([error for _, error in names])[1],
        "covered": {name for held, _ in names for name in held} == set(wanted),
        "held": [len(held) for held, _ in names],
        "exchanges": counts,
        "order": order_of(schedule),
    }


@contextlib.contextmanager
def groups_reused() -> Iterator[None]:
    """Meshes that take a group of the same ranks from an earlier case, while the context lasts.

    Each group of gloo keeps threads that all wake at every message; hundreds of them take more than the cases do.
    """
    made: dict[tuple[int, ...], Any] = {}
    original = device_mesh.new_group

    def new_group(ranks: list[int], **options: Any) -> Any:
        key = tuple(ranks)
        if key not in made:
            made[key] = original(ranks=ranks, **options)
        return made[key]

    with mock.patch.object(device_mesh, "new_group", new_group):
        yield


def cases_of(world: int, which: str) -> list[Case | ModuleCase | CheckpointCase]:
    """What a job of ``world`` ranks runs."""
    plain = [case for case in [*CASES, *MODULE_CASES] if not taken_out(case)]
    faults = [case for case in [*CASES, *MODULE_CASES] if taken_out(case)]
    more = [*MATRIX_CASES, *MATRIX, *CHECKPOINT_MATRIX, *faults]
    return [case for case in ([*plain, *CHECKPOINTS] if which == "ci" else more) if case.world == world]


def taken_out(case: Case | ModuleCase) -> bool:
    """Whether the job runs with a part of it taken out, to see that the comparison notices."""
    return case.mutation is not None and not getattr(case, "refused", None)


def one_rank(rank: int, world: int, port: int, which: str, output: Path) -> None:
    """Run every case of this world size; the first one that raises ends the job, whose peers would wait in vain."""
    place = {"RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    join(make_plan(dp_replicate=world), "cpu", timeout_s=60)
    runners = {Case: run_case, ModuleCase: run_module_case, CheckpointCase: run_checkpoint_case}
    with groups_reused():
        findings = {case.name: runners[type(case)](case) for case in cases_of(world, which)}
    dist.barrier()
    if rank == 0:
        output.write_text(json.dumps(findings))
    dist.barrier()


def forked(*words: Any) -> int:
    """The process id of a rank that starts with all that this process has imported and read."""
    child = os.fork()
    if child:
        return child
    try:
        one_rank(*words)
    except BaseException:
        traceback.print_exc()
        leave(1)
    leave(0)


def run_ranks(world: int, which: str, output: Path) -> None:
    """Fork the ranks of one job and wait for them. Raises ``SystemExit`` once one fails, and leaves none running."""
    port = free_port()
    left = {forked(rank, world, port, which, output) for rank in range(world)}
    while left:
        ended, status = os.wait()
        left.discard(ended)
        if status:
            for rank in left:
                os.kill(rank, signal.SIGKILL)
            raise SystemExit(f"a rank of {world} ended with {os.waitstatus_to_exitcode(status)}")


def main(folder: Path, which: str) -> None:
    """Run the jobs of both sizes, forked from here so that torch and transformers are imported once."""
    torch.set_num_threads(1)
    for family in {case.family for world in WORLDS for case in cases_of(world, which) if hasattr(case, "family")}:
        read_of(family)
    gc.freeze()  # no rank looks for garbage in what all share
    for world in WORLDS:
        run_ranks(world, which, folder / f"findings-{which}-{world}.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
