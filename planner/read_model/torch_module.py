"""A torch module as a ``ModelGraph``, from one pass over example inputs that computes nothing.

What is tried, in order, and what is lost where the one before does not go through; a note says so:

    the module as it is     nothing
    in bf16                 nothing; some kernels (grouped products) take no other type
    nothing watched         what eager torch keeps, where torch.func differentiates inside and forbids to watch it
    numbers unknown         nothing but the values of numbers taken from data, where the module only computes with them
    its config alone        module names, towers, and whatever its own code does beyond its family's config

``torch.export`` is not among them. Of 21 modules that these refuse it refuses 13 too, strict or not, all seven that
branch on data among them; of the others (``repeat_interleave``, ``numpy()``, ``float()`` of a mean, an f-string,
``torch.cond``, a nested input, a sparse product, inference mode) its graph has no backward pass, and symbols for sizes
that depend on data.

How the example is read: its first dimension (of ``input_ids`` where there is one) is the batch; the sequence is that
of the hidden states that enter the last layer, 1 where they have none. Values do not matter, only shapes and types.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.nn.parameter import UninitializedTensorMixin

from cost_models.model_graph import ModelGraph
from planner.read_model.torch_errors import DATA_DEPENDENT, explained, first_line, is_of_inputs
from planner.read_model.torch_run import Example, run
from planner.read_model.torch_tensors import closed_to_trees
from planner.read_model.traced import Trace
from planner.read_model.traced_graph import graph_of
from topologies.errors import BadInput, PlannerError

MOST_FROZEN_FRACTION = 0.05


@dataclass(frozen=True)
class Fallback:
    """Another way to run a module after an error that it ``helps`` with; ``note`` is what is lost."""

    helps: Callable[[Exception], bool]
    options: dict[str, Any]
    note: str


def _wants_bf16(error: Exception) -> bool:
    named = "bf16" in str(error).lower().replace("bfloat16", "bf16")
    return isinstance(error, RuntimeError) and not isinstance(error, DATA_DEPENDENT) and named


FALLBACKS = (
    Fallback(
        _wants_bf16, {"dtype": torch.bfloat16}, "traced in bf16: some of the module's kernels take no other type"
    ),
    Fallback(
        lambda error: "saved tensor hooks" in str(error), {"watched": False},
        "the module differentiates inside (torch.func), where torch lets nobody watch what is kept: what eager torch "
        "keeps is not known",
    ),
    Fallback(lambda error: isinstance(error, DataDependentOutputException), {"numbers": True}, ""),
)  # fmt: skip
"""Tried in this order, each on top of those before; what was tried last and does not help leaves the error before."""


def read_module(module: torch.nn.Module, example_inputs: Any, name: str | None = None) -> ModelGraph:
    """The graph of ``module`` as it trains on inputs like ``example_inputs``; no weight is allocated or changed.

    ``example_inputs`` is a tensor, a tuple of positional arguments or a mapping of keyword arguments; real tensors,
    or tensors on the meta device. Raises ``BadInput`` for a module without parameters or with frozen ones, for
    inputs it does not take, and for control flow that depends on data, naming the line.
    """
    module = eager(module)
    example = read_example(module, example_inputs)
    _check_parameters(module)
    title = name or _title(module)
    try:
        trace = traced(module, example)
    except PlannerError:
        raise
    except Exception as error:
        found = None if is_of_inputs(error) else _from_config(module, title, error)
        if found is None:
            raise explained(module, example.tensors, error) from error
        return found
    return graph_of(trace, title, _positions(module))


def eager(module: torch.nn.Module) -> torch.nn.Module:
    """The module that ``torch.compile`` was given, or itself. Raises ``BadInput`` where TorchScript holds a part."""
    scripted = next((name for name, it in module.named_modules() if isinstance(it, torch.jit.ScriptModule)), None)
    if scripted is not None:
        raise BadInput(
            f"module {scripted!r} of {type(module).__name__} is TorchScript, which shapes cannot be passed through "
            "module by module; give the module as it was before torch.jit.script or torch.jit.trace"
        )
    return module._orig_mod if type(module).__name__ == "OptimizedModule" else module


def traced(module: torch.nn.Module, example: Example) -> Trace:
    """The trace of one pass, by the first of :data:`FALLBACKS` that goes through. Raises what the module raises."""
    options: dict[str, Any] = {}
    lost: list[str] = []
    before: Exception | None = None
    while True:
        try:
            trace = run(module, example, **options)
            break
        except Exception as error:
            further = next((it for it in FALLBACKS if not it.options.keys() & options and it.helps(error)), None)
            if further is None:
                raise before if before is not None and "numbers" in options else error from error
            options, before = options | further.options, error
            lost += [further.note] if further.note else []
    trace.notes.extend(lost)
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
    _check_kinds(example)
    if not example.tensors:
        raise BadInput(
            f"example_inputs holds no tensor (found {type(inputs).__name__}); give a tensor, a tuple of positional "
            "arguments, or a dict of keyword arguments"
        )
    empty = next((t for t in example.tensors if t.dim() and not t.numel()), None)
    if empty is not None:
        raise BadInput(f"example_inputs has a tensor of shape {tuple(empty.shape)}, without elements; give one sample")
    return example


def _check_kinds(example: Example) -> None:
    """Refuse what shapes cannot be read from: objects of the user's own, nested and sparse tensors."""
    closed = closed_to_trees((example.args, example.kwargs))
    if closed is not None:
        kind = type(closed).__name__
        raise BadInput(
            f"example_inputs holds a {kind}, whose tensors torch does not find; register the class "
            f"(torch.export.register_dataclass({kind}), or torch.utils._pytree.register_pytree_node), or pass tensors"
        )
    odd = next((t for t in example.tensors if t.is_nested or t.layout != torch.strided), None)
    if odd is not None:
        kind = "nested" if odd.is_nested else "sparse"
        raise BadInput(
            f"example_inputs holds a {kind} tensor, whose elements its shape does not count; give a padded tensor, and "
            "the mask or the lengths that the module takes with one"
        )


def _check_parameters(module: torch.nn.Module) -> None:
    parameters = list(module.named_parameters())
    if not parameters:
        raise BadInput(
            f"{type(module).__name__} has no parameters, so there is nothing to train or to place (quantised layers "
            "keep none; modules in a plain Python list are not seen: use nn.ModuleList)"
        )
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
        f"the module does not run on the shapes of example_inputs ({first_line(error)}); read from its config alone, "
        "without module names, the example's sequence, and what its code does beyond its family"
    )
    return dataclasses.replace(graph, notes=(note,))
