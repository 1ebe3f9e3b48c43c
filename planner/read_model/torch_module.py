"""A torch module as a ``ModelGraph``, from one pass over example inputs that computes nothing.

What is tried, in order, and what is lost where the first does not go through:

    the module as it is     nothing
    in bf16                 nothing; some kernels (grouped products) take no other type
    its config alone        module names, towers, and whatever its own code does beyond its family's config

How the example is read: its first dimension (of ``input_ids`` where there is one) is the batch; the sequence is that
of the hidden states that enter the last layer, 1 where they have none. Values do not matter, only shapes and types.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.parameter import UninitializedTensorMixin

from cost_models.model_graph import ModelGraph
from planner.read_model.torch_record import HERE, OWN_CODE, TORCH
from planner.read_model.torch_run import Example, run
from planner.read_model.traced import Trace
from planner.read_model.traced_graph import graph_of
from topologies.errors import BadInput, PlannerError

MOST_FROZEN_FRACTION = 0.05
DATA_DEPENDENT = (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode)
ITEM = ("item()", "numpy()", "data-dependent", "Boolean value of Tensor", "tolist()", "unbacked")


def read_module(module: torch.nn.Module, example_inputs: Any, name: str | None = None) -> ModelGraph:
    """The graph of ``module`` as it trains on inputs like ``example_inputs``; no weight is allocated or changed.

    ``example_inputs`` is a tensor, a tuple of positional arguments or a mapping of keyword arguments; real tensors,
    or tensors on the meta device. Raises ``BadInput`` for a module without parameters or with frozen ones, for
    inputs it does not take, and for control flow that depends on data, naming the line.
    """
    example = read_example(module, example_inputs)
    _check_parameters(module)
    title = name or _title(module)
    try:
        trace = traced(module, example)
    except PlannerError:
        raise
    except Exception as error:
        found = _from_config(module, title, error)
        if found is None:
            raise _explained(module, example, error) from error
        return found
    return graph_of(trace, title, _positions(module))


def traced(module: torch.nn.Module, example: Example) -> Trace:
    """The trace of one pass, in the module's own type or in bf16. Raises what the module raises."""
    try:
        return run(module, example)
    except RuntimeError as error:
        if isinstance(error, DATA_DEPENDENT) or "bf16" not in str(error).lower().replace("bfloat16", "bf16"):
            raise
    trace = run(module, example, torch.bfloat16)
    trace.notes.append("traced in bf16: some of the module's kernels take no other type")
    return trace


def read_example(module: torch.nn.Module, inputs: Any) -> Example:
    """The arguments that ``inputs`` means. Raises ``BadInput`` where there are none, or nothing to read shapes from."""
    if inputs is None:
        raise BadInput(
            f"{type(module).__name__} is a torch module, which is read by passing shapes through it; give "
            "example_inputs=, for example {'input_ids': torch.zeros(1, 4096, dtype=torch.long)}; where a function "
            "takes none, give it planner.read_model.read_model(module, example_inputs)"
        )
    if isinstance(inputs, Mapping):
        example = Example((), dict(inputs))
    elif isinstance(inputs, tuple | list):
        example = Example(tuple(inputs), {})
    else:
        example = Example((inputs,), {})
    if not example.tensors:
        raise BadInput(
            f"example_inputs holds no tensor (found {type(inputs).__name__}); give a tensor, a tuple of positional "
            "arguments, or a dict of keyword arguments"
        )
    empty = next((t for t in example.tensors if t.dim() and not t.numel()), None)
    if empty is not None:
        raise BadInput(f"example_inputs has a tensor of shape {tuple(empty.shape)}, without elements; give one sample")
    return example


def _check_parameters(module: torch.nn.Module) -> None:
    parameters = list(module.named_parameters())
    if not parameters:
        raise BadInput(f"{type(module).__name__} has no parameters, so there is nothing to train or to place")
    lazy = next((name for name, p in parameters if isinstance(p, UninitializedTensorMixin)), None)
    if lazy is not None:
        raise BadInput(
            f"parameter {lazy!r} has no shape yet: the module is lazy; call it once on an example batch (or give its "
            "layers their sizes) before planning"
        )
    frozen = [(name, p) for name, p in parameters if not p.requires_grad and p.is_floating_point()]
    if not any(p.requires_grad for _, p in parameters):
        raise BadInput(f"every parameter of {type(module).__name__} is frozen; call module.requires_grad_(True) first")
    held, whole = sum(p.numel() for _, p in frozen), sum(p.numel() for _, p in parameters)
    if held > MOST_FROZEN_FRACTION * whole:
        raise BadInput(
            f"{len(frozen)} of {len(parameters)} parameters of {type(module).__name__} are frozen ({held:,} of "
            f"{whole:,} elements, the first {frozen[0][0]!r}); a plan trains all of them. Plan the base model with "
            "requires_grad_(True), or price adapters with estimate(..., workload=Training(tuning='lora'))"
        )


def _title(module: torch.nn.Module) -> str:
    written = getattr(getattr(module, "config", None), "_name_or_path", None)
    if isinstance(written, str) and written.strip("/"):
        return written.strip("/").rsplit("/", 1)[-1][:80]
    return type(module).__name__


def _positions(module: torch.nn.Module) -> int | None:
    """Positions that a Hugging Face config says the model was built for."""
    config = getattr(module, "config", None)
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None


def _from_config(module: torch.nn.Module, name: str, error: Exception) -> ModelGraph | None:
    """The graph of the module's Hugging Face config, where its family is read; what this loses is a note."""
    import dataclasses

    from planner.read_model.hf_config import read_config

    config = getattr(module, "config", None)
    if not hasattr(config, "to_dict") or not isinstance(getattr(config, "model_type", None), str):
        return None
    try:
        graph = read_config(config.to_dict(), name)
    except PlannerError:
        return None
    if graph.parameters != sum(p.numel() for p in module.parameters()):
        return None
    note = (
        f"the module does not run without data ({_first_line(error)}); read from its config alone, without module "
        "names, and without what its code does beyond its family"
    )
    return dataclasses.replace(graph, notes=(note,))


def _explained(module: torch.nn.Module, example: Example, error: Exception) -> BadInput:
    """The error as what to change, with the line of the module that raised it."""
    where, name, text = _line_of(error), type(module).__name__, _first_line(error)
    shapes = ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in example.tensors)
    if isinstance(error, DATA_DEPENDENT) or any(word in str(error) for word in ITEM):
        return BadInput(
            f"{name} decides by the values of its data at {where} ({text}); a plan knows shapes only. Give the module "
            "with that branch taken (an argument or attribute in place of the tensor), a mask instead of a loop over "
            "data, or plan from a config.json"
        )
    if isinstance(error, TypeError) and "argument" in str(error):
        return BadInput(f"{name} cannot be called with example_inputs of {shapes}: {text}")
    if "cuda" in str(error).lower():
        return BadInput(
            f"{name} makes tensors on a CUDA device at {where} ({text}); planning passes shapes on a CPU: create them "
            "on the device of an input or of a parameter instead"
        )
    return BadInput(f"{name} fails at {where} on example_inputs of {shapes}: {text}")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def _line_of(error: Exception) -> str:
    """The innermost line of the user's own code that an error passed, else of the library that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if not f.filename.startswith((HERE, TORCH))]
    own = [frame for frame in outside if not any(part in frame.filename for part in OWN_CODE)]
    frame = (own or outside or list(frames))[-1]
    return f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} ({(frame.line or '').strip()[:80]})"
