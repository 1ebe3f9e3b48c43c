"""One forward and backward pass of a module on fake tensors: no weight is allocated, nothing is computed.

Parameters and buffers are stood in for by fake ones on a CPU, of the module's own types, and everything that the
pass wrote into the module is put back. The module is in training mode meanwhile; recomputation that the module
does by itself is switched off, since recompute is what a plan decides.
"""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.checkpoint
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_leaves, tree_map

from planner.read_model.torch_functions import Functions
from planner.read_model.torch_record import Recorder
from planner.read_model.torch_tensors import computed_with, tensors_of
from planner.read_model.traced import Call, Trace
from topologies.errors import BadInput

PARAMETRIZATIONS = "parametrizations"
"""Where torch.nn.utils.parametrize keeps how a weight is made: no module that runs in a row with others."""

CONTAINERS = (dict, OrderedDict, defaultdict, Counter, list, set, deque)
"""Attributes whose contents are put back after a pass; torch keeps a module's hooks in an OrderedDict."""


@dataclass(frozen=True)
class Example:
    """Positional and keyword arguments of one call."""

    args: tuple
    kwargs: dict[str, Any]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors among them."""
        return [t for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, torch.Tensor)]


def run(
    module: torch.nn.Module, example: Example, dtype: torch.dtype | None = None, *, watched: bool = True,
    numbers: bool = False,
) -> Trace:  # fmt: skip
    """The trace of one pass; floating parameters and inputs as ``dtype`` if given, else inputs as most parameters.

    What autograd keeps is ``watched``. With ``numbers``, a number taken from data is an unknown that the module may
    compute with but not decide by. Raises whatever the module raises on fake tensors;
    :mod:`planner.read_model.torch_module` explains it.
    """
    trace = Trace(batch=example_batch(example), element_bytes=_element_bytes(module, dtype))
    recorder = Recorder(trace)
    fakes = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv() if numbers else None)
    with _restored(module), fakes, torch.enable_grad():
        _stand_in(module, recorder, dtype)
        given, own = (example.args, example.kwargs), dtype or _own_type(module)
        args, kwargs = (tree_map(lambda x: _fake_input(x, recorder, own), it) for it in given)
        trace.inputs = tuple(v.index for v in trace.values if v.origin == "input")
        functions = Functions(recorder)
        with _named(module, recorder), _no_checkpoints(), _watched(recorder), no_mkldnn(), functions, recorder:
            with _saved_by(recorder) if watched else contextlib.nullcontext():
                out = module(*args, **kwargs)
            recorder.finish()
            trace.outputs = tuple(recorder.value(t) for t in tensors_of(out))
            idle = _without_gradient(module) if _back(recorder, out) else []
    if functions.dropped:
        trace.notes.append("dropout is left out; a stack with dropout prices its masks")
    _note_differences(trace, module, example, own, [name for name in idle if name not in trace.frozen])
    return trace


def _saved_by(recorder: Recorder) -> contextlib.AbstractContextManager:
    return torch.autograd.graph.saved_tensors_hooks(recorder.pack, lambda tensor: tensor)


def _own_type(module: torch.nn.Module) -> torch.dtype:
    """The type of most floating parameters, which the runtime gives inputs too."""
    counts: dict[torch.dtype, int] = {}
    for parameter in module.parameters():
        if parameter.is_floating_point():
            counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    return max(counts, key=counts.__getitem__, default=torch.float32)


def _without_gradient(module: torch.nn.Module) -> list[str]:
    """Parameters that backward gave no gradient."""
    return [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]


def _note_differences(
    trace: Trace, module: torch.nn.Module, example: Example, own: torch.dtype, idle: list[str]
) -> None:
    """Notes of what is priced as something else: inputs of another type, complex numbers, parameters left idle."""
    other = {t.dtype for t in example.tensors if t.is_floating_point()} - {own}
    if other:
        names = ", ".join(sorted(str(it).removeprefix("torch.") for it in other))
        trace.notes.append(f"inputs of {names} are taken as {str(own).removeprefix('torch.')}, the parameters' type")
    if any(p.is_complex() for p in module.parameters()):
        trace.notes.append(
            "complex numbers are priced as real ones: their products take 4 times the FLOP, and their parameters twice "
            "the bytes"
        )
    if idle:
        trace.notes.append(
            f"no gradient reaches {len(idle)} parameter{'s' if len(idle) > 1 else ''} in this pass (the first is "
            f"{idle[0]!r}: not used, under torch.no_grad(), or in a branch not taken); priced as trained"
        )


def example_batch(example: Example) -> int:
    """Samples of the example: the first dimension of ``input_ids`` if there is one, else of the first tensor."""
    named = example.kwargs.get("input_ids")
    first = named if isinstance(named, torch.Tensor) else next(iter(example.tensors), None)
    return int(first.shape[0]) if first is not None and first.dim() else 1


def _element_bytes(module: torch.nn.Module, dtype: torch.dtype | None) -> float:
    floats = [p.element_size() for p in module.parameters() if p.is_floating_point()] or [torch.float32.itemsize]
    return float(dtype.itemsize if dtype else max(set(floats), key=floats.count))


def _stand_in(module: torch.nn.Module, recorder: Recorder, dtype: torch.dtype | None) -> None:
    """Fake parameters and buffers in place of the module's own, shared where they are shared."""
    memo: dict[int, Any] = {}
    trace = recorder.trace
    trace.frozen = tuple(name for name, p in module.named_parameters() if not p.requires_grad)
    for prefix, inner in module.named_modules():
        trace.classes[prefix] = type(inner).__name__
        names = [name for name, _ in inner.named_children() if name != PARAMETRIZATIONS]
        trace.children[prefix] = tuple(f"{prefix}.{name}" if prefix else name for name in names)
        if isinstance(inner, torch.nn.ModuleList | torch.nn.Sequential | torch.nn.ModuleDict):
            trace.containers.add(prefix)
        if isinstance(inner, torch.nn.Linear | torch.nn.Embedding) or type(inner).__name__ == "Conv1D":
            trace.linear.add(prefix)
        for name, parameter in inner._parameters.items():
            if parameter is None:
                continue
            qualified = f"{prefix}.{name}" if prefix else name
            if id(parameter) not in memo:
                memo[id(parameter)] = _fake_parameter(parameter, qualified, recorder, dtype)
                trace.parameters[qualified] = parameter.numel()
            else:
                trace.aliases[qualified] = trace.values[recorder.value(memo[id(parameter)])].parameter or ""
            inner._parameters[name] = memo[id(parameter)]
        for name, buffer in inner._buffers.items():
            if buffer is not None and id(buffer) not in memo:
                memo[id(buffer)] = _fake(buffer)
                _know(memo[id(buffer)], buffer, recorder)
            if buffer is not None:
                inner._buffers[name] = memo[id(buffer)]


