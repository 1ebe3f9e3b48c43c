"""DualPipe's order of work: micro-batches from both ends of the pipeline meet, forwards run beside backwards.

Every device has two stages, ``phase`` 0 the one nearer to where its own micro-batches enter. With ``p`` devices on
which each micro-batch begins at device 0, goes to ``p - 1`` and back (DualPipeV), ``n`` micro-batches, and ``d`` the
device,

    F0 x 2 (p - d - 1)        F0 F1 x (d + 1)          b1 w F1 x (p - d - 1)
    F0&B1 F1&B0 x (n - 2 p + d + 1)                    B1 F1&B0 x (p - d - 1)
    B1 B0 x (d + 1)           w b0 x (p - d - 1)       w x (d + 1)

where ``B`` is a whole backward, ``b`` its part for the input, whose ``w`` for the weights follows later, first in first
out, and ``&`` what runs beside each other in one piece: it begins when both have their data, and hands on both at its
end. Of the ``d + 1`` times ``B1 B0`` the second half are ``b``, from ``B0`` of an odd number on. The first ``F0&B1`` of
the last device runs one after the other. DualPipe proper has ``2 p`` devices, of which ``d`` and ``2 p - 1 - d`` hold
the same two stages and do the same at the same time: half of the micro-batches enter at either end.

Idle are ``(p - 1) (F&B + B - 3 W)`` where stages are alike and nothing is on its way long. What the source's code sends
later than it is ready, to send it with something else, is taken as sent at once.

Source: DeepSeek-AI, arXiv:2412.19437, figure 5; deepseek-ai/DualPipe@3da1bbea dualpipe/dualpipe.py, dualpipev.py,
``step``, and its README's table; "cut in half": Qi et al., hackmd.io/@ufotalent/r1lVXsa9Jg.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cost_models.pipeline import START

Ints = NDArray[np.int64]
Piece = tuple[tuple[int, int, int], ...]
"""Work in one piece: ``(pass, phase, micro-batch)`` of each part, passes being forward, input's gradient, weights'."""


def least_micro_batches(devices: int | Ints) -> int | Ints:
    """Micro-batches that the order needs: as many as virtual stages."""
    return 2 * devices


@lru_cache(maxsize=1024)
def pieces(devices: int, micro_batches: int, device: int) -> tuple[Piece, ...]:
    """The work of one device in order.

    Raises ``ValueError`` for fewer micro-batches than :func:`least_micro_batches`.
    """
    if micro_batches < least_micro_batches(devices):
        raise ValueError(
            f"{micro_batches} micro-batches through {2 * devices} stages of {devices} devices; DualPipe needs at least "
            f"{least_micro_batches(devices)}"
        )
    done, late = {"F0": 0, "F1": 0, "B0": 0, "B1": 0}, deque[tuple[int, int, int]]()

    def part(word: str) -> Piece:
        if word == "w":
            return (late.popleft(),)
        name, phase = word[0].upper(), int(word[1])
        batch = done[name + word[1]]
        done[name + word[1]] += 1
        if name == "F":
            return ((0, phase, batch),)
        if word[0] == "b":
            late.append((2, phase, batch))
            return ((1, phase, batch),)
        return ((1, phase, batch), (2, phase, batch))

    return tuple(sum((part(word) for word in words.split("&")), ()) for words in _words(devices, micro_batches, device))


def _words(devices: int, micro_batches: int, device: int) -> list[str]:
    """The order in the module's words."""
    after, here = devices - 1 - device, device + 1
    both = ["F0&B1", "F1&B0"] * (micro_batches - 2 * devices + here)
    if after == 0:
        both[:1] = ["F0", "B1"]
    ends = [word for i in range(here) for word in _last_backwards(i, here, device)]
    return [
        *["F0"] * 2 * after, *["F0", "F1"] * here, *["b1", "w", "F1"] * after, *both,
        *["B1", "F1&B0"] * after, *ends, *["w", "b0"] * after, *["w"] * here,
    ]  # fmt: skip


def _last_backwards(i: int, count: int, device: int) -> tuple[str, str]:
    """The ``i``-th of ``count`` times ``B1 B0``: from half on they leave the weights' gradients for later."""
    first = i > count // 2 or (i == count // 2 and device % 2 == 1)
    return ("b1" if first else "B1"), ("b0" if i >= count // 2 else "B0")


def nodes_of(devices: int, micro_batches: int, device: int) -> list[Ints]:
    """Every piece of a device's work as node numbers (see :class:`cost_models.pipeline.ScheduleGraph`), in order."""
    stages, chunks = (device, 2 * devices - 1 - device), 2 * devices
    return [
        np.array([batch + micro_batches * (stages[phase] + which * chunks) for which, phase, batch in piece])
        for piece in pieces(devices, micro_batches, device)
    ]


def joined(devices: int, micro_batches: int) -> tuple[Ints, Ints]:
    """For every node the last of its piece, and the backward that a forward runs beside or ``START``."""
    nodes = 3 * micro_batches * 2 * devices
    last, partner = np.arange(nodes), np.full(nodes, START, dtype=np.int64)
    for device in range(devices):
        for piece in nodes_of(devices, micro_batches, device):
            last[piece] = piece[-1]
            if len(piece) == 3:
                partner[piece[0]] = piece[1]
    return last, partner


def beside(devices: int, micro_batches: int | Ints) -> tuple[Ints, Ints]:
    """Of each stage, the forwards and the backwards that run beside another's, ``[..., 2 devices]``.

    ``n - 2 p + d + 1`` times ``F0&B1``, once less on the last device, and ``n - p`` times ``F1&B0``.
    """
    device, n = np.arange(devices), np.asarray(micro_batches)[..., None]
    first = n - 2 * devices + device + 1 - (device == devices - 1)
    second = np.broadcast_to(n - devices, first.shape)
    return np.concatenate([first, second], axis=-1), np.concatenate([second, first[..., ::-1]], axis=-1)
