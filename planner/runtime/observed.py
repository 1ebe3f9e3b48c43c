"""What a rank does during a step: spans of compute, of collectives by mesh axis, of waiting in a pipeline.

torch's functions that communicate are wrapped while :func:`observing` lasts, at the Python level that FSDP, tensor
parallelism and pipelines call them on. A span of a collective is the time that the rank's own thread is held up by it;
``issued_ns`` is when the rank joined it, so that spans of all members, joined by group and number, tell how long each
waited for the last one. Clocks are nanoseconds since 1970 as this host has them: spans of several hosts are only as
near to each other as their clocks.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import schedules as pipeline_schedules
from torch.distributed.pipelining.stage import _PipelineStageBase

COLLECTIVES = (
    "all_gather_single", "all_gather_into_tensor", "reduce_scatter_single", "reduce_scatter_tensor", "all_reduce",
    "all_to_all_single", "broadcast",
)  # fmt: skip
FUNCTIONAL = (
    "all_gather_single", "all_gather_tensor", "reduce_scatter_single", "reduce_scatter_tensor", "all_reduce",
    "all_to_all_single", "all_gather_single_autograd", "reduce_scatter_single_autograd", "all_to_all_single_autograd",
)  # fmt: skip
PASSES = {
    "forward_one_chunk": "forward",
    "backward_one_chunk": "backward",
    "backward_weight_one_chunk": "backward",
}
_OFFSET_NS = time.time_ns() - time.perf_counter_ns()


@dataclass
class Span:
    """Something that a rank's thread did or was held up by. ``group`` and ``number`` say which collective it was."""

    name: str
    kind: str
    axis: str
    start_ns: int
    end_ns: int
    issued_ns: int = 0
    group: tuple[int, ...] = ()
    number: int = 0
    size_bytes: int = 0


def now_ns() -> int:
    """Nanoseconds since 1970, never running backwards."""
    return time.perf_counter_ns() + _OFFSET_NS


@dataclass
class Observer:
    """Collects spans of one rank."""

    axes: dict[tuple[int, ...], str]
    synchronise: Callable[[], None] = lambda: None
    spans: list[Span] = field(default_factory=list)
    numbers: Counter = field(default_factory=Counter)
    depth: int = 0
    pending: dict[int, tuple[str, int, tuple[int, ...], int]] = field(default_factory=dict)

    @contextlib.contextmanager
    def span(self, name: str, kind: str, axis: str = "") -> Iterator[Span]:
        """Times what is inside; spans may lie in each other, a collective in the backward pass that needs it."""
        one = Span(name, kind, axis, now_ns(), 0)
        try:
            yield one
        finally:
            self.synchronise()
            one.end_ns = now_ns()
            self.spans.append(one)

    def collective(self, name: str, group: tuple[int, ...], call: Callable[[], Any], tensor: Any) -> Any:
        """``call()`` as a span of its group's axis, numbered within the group."""
        if self.depth:
            return call()
        self.depth += 1
        self.numbers[group] += 1
        try:
            with self.span(name, "collective", self.axes.get(group, "other")) as one:
                one.issued_ns, one.group, one.number = one.start_ns, group, self.numbers[group]
                one.size_bytes = _bytes(tensor)
                result = call()
        finally:
            self.depth -= 1
        held = getattr(result, "elem", result)
        if isinstance(held, torch.Tensor):
            self.pending[held.data_ptr()] = (one.axis, one.issued_ns, group, one.number)
        return result

    def wait(self, tensor: torch.Tensor, call: Callable[[], Any]) -> Any:
        """The wait for a collective that was started earlier."""
        if self.depth:
            return call()
        axis, issued_ns, group, number = self.pending.pop(_address(tensor), ("other", now_ns(), (), 0))
        with self.span("wait", "collective", axis) as one:
            one.issued_ns, one.group, one.number = issued_ns, group, number
            return call()

    def records(self) -> list[dict[str, Any]]:
        """The spans in order, as plain values."""
        return [asdict(span) for span in sorted(self.spans, key=lambda span: span.start_ns)]