def _fake(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return torch.empty(tuple(tensor.shape), dtype=wanted, device="cpu")


def _fake_parameter(parameter: Any, name: str, recorder: Recorder, dtype: torch.dtype | None) -> torch.nn.Parameter:
    # Every parameter takes part in backward, so that what a frozen one would cost is priced too.
    floating = parameter.is_floating_point() or parameter.is_complex()
    fake = torch.nn.Parameter(_fake(parameter, dtype), requires_grad=floating)
    recorder.register(fake, parameter=name, needs=floating, origin="parameter")
    return fake


def _fake_input(it: Any, recorder: Recorder, dtype: torch.dtype | None) -> Any:
    if not isinstance(it, torch.Tensor):
        return it
    fake = _fake(it, dtype)
    recorder.register(fake, origin="input")
    _know(fake, it, recorder)
    return fake


def _know(fake: torch.Tensor, real: torch.Tensor, recorder: Recorder) -> None:
    """Keep the values of whole numbers: lengths, counters."""
    whole = not real.is_floating_point() and not real.is_complex()
    if whole and real.device.type == "cpu" and not isinstance(real, FakeTensor):
        with unset_fake_temporarily():
            recorder.known_data.put(fake, real.detach().clone())


@contextlib.contextmanager
def without_caches(module: torch.nn.Module) -> Iterator[None]:
    """No keys and values given out for decoding, by the module or a part of it that has a config of its own.

    What attention gives out besides its result could not be divided over tp.
    """
    configs = {id(it): it for inner in module.modules() if hasattr(it := getattr(inner, "config", None), "use_cache")}
    before = [(config, config.use_cache) for config in configs.values()]
    try:
        for config, _ in before:
            config.use_cache = False
        yield
    finally:
        for config, cached in before:
            config.use_cache = cached


@contextlib.contextmanager
def _restored(module: torch.nn.Module) -> Iterator[None]:
    """The module with all its attributes as they were, whatever a pass assigned.

    Containers stay the objects that they are: handles of hooks, and other modules, refer to them.
    """
    before = [(inner, dict(inner.__dict__)) for inner in module.modules()]
    held = [(it, it.copy()) for _, attributes in before for it in attributes.values() if type(it) in CONTAINERS]
    try:
        with without_caches(module):
            module.train()
            yield
    finally:
        for inner, attributes in before:
            inner.__dict__.clear()
            inner.__dict__.update(attributes)
        for container, contents in held:
            container.clear()
            container.extend(contents) if isinstance(container, list | deque) else container.update(contents)


@contextlib.contextmanager
def _named(module: torch.nn.Module, recorder: Recorder) -> Iterator[None]:
    """Hooks that tell the recorder which submodule runs, and with which tensors."""
    calls, open_calls = recorder.trace.calls, []

    def enter(path: str, inner: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        if recorder.phase != "forward":
            return
        recorder.stack.append((path, inner))
        read = tuple(recorder.value(computed_with(t)) for t in tensors_of((args, kwargs)))
        calls.append(Call(path, len(recorder.trace.ops), inputs=read))
        open_calls.append(calls[-1])

    def leave(path: str, inner: torch.nn.Module, args: tuple, out: Any) -> None:
        if recorder.phase != "forward" or not open_calls or open_calls[-1].path != path:
            return
        recorder.stack.pop()
        call = open_calls.pop()
        call.last = len(recorder.trace.ops)
        call.outputs = tuple(recorder.value(computed_with(t)) for t in tensors_of(out))

    handles = []
    for path, inner in module.named_modules():
        handles.append(
            inner.register_forward_pre_hook(
                lambda inner, args, kwargs, path=path: enter(path, inner, args, kwargs), with_kwargs=True
            )
        )
        handles.append(inner.register_forward_hook(lambda inner, args, out, path=path: leave(path, inner, args, out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _no_checkpoints() -> Iterator[None]:
    """Activation checkpoints of the module's own run straight through."""
    holder, name = torch.utils.checkpoint, "checkpoint"
    before = getattr(holder, name)
    straight = staticmethod(lambda run, preserve, *args: run(*args))
    reentrant = holder.CheckpointFunction.__dict__.get("apply")
    setattr(holder, name, lambda function, *args, use_reentrant=None, **kwargs: function(*args, **_plain(kwargs)))
    holder.CheckpointFunction.apply = straight
    try:
        yield
    finally:
        setattr(holder, name, before)
        if reentrant is None:
            del holder.CheckpointFunction.apply
        else:
            holder.CheckpointFunction.apply = reentrant


@contextlib.contextmanager
def no_mkldnn() -> Iterator[None]:
    """Recurrent layers as the products they are, not as one opaque operator."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@contextlib.contextmanager
def _watched(recorder: Recorder) -> Iterator[None]:
    """Calls of functions with a backward of their own go through the recorder."""
    function = torch.autograd.Function
    before = function.__dict__["apply"]
    original = before.__func__
    function.apply = classmethod(lambda cls, *args, **kwargs: recorder.called(original, cls, args, kwargs))
    try:
        yield
    finally:
        function.apply = before


def _plain(kwargs: dict[str, Any]) -> dict[str, Any]:
    own = ("context_fn", "determinism_check", "debug", "early_stop", "preserve_rng_state")
    return {name: value for name, value in kwargs.items() if name not in own}


def _back(recorder: Recorder, out: Any) -> bool:
    """Run the backward pass from the output's loss, or from the sum of all it holds; whether it went through."""
    loss = getattr(out, "loss", None)
    recorder.phase = "muted"
    if not isinstance(loss, torch.Tensor) or loss.dim():
        tensors = [t for t in tensors_of(out) if t.requires_grad]
        if not tensors:
            raise BadInput(
                "no output of the module depends on a parameter that is trained, so there is nothing to train; "
                "return a loss or the tensors it is computed from, outside torch.no_grad()"
            )
        loss = sum(t.abs().sum() if t.is_complex() else t.sum() for t in tensors)
    recorder.phase = "backward"
    try:
        loss.backward()
        return True
    except Exception as error:
        first = str(error).strip().split("\n")[0][:200]
        recorder.trace.notes.append(
            f"the backward pass does not run without data ({first}): its FLOP are taken as two products for each "
            "forward one"
        )
        for op in recorder.trace.ops:
            op.backward_flop = 2.0 * op.flop if op.needs else 0.0
        return False
    finally:
        recorder.phase = "done"
