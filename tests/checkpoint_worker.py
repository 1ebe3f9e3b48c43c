"""Checkpoints for ``gradient_worker.py``: saved under one plan, loaded under another, damaged in between."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from module_cases import CheckpointCase, ModuleCase
from module_worker import batch_of, build, plan_for, read_once
from torch.distributed.tensor import DTensor

from planner.errors import BadInput
from planner.runtime import apply, checkpoint


def started(case: CheckpointCase, strategy: dict[str, Any], seed: int) -> tuple[Any, ...]:
    """Plan, model, schedule and optimiser of one side of the case."""
    plan = plan_for(ModuleCase(case.name, case.world, case.family, strategy))
    with read_once(case.family):
        model, schedule = apply(
            plan, build(case.family, seed), device_type="cpu", example_inputs=batch_of(case.family, 1)[0]
        )
    return plan, model, schedule, torch.optim.AdamW(model.parameters(), lr=0.01, foreach=False)


def steps(case: CheckpointCase, plan: Any, schedule: Any, optimizer: Any, count: int) -> float:
    """Take some steps on the same batch; the last one's loss."""
    inputs, targets = batch_of(case.family, plan.workload.global_batch)
    for _ in range(count):
        optimizer.zero_grad()
        loss = schedule.step(schedule.local(inputs), schedule.local(targets))
        optimizer.step()
    return schedule.mean_loss(loss, torch.device("cpu"))


def everything(model: Any, optimizer: Any) -> dict[str, torch.Tensor]:
    """Weights and optimiser states of all ranks, whole, in the module's order."""
    own: dict[str, torch.Tensor] = {}
    for states in checkpoint._states(model, optimizer).values():
        for key, value in states.items():
            if isinstance(value, torch.Tensor):
                own[key] = (value.full_tensor() if isinstance(value, DTensor) else value).clone()
    all_ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(all_ranks, own)
    return {key: value for one in all_ranks for key, value in one.items()}


def refused(folder: str, plan: Any, model: Any, optimizer: Any) -> str:
    """What loading says."""
    try:
        checkpoint.load(folder, plan, model, optimizer)
    except BadInput as error:
        return str(error)
    return "taken"


def run_checkpoint_case(case: CheckpointCase) -> dict[str, Any]:
    """Save under one plan after two steps, load under another from other weights, and damage what was saved."""
    named = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(named, src=0)
    folder = f"{named[0]}/step-2"
    plan, model, schedule, optimizer = started(case, case.saved, 1)
    steps(case, plan, schedule, optimizer, 2)
    checkpoint.save(folder, plan, model, optimizer, step=2)
    wanted = everything(model, optimizer)
    wanted_loss = steps(case, plan, schedule, optimizer, 1)
    plan, model, schedule, optimizer = started(case, case.loaded, 2)
    at = checkpoint.load(folder, plan, model, optimizer)
    found = everything(model, optimizer)
    differ = [key for key in wanted if key not in found or not torch.equal(wanted[key], found[key])]
    loss = steps(case, plan, schedule, optimizer, 1)
    again = refused_save(folder, plan, model, optimizer)
    said = damaged(folder, plan, model, optimizer)
    return {"step": at, "differ": differ, "states": len(wanted), "loss": loss, "wanted_loss": wanted_loss,
            "again": again, "said": said}  # fmt: skip


def refused_save(folder: str, plan: Any, model: Any, optimizer: Any) -> str:
    """What saving to the same folder once more says."""
    try:
        checkpoint.save(folder, plan, model, optimizer, step=3)
    except BadInput as error:
        return str(error)
    return "overwritten"


def damaged(folder: str, plan: Any, model: Any, optimizer: Any) -> list[str]:
    """What loading says of a file cut short, of one without its record, and of what a dying job leaves."""
    said = []
    part = sorted(Path(folder).glob("*.distcp"))[0]
    dist.barrier()
    if dist.get_rank() == 0:
        part.write_bytes(part.read_bytes()[:-1])
    said.append(refused(folder, plan, model, optimizer))
    if dist.get_rank() == 0:
        (Path(folder) / checkpoint.COMPLETE).unlink()
    said.append(refused(folder, plan, model, optimizer))
    said.append(refused(f"{folder}.partial", plan, model, optimizer))
    return said
