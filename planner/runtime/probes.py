"""Short benchmarks of this process's device: products, transfers, attention, layers, collectives. Seconds, not models.

Each point is a dictionary of what was run and ``seconds``, one a repeat. All ranks run the same points at the same
time,
so that what they share (cores, caches, memory, NICs) is shared while it is measured. Sizes and seed are always the
same.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import functional

from planner.machine.fits import layer_config
from planner.runtime.small_llama import SmallLlama

Point = dict[str, Any]
REPEATS = 7
LEAST_REPEATS = 3
PRODUCTS = {
    "cpu": ((16, 64, 256, 1024), (64, 256, 1024), (64, 256, 1024)),
    "cuda": ((128, 1024, 4096, 8192), (256, 1024, 4096, 8192), (256, 1024, 4096, 8192)),
}
MOVED_BYTES = {
    "cpu": (2**12, 2**14, 2**16, 2**18, 2**20, 2**22, 2**24, 2**26),
    "cuda": tuple(4**n for n in range(6, 16)),
}
ATTENTIONS = {
    "cpu": tuple(itertools.product((2, 8), (64, 256, 512), (64, 128))),
    "cuda": tuple(itertools.product((16, 64), (512, 2048, 8192), (64, 128))),
}
LAYERS = {
    "cpu": ((128, 128), (128, 512), (128, 1024), (256, 256), (256, 1024), (512, 512)),
    "cuda": ((1024, 2048), (2048, 4096), (4096, 4096)),
}
"""Hidden width and tokens of decoder layers."""
MESSAGES = {"cpu": (2**8, 2**12, 2**15, 2**18, 2**20, 2**22), "cuda": tuple(4**n for n in range(5, 15))}


class Clock:
    """Times calls on this device, every rank beginning together."""

    def __init__(self, device: torch.device, until: float):
        self.device, self.until = device, until

    def seconds(self, call: Callable[[], object], inner: int = 1) -> list[float]:
        """Seconds of one of ``inner`` calls in a row, several times; fewer once time is up."""
        call()
        found = []
        for repeat in range(REPEATS):
            if repeat >= LEAST_REPEATS and self.late():
                break
            self._together()
            began = time.perf_counter()
            for _ in range(inner):
                call()
            self._done()
            found.append((time.perf_counter() - began) / inner)
        return found

    def late(self) -> bool:
        """Whether any rank's time for this kind of point is up; all ranks agree."""
        past = torch.tensor([time.monotonic() > self.until], dtype=torch.int32, device=self.device)
        dist.all_reduce(past, dist.ReduceOp.MAX)
        return bool(past.item())

    def _together(self) -> None:
        self._done()
        dist.barrier()

    def _done(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def products(clock: Clock, dtype: torch.dtype) -> Iterator[Point]:
    """Matrix products ``[m, k] x [k, n]``, weights as linear layers hold them."""
    for m, n, k in itertools.product(*PRODUCTS[clock.device.type]):
        left, right = (torch.randn(*size, device=clock.device).to(dtype) for size in ((m, k), (n, k)))
        inner = max(1, min(200, int(2e7 / (m * n * k))))
        seconds = clock.seconds(lambda left=left, right=right: functional.linear(left, right), inner)
        yield {"m": m, "n": n, "k": k, "dtype": str(dtype).removeprefix("torch."), "seconds": seconds}


def transfers(clock: Clock) -> Iterator[Point]:
    """Additions into a third tensor; ``bytes`` are all that is read and written."""
    for size in MOVED_BYTES[clock.device.type]:
        a, b, out = (torch.ones(size // 4, device=clock.device) for _ in range(3))
        inner = max(1, min(500, 2**22 // size))
        yield {"bytes": 3 * size, "seconds": clock.seconds(lambda a=a, b=b, out=out: torch.add(a, b, out=out), inner)}


def launches(clock: Clock) -> Iterator[Point]:
    """An operator on one element: what a call costs when there is nothing to do."""
    one = torch.ones(1, device=clock.device)
    yield {"seconds": clock.seconds(lambda: torch.add(one, one), 500)}


def attentions(clock: Clock, dtype: torch.dtype) -> Iterator[Point]:
    """Causal attention, forward alone and forward with backward less that."""
    for heads, length, size in ATTENTIONS[clock.device.type]:
        q, k, v = (torch.randn(1, heads, length, size, device=clock.device, dtype=dtype) for _ in range(3))
        for each in (q, k, v):
            each.requires_grad_()

        def forward(q: torch.Tensor = q, k: torch.Tensor = k, v: torch.Tensor = v) -> torch.Tensor:
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

        yield from _both_ways(clock, forward, {"heads": heads, "length": length, "size": size})


def _both_ways(clock: Clock, forward: Callable[[], torch.Tensor], what: Point) -> Iterator[Point]:
    """A point for forward and one for backward, whose gradients come in as they do in training."""
    result = forward()
    gradient = torch.ones_like(result)
    yield what | {"pass": "forward", "seconds": clock.seconds(forward)}
    both = clock.seconds(lambda: forward().backward(gradient))
    once = statistics.median(clock.seconds(forward))
    yield what | {"pass": "backward", "seconds": [max(it - once, 1e-9) for it in both]}


def updates(clock: Clock, mesh: DeviceMesh) -> Iterator[Point]:
    """The optimiser's step over several tensors, called tensor by tensor as the runtime does; plain ones and split."""
    for split, count, size in itertools.product((False, True), (4, 16), (2**8, 2**15)):
        tensors = [torch.nn.Parameter(torch.ones(size, device=clock.device)) for _ in range(count)]
        if split:
            tensors = [torch.nn.Parameter(distribute_tensor(it.detach(), mesh, [Shard(0)])) for it in tensors]
        for tensor in tensors:
            tensor.grad = torch.ones_like(tensor)
        update = torch.optim.AdamW(tensors, lr=1e-3, foreach=False)
        elements = count * size // (mesh.size() if split else 1)
        yield {"split": split, "tensors": count, "elements": elements, "seconds": clock.seconds(update.step)}


def layers(clock: Clock, dtype: torch.dtype, tp: DeviceMesh | None) -> Iterator[Point]:
    """Whole decoder layers as the runtime runs them, forward and backward; split over ``tp`` where that is given."""
    from planner.runtime.tensor_parallel import split_layer

    for hidden, tokens in LAYERS[clock.device.type]:
        body, ways = _decoder(clock, hidden, dtype), 1 if tp is None else tp.size()
        if tp is not None:
            split_layer(body.layers[0], tp, recomputed=False)
        forward = _layer_pass(clock, body, body.layers[0], (tokens, hidden, ways), dtype)
        yield from _both_ways(clock, forward, _layer(hidden, tokens, ways))


def recomputed_layers(clock: Clock, dtype: torch.dtype) -> Iterator[Point]:
    """Both passes of whole decoder layers that recompute, those of the same layer that does not (``whole_s``), and its
    forward pass alone (``forward_s``)."""
    from planner.runtime.recompute import recomputing

    for hidden, tokens in LAYERS[clock.device.type][:4]:
        body = _decoder(clock, hidden, dtype)
        passes = {
            kind: _layer_pass(clock, body, recomputing(body.layers[0], kind), (tokens, hidden, 1), dtype)
            for kind in ("none", "full", "selective")
        }
        gradient = torch.ones_like(passes["none"]())
        both = {kind: clock.seconds(lambda run=run, to=gradient: run().backward(to)) for kind, run in passes.items()}
        known = {
            "whole_s": statistics.median(both["none"]), "forward_s": statistics.median(clock.seconds(passes["none"]))
        }  # fmt: skip
        for kind in ("full", "selective"):
            yield _layer(hidden, tokens, 1) | known | {"recompute": kind, "seconds": both[kind]}


def _decoder(clock: Clock, hidden: int, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    return SmallLlama(layer_config(hidden)).to(clock.device, dtype).model


def _layer(hidden: int, tokens: int, tp: int) -> Point:
    return {"hidden": hidden, "tokens": tokens, "width": _width(tokens), "tp": tp}


def _width(tokens: int) -> int:
    """Tokens a sequence."""
    return min(tokens, 128)


def _layer_pass(
    clock: Clock, body: Any, layer: Any, shape: tuple[int, int, int], dtype: torch.dtype
) -> Callable[[], torch.Tensor]:
    """The forward pass of ``layer``, one of ``body``, for ``shape``: tokens, hidden width and tp."""
    tokens, hidden, ways = shape
    width = _width(tokens)
    states = torch.randn(tokens // width, width // ways, hidden, device=clock.device, dtype=dtype)
    states.requires_grad_()
    rotation = body.rotary_emb(states, position_ids=torch.arange(width, device=clock.device).unsqueeze(0))

    def forward() -> torch.Tensor:
        found = layer(states, position_embeddings=rotation)
        return found[0] if isinstance(found, tuple) else found

    return forward


def collectives(clock: Clock, groups: dict[tuple[int, ...], Any]) -> Iterator[Point]:
    """Every operation in every kind of group by size; ``groups`` are this rank's by their factors a network level."""
    for factors, group in groups.items():
        count = dist.get_world_size(group)
        for size in MESSAGES[clock.device.type]:
            elements = max(count, size // 4 // count * count)
            for operation, call in _calls(elements, count, group, clock.device).items():
                yield {
                    "operation": operation, "factors": list(factors), "bytes": 4 * elements,
                    "seconds": clock.seconds(call, 3 if size < 2**16 else 1),
                }  # fmt: skip


def _calls(elements: int, count: int, group: Any, device: torch.device) -> dict[str, Callable[[], object]]:
    """Every operation over a buffer of ``elements`` in a group of ``count``."""
    whole, part = (torch.ones(n, device=device) for n in (elements, elements // count))
    return {
        "all_gather": lambda: dist.all_gather_single(whole, part, group=group),
        "reduce_scatter": lambda: dist.reduce_scatter_single(part, whole, group=group),
        "all_reduce": lambda: dist.all_reduce(whole, group=group),
        "all_to_all": lambda: dist.all_to_all_single(torch.empty_like(whole), whole, group=group),
    }


def sends(clock: Clock, groups: dict[tuple[int, ...], Any]) -> Iterator[Point]:
    """A message from each even rank of a group to the next one, which answers: half of the way and back."""
    for factors, group in groups.items():
        for size in MESSAGES[clock.device.type]:
            message = torch.ones(max(1, size // 4), device=clock.device)
            seconds = [it / 2 for it in clock.seconds(_there_and_back(message, group))]
            yield {"operation": "send", "factors": list(factors), "bytes": 4 * message.numel(), "seconds": seconds}


def _there_and_back(message: torch.Tensor, group: Any) -> Callable[[], None]:
    """Sends to this rank's neighbour and receives from it; nothing where a rank has none."""
    me = dist.get_rank(group)
    peer = me ^ 1

    def call() -> None:
        if peer >= dist.get_world_size(group):
            return
        for sending in (me < peer, me > peer):
            if sending:
                dist.send(message, group=group, group_dst=peer)
            else:
                dist.recv(message, group=group, group_src=peer)

    return call
