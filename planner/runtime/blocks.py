"""What of a module is planned: its layers by module name, and whether it is the model that the plan is for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from cost_models.model_graph import ModelGraph
from planner.errors import BadInput, Unsupported
from planner.read_model.torch_module import read_example, read_module, traced
from planner.result import Plan
from planner.runtime.context import calls_no_attention


@dataclass(frozen=True)
class Blocks:
    """The modules of every planned layer, in order; ``graph`` is what they were found in.

    ``before`` and ``after`` are the modules, and the parameters in no module of theirs, that come before and behind.
    """

    graph: ModelGraph
    layers: tuple[tuple[str, ...], ...]
    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Every module of any layer, once."""
        return list(dict.fromkeys(name for layer in self.layers for name in layer))

    def chain(self, axis: str) -> list[str]:
        """The one module of each layer. Raises ``Unsupported``, for ``axis``, where layers are not just that."""
        odd = next((layer for layer in self.layers if len(layer) != 1), None)
        if odd is not None or len(set(self.layers)) < len(self.layers):
            raise Unsupported(
                f"{axis} needs layers that are one module each, called once, and {self.graph.name!r} has a layer of "
                f"{', '.join(odd or self.layers[0])}; pin {axis}=1"
            )
        if any(edge.target > edge.source + 1 for edge in self.graph.flows):
            raise Unsupported(
                f"{axis} needs layers that pass on nothing but their hidden states, and in {self.graph.name!r} "
                f"{_odd_flow(self.graph)}; pin {axis}=1"
            )
        return [layer[0] for layer in self.layers]


def _odd_flow(graph: ModelGraph) -> str:
    names = ["the embedding", *(f"layer {i}" for i in range(graph.layers)), "the head"]
    edge = next(e for e in graph.flows if e.target > e.source + 1)
    return f"{names[edge.source + 1]} passes tensors to {names[edge.target + 1]}"


def read_blocks(plan: Plan, module: nn.Module, example_inputs: Any) -> Blocks:
    """The layers of ``module``, found by passing the shapes of ``example_inputs`` through it as for planning.

    Raises ``BadInput`` when the plan is for another model, by its parameters, layers or digest.
    """
    graph = read_module(module, example_inputs, plan.model.name)
    check_graph(plan, graph)
    inner = dict(module.named_modules())
    called = [tuple(name for name in layer if _runs(inner[name])) for layer in graph.modules[1:-1]]
    return Blocks(graph, tuple(called), *(_once(module, graph.modules[end]) for end in (0, -1)))


def parameters_of(module: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Parameters of what ``module`` has by these names, modules or parameters, by each of their names."""
    within = tuple(f"{name}." for name in names)
    return {name: p for name, p in module.named_parameters(remove_duplicate=False) if f"{name}.".startswith(within)}


def _once(module: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names but those of parameters that a module among them has too, by another name."""
    inner = {
        id(p) for name in names if name in dict(module.named_modules()) for p in module.get_submodule(name).parameters()
    }
    own = dict(module.named_parameters(remove_duplicate=False))
    return tuple(name for name in names if id(own.get(name)) not in inner)


def _runs(module: nn.Module) -> bool:
    """Whether a module is called itself, rather than a list of modules that are."""
    return not isinstance(module, nn.ModuleList | nn.ModuleDict)


def check_graph(plan: Plan, graph: ModelGraph) -> None:
    """Compare a module's graph with the planned model's. Raises ``BadInput`` naming both figures."""
    planned = plan.model
    pairs = [("parameters", planned.parameters, graph.parameters), ("layers", planned.layers, graph.layers)]
    if planned.config is None:
        pairs.append(("digest", planned.digest, graph.digest))
    for what, wanted, found in pairs:
        if wanted != found:
            raise BadInput(
                f"the plan is for {planned.name!r} with {what} = {wanted}, but the module has {found} with these "
                "example_inputs; plan this module, or give the example_inputs that it was planned with"
            )


def returns_loss(module: nn.Module, example_inputs: Any) -> bool:
    """Whether the first thing that the module makes of the example is a scalar, its loss."""
    trace = traced(module, read_example(module, example_inputs))
    return bool(trace.outputs) and trace.values[trace.outputs[0]].shape == ()


def check_sequence_kept(module: nn.Module, example_inputs: Any, cp: int, layers: Iterable[str]) -> None:
    """Refuse a module whose output has no sequence to split, or ``layers`` that attend by products of their own.

    Raises ``Unsupported`` with the output's shape, or the layer.
    """
    trace = traced(module, read_example(module, example_inputs))
    shape = trace.values[trace.outputs[0]].shape if trace.outputs else ()
    looked_up = [trace.values[op.inputs[1]].shape for op in trace.ops if op.name == "embedding"]
    sequence = looked_up[0][1] if looked_up and len(looked_up[0]) == 2 else None
    if len(shape) < 3 or shape[1] != sequence:
        raise Unsupported(
            f"cp = {cp} needs an output for every position, and {type(module).__name__} returns {tuple(shape)}, which "
            f"keeps no sequence of tokens; pin cp=1"
        )
    attending = {op.path for op in trace.ops if op.name == "attention"}
    for name in layers:
        if not any(f"{path}.".startswith(f"{name}.") for path in attending):
            raise calls_no_attention(name)
