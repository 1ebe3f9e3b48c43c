"""Checkpoints of parallel jobs: saved under one plan, loaded under another.

    save    every rank writes its parts into FOLDER.partial; when all have, rank 0 adds complete.json with the size of
            every file and renames the folder
    load    complete.json must be there and every file as large as it says; then each rank reads its parts

Weights and optimiser states stand in it whole and under the module's own names, in pieces by whoever held them, so
that any other plan of the same model can read them. Weights of fused matrices, whose rows tp reorders, are written
in the module's order. A job that dies while saving leaves FOLDER.partial, which no load takes.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

from planner.errors import BadInput, PlannerError
from planner.result import Plan
from planner.runtime.split_modules import SectionedWeight, whole

COMPLETE = "complete.json"
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def save(folder: str | Path, plan: Plan, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write model and optimiser after ``step`` steps to a new ``folder``; every rank calls this and returns together.

    ``model`` is what :func:`planner.runtime.apply` returned. The folder is whole or not there. Raises ``BadInput``, on
    every rank, where it exists already or cannot be written.
    """
    target = Path(folder)
    partial = target.parent / f"{target.name}.partial"
    _together(lambda: _begin(target, partial))
    states = _states(model, optimizer)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save(states, checkpoint_id=str(partial))
    except CheckpointException as error:
        raise BadInput(f"checkpoint {str(target)!r} cannot be written: {_reason(error)}") from error
    _together(lambda: _finish(target, partial, plan, step))


def load(folder: str | Path, plan: Plan, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Read what :func:`save` wrote, under this or another plan, into ``model`` and ``optimizer``; the steps so far.

    Only for folders that you trust: torch keeps its list of parts, ``.metadata``, as a pickle, and reading one can run
    any code. Raises ``BadInput``, on every rank, for a folder that is no whole checkpoint or one of another model.
    """
    source = Path(folder)
    record = _together(lambda: _complete(source, plan))
    states = _states(model, optimizer)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(states, checkpoint_id=str(source))
    except CheckpointException as error:
        raise BadInput(f"checkpoint {str(source)!r} does not fit the model: {_reason(error)}") from error
    _restore(states, model, optimizer)
    return record["step"]


def _states(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Both state dicts, with fused weights in the module's order, and a tied weight's states under its first name."""
    weights, moments = get_state_dict(model, optimizer, options=FLAT)
    layouts = _layouts(model)
    return {"model": _reordered(weights, layouts), "optimizer": _renamed(_reordered(moments, layouts), _copies(model))}


def _copies(model: nn.Module) -> dict[str, str]:
    """First names of weights that the last stage has a copy of, by the copy's."""
    return getattr(model, "tied_copies", {})


def _renamed(states: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Optimiser states, called ``state.NAME.exp_avg`` and ``param_groups.NAME.lr``, under other names of weights."""
    return {_under(key, names): value for key, value in states.items()}


def _under(key: str, names: dict[str, str]) -> str:
    return next((key.replace(f".{old}.", f".{new}.") for old, new in names.items() if f".{old}." in key), key)


def _layouts(model: nn.Module) -> dict[str, SectionedWeight]:
    return getattr(model, "sectioned_weights", {})


def _layout_of(key: str, value: Any, layouts: dict[str, SectionedWeight]) -> SectionedWeight | None:
    """How a tensor under ``key`` (of a weight, or of its optimiser states) is ordered, if by sections."""
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return None
    return next((layout for name, layout in layouts.items() if key == name or f".{name}." in key), None)


def _reordered(states: dict[str, Any], layouts: dict[str, SectionedWeight]) -> dict[str, Any]:
    found = {}
    for key, value in states.items():
        layout = _layout_of(key, value, layouts)
        found[key] = value if layout is None else layout.module_order(whole(value))
    return found


def _restore(states: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    layouts = _layouts(model)
    weights, moments = get_state_dict(model, optimizer, options=FLAT)
    own = _renamed(states["optimizer"], {first: copy for copy, first in _copies(model).items()})
    for now, then in ((weights, states["model"]), (moments, own)):
        for key, value in now.items():
            layout = _layout_of(key, value, layouts)
            if layout is not None:
                then[key] = _split_like(value, layout.split_order(then[key]))
    set_state_dict(model, optimizer, model_state_dict=states["model"], optim_state_dict=own, options=FLAT)


def _split_like(value: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
    """``full``, split among ranks as ``value`` is."""
    if not isinstance(value, DTensor):
        return full
    spread = DTensor.from_local(full, value.device_mesh, run_check=False)
    return spread.redistribute(placements=value.placements)


def _begin(target: Path, partial: Path) -> None:
    if target.exists():
        raise BadInput(f"checkpoint {str(target)!r} exists; give each its own folder, such as one named by its step")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise BadInput(f"checkpoint {str(target)!r} cannot be written: {error.strerror}") from error


def _finish(target: Path, partial: Path, plan: Plan, step: int) -> None:
    files = {path.name: path.stat().st_size for path in partial.iterdir()}
    record = {"step": step, "parameters": plan.model.parameters, "model": plan.model.name, "files": files}
    with (partial / COMPLETE).open("w", encoding="utf-8") as text:
        text.write(json.dumps(record, indent=2) + "\n")
        text.flush()
        os.fsync(text.fileno())
    partial.rename(target)


def _complete(source: Path, plan: Plan) -> dict[str, Any]:
    """The record of a whole checkpoint. Raises ``BadInput`` where it is none, or of another model."""
    try:
        record = json.loads((source / COMPLETE).read_text(encoding="utf-8"))
        files, step, parameters = dict(record["files"]), int(record["step"]), int(record["parameters"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{str(source)!r} is no whole checkpoint: {COMPLETE} is {_missing(error)}; a job that dies while saving "
            "leaves such a folder; take the one before"
        ) from error
    for name, size in files.items():
        path = source / Path(str(name)).name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "missing" if found is None else f"{found} bytes"
            raise BadInput(f"{str(source)!r} is no whole checkpoint: {name} was {size} bytes and is {state}")
    if parameters != plan.model.parameters:
        raise BadInput(
            f"{str(source)!r} is of a model with {parameters} parameters, and the plan's has {plan.model.parameters}"
        )
    return {"step": step}


def _missing(error: Exception) -> str:
    return "missing" if isinstance(error, FileNotFoundError) else "not readable"


def _reason(error: CheckpointException) -> str:
    first = next(iter(error.failures.values()), None)
    return str(first[0] if isinstance(first, tuple) else first or error).splitlines()[0][:300]


def _together(work: Any) -> Any:
    """What ``work`` gives on rank 0, or its error, on every rank."""
    said: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            said[0] = work()
        except PlannerError as error:
            said[1] = str(error)
        except OSError as error:
            said[1] = f"checkpoint: {error}"
    dist.broadcast_object_list(said, src=0)
    if said[1] is not None:
        raise BadInput(said[1])
    return said[0]
