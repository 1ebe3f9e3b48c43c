"""Pipeline stages of any module: a copy of it for every virtual stage, which has no layers but its own.

A copy shares with the module whatever its stage holds, and its ``forward`` is the module's own. What comes before the
first held layer runs on weights of zeros that take no memory, for the shapes and whatever else layers are given (rotary
tables, masks); its hidden states are then exchanged for those that arrived. Layers of other stages pass their input on,
and behind the last held layer the copy is left.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from planner.errors import Unsupported
from planner.result import StrategyRecord
from planner.runtime.blocks import Blocks, parameters_of
from planner.runtime.data_parallel import in_fp32
from planner.runtime.tied_ends import tied_weights


class _Left(Exception):
    """Carries the hidden states out of the module."""

    def __init__(self, hidden: torch.Tensor):
        super().__init__()
        self.hidden = hidden


class StagePart(nn.Module):
    """One virtual stage of ``module``: hidden states or outputs from the hidden states before and the inputs."""

    def __init__(self, module: nn.Module, blocks: Blocks, held: range, zero: torch.Tensor):
        super().__init__()
        layers = blocks.chain("pp")
        self.layers, self.first, self.last = [layers[i] for i in held], held.start == 0, held.stop == len(layers)
        self.ends = held_ends(blocks, self.first, self.last)
        self.module = _without(module, blocks, {*self.layers, *self.ends}, zero)
        self.arrived: torch.Tensor | None = None

    def hook(self) -> None:
        """Exchange hidden states before the first held layer and leave after the last, outside all other wrapping."""
        start, stop = self.module.get_submodule(self.layers[0]), self.module.get_submodule(self.layers[-1])
        if not self.first:
            start.register_forward_pre_hook(self._take_arrived, prepend=True, with_kwargs=True)
        if not self.last:
            stop.register_forward_hook(self._leave)

    def give_back(self, module: nn.Module) -> None:
        """Give ``module`` the parameters of no other module that wrapping exchanged in the copy alone."""
        for owner, _, last in (name.rpartition(".") for name in self.ends):
            own = self.module.get_submodule(owner)._parameters
            if last in own:
                module.get_submodule(owner)._parameters[last] = own[last]

    def forward(self, arrived: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Hidden states ``[batch, seq, hidden]``, or on the last stage what the module returns."""
        self.arrived = arrived
        try:
            return logits_of(self.module(*positional(inputs), **named(inputs)))
        except _Left as left:
            return left.hidden
        finally:
            self.arrived = None

    def _take_arrived(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if self.arrived is None:
            raise Unsupported(
                f"pp: layer {self.layers[0]!r} is called outside its stage, by code that a copy of the module shares "
                "with it; call layers in forward alone, or pin pp=1"
            )
        for i, it in enumerate(args):
            if _is_hidden(it):
                return (*args[:i], self.arrived, *args[i + 1 :]), kwargs
        key = next(key for key, it in kwargs.items() if _is_hidden(it))
        return args, kwargs | {key: self.arrived}

    def _leave(self, layer: nn.Module, args: tuple, out: Any) -> None:
        if not isinstance(out, torch.Tensor):
            raise Unsupported(
                f"pp sends on the hidden states a layer returns, and {type(layer).__name__} returns a "
                f"{type(out).__name__}; pin pp=1"
            )
        raise _Left(out)


def _is_hidden(it: Any) -> bool:
    return isinstance(it, torch.Tensor) and it.is_floating_point()


def _pass_on(hidden: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> torch.Tensor:
    return hidden if hidden is not None else next(it for it in kwargs.values() if _is_hidden(it))


def numbered(inputs: Any) -> dict[str, Any]:
    """Inputs of a module, a tensor, several or by keyword, all by keyword: positions are named ``arg0``, ``arg1``."""
    if isinstance(inputs, dict):
        return inputs
    several = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return {f"arg{i}": it for i, it in enumerate(several)}


def positional(inputs: dict[str, Any]) -> list[Any]:
    """The positional ones of :func:`numbered`."""
    return [inputs[f"arg{i}"] for i in range(len(inputs)) if f"arg{i}" in inputs]


def named(inputs: dict[str, Any]) -> dict[str, Any]:
    """The others."""
    given = {f"arg{i}" for i in range(len(inputs))}
    return {key: it for key, it in inputs.items() if key not in given}


def logits_of(output: Any) -> Any:
    """The logits of an output that has them by that name; the output itself otherwise."""
    return getattr(output, "logits", output)


def release(module: nn.Module, names: Iterable[str], kept: Iterable[str], zero: torch.Tensor) -> None:
    """Take the parameters of ``names`` that are not of ``kept`` from this rank; where one is read, it is ``zero``.

    ``zero`` is a scalar where the rest of the module goes, of the type that it computes in; it takes no memory.
    """
    for name in parameters_of(module, names).keys() - parameters_of(module, kept).keys():
        path, _, last = name.rpartition(".")
        owner = module.get_submodule(path)
        shape = owner._parameters[last].shape
        owner._parameters[last] = None
        owner.__dict__[last] = (zero.float() if in_fp32(owner) else zero).expand(shape)


def _count_nothing(module: nn.Module, name: str) -> None:
    """Keep what runs on zeros out of running statistics, which a copy shares with the module."""
    inner = dict(module.named_modules()).get(name)
    if inner is not None:
        inner.eval()


def release_layers(module: nn.Module, blocks: Blocks, stages: list[range], zero: torch.Tensor) -> None:
    """Take from this rank all layers, embeddings and heads but those of its virtual stages."""
    held = {i for stage in stages for i in stage}
    last = blocks.graph.layers - 1
    kept = [*held_ends(blocks, 0 in held, last in held), *(blocks.layers[i][0] for i in held)]
    release(module, [*held_ends(blocks, True, True), *blocks.names], kept, zero)


def held_ends(blocks: Blocks, first: bool, last: bool) -> list[str]:
    """Modules and parameters before the layers and behind them that a stage holds."""
    return [*(blocks.before if first else ()), *(blocks.after if last else ())]


def _without(module: nn.Module, blocks: Blocks, held: set[str], zero: torch.Tensor) -> nn.Module:
    """A copy of ``module`` whose layers but the ``held`` ones pass their input on, and whose other ends are released.

    Modules that none of these is in, or in one of these, are shared, and so is every tensor.
    """
    others = {name for name in (*held_ends(blocks, True, True), *blocks.names) if not _inside(name, held)}
    memo: dict[int, Any] = {id(it): it for it in (*module.parameters(), *module.buffers())}
    memo |= {id(it): it for name, it in module.named_modules() if name and not any(_nested(name, o) for o in others)}
    twin = copy.deepcopy(module, memo)
    release(twin, others, held, zero)
    for name in others:
        _count_nothing(twin, name)
        if name in blocks.names:
            twin.get_submodule(name).forward = _pass_on
    return twin


def _inside(name: str, held: set[str]) -> bool:
    return any(f"{name}.".startswith(f"{other}.") for other in held)


def _nested(one: str, other: str) -> bool:
    """Whether one of two named modules is, or is inside, the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def check_ends(module: nn.Module, blocks: Blocks, strategy: StrategyRecord) -> None:
    """Refuse what a pipeline has no place for.

    Raises ``Unsupported`` for parameters in neither end nor a layer, and for tied ends on one device.
    """
    if strategy.stages_of(0)[-1] == strategy.pp * strategy.virtual_stages - 1 and tied_weights(module, blocks):
        raise Unsupported(
            f"embedding and head share one weight, and schedule={strategy.schedule} has both ends of the pipeline on "
            "one device; pin schedule=1f1b or pp=1, or untie them"
        )
    prefixes = tuple(f"{name}." for name in (*blocks.before, *blocks.after, *blocks.names))
    loose = next((name for name, _ in module.named_parameters() if not f"{name}.".startswith(prefixes)), None)
    if loose is not None:
        raise Unsupported(
            f"pp: parameter {loose!r} belongs to no layer and to no module before or after them, so no stage can "
            "hold it; put it into a module of its own, or pin pp=1"
        )
    places: dict[int, str] = {}
    for names in ((*blocks.before, *blocks.after), *blocks.layers):
        for name, p in parameters_of(module, names).items():
            if places.setdefault(id(p), names[0]) != names[0]:
                raise Unsupported(
                    f"pp: parameter {name!r} is also one of {places[id(p)]!r}, and only the two ends of a pipeline may "
                    "share weights; pin pp=1"
                )