def _bytes(tensor: Any) -> int:
    local = getattr(tensor, "_local_tensor", tensor)
    return local.numel() * local.element_size() if isinstance(local, torch.Tensor) else 0


def _address(tensor: Any) -> int:
    held = getattr(tensor, "elem", tensor)
    return held.data_ptr() if isinstance(held, torch.Tensor) else 0


def axes_of(mesh: DeviceMesh) -> dict[tuple[int, ...], str]:
    """The axis that every process group of this rank belongs to, by its ranks; both kinds of copies are ``dp``."""
    found = {}
    for axis in mesh.mesh_dim_names:
        ranks = tuple(sorted(dist.get_process_group_ranks(mesh.get_group(axis))))
        if len(ranks) > 1:
            found[ranks] = "dp" if axis.startswith("dp") else axis
    return found


def _ranks(group: Any) -> tuple[int, ...]:
    """Ranks of a group in any of the ways that torch's functions are given one."""
    if isinstance(group, tuple) and len(group) == 2 and isinstance(group[0], DeviceMesh):
        group = group[0].get_group(group[1])
    if isinstance(group, DeviceMesh):
        group = group.get_group()
    if isinstance(group, str):
        group = dist.distributed_c10d._resolve_process_group(group)
    if isinstance(group, list):
        return tuple(sorted(group))
    return tuple(sorted(dist.get_process_group_ranks(group)))


@contextlib.contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Everything that the rank's step calls is noted by ``observer`` until the block ends; then all is as before."""
    with contextlib.ExitStack() as stack:

        def patch(owner: Any, name: str, made: Callable[[Any], Any]) -> None:
            plain = getattr(owner, name, None)
            if plain is not None:
                stack.callback(setattr, owner, name, plain)
                setattr(owner, name, made(plain))

        for owner, names, position in ((dist, COLLECTIVES, None), (funcol, FUNCTIONAL, -1)):
            for name in names:
                patch(owner, name, _communicating(observer, name, position))
        patch(funcol, "wait_tensor", lambda plain: lambda tensor: observer.wait(tensor, lambda: plain(tensor)))
        patch(pipeline_schedules, "_wait_batch_p2p", _waiting(observer))
        for name, kind in PASSES.items():
            patch(_PipelineStageBase, name, _passing(observer, kind))
        patch(torch.autograd, "backward", _backward(observer))
        yield


def _communicating(observer: Observer, name: str, position: int | None) -> Callable[[Any], Any]:
    """Wraps a collective; its group is the keyword ``group``, or the argument that looks like one."""

    def made(plain: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            group = kwargs.get("group")
            if group is None and position is not None:
                group = next((it for it in args if not isinstance(it, torch.Tensor | int | str | list)), None)
            if group is None:
                group = next((it for it in args if isinstance(it, dist.ProcessGroup)), None)
            tensor = args[0] if args else next(iter(kwargs.values()))
            return observer.collective(name, _ranks(group), lambda: plain(*args, **kwargs), tensor)

        return call

    return made


def _waiting(observer: Observer) -> Callable[[Any], Any]:
    def made(plain: Any) -> Any:
        def call(work: list) -> Any:
            with observer.span("pipeline wait", "pipeline", "pp"):
                return plain(work)

        return call

    return made


def _passing(observer: Observer, kind: str) -> Callable[[Any], Any]:
    def made(plain: Any) -> Any:
        def call(stage: Any, *args: Any, **kwargs: Any) -> Any:
            with observer.span(f"{kind} of stage {stage.stage_index}", kind):
                return plain(stage, *args, **kwargs)

        return call

    return made


def _backward(observer: Observer) -> Callable[[Any], Any]:
    def made(plain: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with observer.span("backward", "backward"):
                return plain(*args, **kwargs)

        return call

    return made
