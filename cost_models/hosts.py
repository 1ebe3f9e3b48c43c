"""Seconds in which a host launches the operators of a layer: a device never runs ahead of it.

A layer takes at least its launches times the stack's host time; graphs launch once what they hold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import Calibration
from cost_models.model_graph import Layer
from cost_models.rows import Rows
from cost_models.work import Work
from cost_models.workload import Training

Floats = NDArray[np.float64]
UNFUSED_LOSS = 8
"""Operators of a vocabulary-parallel cross-entropy: fp32, maximum, subtract, pick, exponent, sum, log, mean."""
ADAPTER_OPERATORS = 4
"""Dropout, two thin products, and the sum with the matrix that they stand beside."""


class Host:
    """The processes that launch a job's kernels under its stack."""

    def __init__(self, workload: Training, fits: Calibration) -> None:
        self.workload, self.stack, self.fits = workload, workload.stack, fits

    def waiting_s(self, layer: Layer, work: Work, rows: Rows) -> Floats:
        """Seconds in one pass of a layer that the device waits for its host to launch its operators.

        A backward pass has twice the kernels of a forward, but autograd launches them from C++: in vTrain's sweep,
        whose small layers are bound by their host, both take as long. A loss that is not fused is
        ``UNFUSED_LOSS`` operators. Collectives wait for the slowest of ``tp`` hosts' processes, whose times scatter:
        ``1 + c log2(tp)`` times as long. Where host and device are one processor (``host_adds``) nothing overlaps.
        """
        host_s = self._experts_s(layer, rows.ep) + self._modules_s(layer, rows.tp)
        if self.stack.host_adds:
            return host_s + np.zeros(len(rows))
        return np.maximum(host_s - work.seconds, 0.0)

    def repeating_s(self, layer: Layer, rows: Rows) -> tuple[Floats, Floats]:
        """Seconds of host that full and selective recompute of a layer take beside what they repeat.

        Full: tensors are hooked as they are saved, random states kept and restored. Selective: each operator goes
        through a dispatcher in Python as well, in the forward pass and again.
        """
        launches = self._launches(layer) * self._scattered(rows.tp)
        return launches * self.fits.repeat_full_s, launches * self.fits.repeat_selective_s

    def _experts_s(self, layer: Layer, ep: Floats) -> Floats:
        """Seconds in which the host launches one pass of a layer's experts, half of what both passes take.

        Graphs of modules leave the experts out: ``moe_host_s`` a layer to route, permute, exchange and learn how many
        tokens came, and ``expert_host_s`` a local expert. A graph of the whole step has them in.
        """
        graphed = self.stack.cuda_graphs and self.stack.expert_graphs and layer.attends
        if not layer.experts or graphed:
            return np.zeros_like(ep, dtype=float)
        return (self.fits.moe_host_s + np.maximum(layer.experts / ep, 1.0) * self.fits.expert_host_s) / 2

    def _modules_s(self, layer: Layer, tp: Floats) -> Floats:
        """Seconds in which the host launches one pass of a layer, local experts aside."""
        if self.stack.cuda_graphs:
            return np.zeros_like(tp, dtype=float)
        return self._launches(layer) * self.fits.host_s * self._scattered(tp)

    def _launches(self, layer: Layer) -> int:
        """Operators that a host launches in one pass of a layer."""
        loss = 1 if self.stack.fused_loss else UNFUSED_LOSS
        launches = sum(loss if op.kind == "loss" else 1 for op in layer.operators)
        return launches + ADAPTER_OPERATORS * sum(self.workload.adapts(op.name) for op in layer.operators)

    def _scattered(self, tp: Floats) -> Floats:
        return 1.0 + self.fits.host_scatter * np.log2(tp)
