"""Whether the samples of a batch meet inside a module: it is run on a batch and on the two halves of it.

Data parallelism and micro-batches give every rank and every pass a part of the batch. What they train is the module's
own loss over the batch only where no sample's output depends on the others beside it.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from planner.read_model.torch_functions import DROPOUTS
from planner.read_model.torch_module import read_example
from planner.read_model.torch_trial import first_difference, random_copy, random_inputs, trial_outputs, without_dropout

_Inputs = tuple[tuple, dict[str, Any]]
SAMPLES = 4
"""Samples in the batch: two in each half, so that what has one row for all (positions) looks like no batch."""
WHOLE, HALVES = slice(0, SAMPLES), (slice(0, SAMPLES // 2), slice(SAMPLES // 2, SAMPLES))


def mixed_samples(module: torch.nn.Module, example_inputs: Any, seed: int = 0) -> str | None:
    """Which output of ``module`` changes for a sample with the others of its batch; ``None`` where none does.

    An output with a row a sample has to be the halves' one after the other, any other (a loss) their mean. Random
    weights, in double precision where all kernels take it, in training mode without dropout, or not in training mode
    where that is random. BatchNorm uses running statistics: it mixes samples by a rule of its own. A module that does
    not run on such a batch, whatever it raises, says nothing, and ``None`` is returned as well. ``module`` is not
    changed. However many samples the example has, :data:`SAMPLES` are run, again and again those of a shorter one.
    """
    example = read_example(module, example_inputs)
    for dtype in (torch.float64, torch.float32):
        with contextlib.suppress(Exception), torch.random.fork_rng([]):
            trial = _Trial(random_copy(module, seed).to(dtype))
            return trial.mixed(random_inputs(example, seed, SAMPLES, dtype, alike=False))
    return None


class _Trial:
    """A copy of a module that is run on a batch of ``SAMPLES`` and on halves of it.

    ``by_sample`` says of each table whether all that is looked up there has a row a sample, in batch and half.
    """

    def __init__(self, module: torch.nn.Module):
        self.module, self.looking = module, True
        self.by_sample: dict[int, bool] = {}
        self.noise: dict[tuple[int, torch.Size], torch.Tensor] = {}
        for inner in module.modules():
            if isinstance(inner, torch.nn.Embedding):
                inner.register_forward_hook(self._told_apart)
            if isinstance(inner, _BatchNorm):
                _take_running_statistics(inner)

    def mixed(self, inputs: _Inputs) -> str | None:
        """What :func:`mixed_samples` returns."""
        for rows in (WHOLE, HALVES[0]):
            self._outputs(inputs, rows)
        self.looking = False
        found = self._difference(inputs)
        if found is None or not self._is_random(inputs):
            return found
        with without_dropout(self.module):
            return self._difference(inputs)

    def _is_random(self, inputs: _Inputs) -> bool:
        """Whether a batch draws random numbers (a few samples may be alike twice), or comes out otherwise again."""
        before = torch.get_rng_state()
        first = self._outputs(inputs, WHOLE)
        return not torch.equal(before, torch.get_rng_state()) or not _agree(first, self._outputs(inputs, WHOLE))

    def _difference(self, inputs: _Inputs) -> str | None:
        whole = self._outputs(inputs, WHOLE)
        halves = [self._outputs(inputs, half) for half in HALVES]
        joined = [_joined(w, parts) for w, *parts in zip(whole, *halves, strict=True)]
        return first_difference(_numbered(whole), _numbered(joined))

    def _outputs(self, inputs: _Inputs, rows: slice) -> list[torch.Tensor]:
        self.rows = rows
        args, kwargs = tree_map(lambda it: it[rows] if isinstance(it, torch.Tensor) and it.dim() else it, inputs)
        with torch.no_grad(), _WithoutDropout():
            return trial_outputs(self.module, args, kwargs)

    def _told_apart(self, table: torch.nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        """Rows looked up, which are alike for all samples, and noise of each sample's own."""
        key = id(table)
        if self.looking:
            rows = self.rows.stop - self.rows.start
            self.by_sample[key] = self.by_sample.get(key, True) and len(out) == rows
        if self.looking or not self.by_sample.get(key):
            return out
        at = key, out.shape[1:]
        if at not in self.noise:
            self.noise[at] = torch.randn(SAMPLES, *out.shape[1:], dtype=out.dtype)
        return out + self.noise[at][self.rows]


def _joined(whole: torch.Tensor, halves: list[torch.Tensor]) -> torch.Tensor:
    """Two halves' outputs as that of the whole: one after the other where the whole is longer, else their mean."""
    one, other = halves
    longer = [d for d in range(min(whole.dim(), one.dim())) if whole.shape[d] != one.shape[d]]
    return torch.cat([one, other], longer[0]) if longer else (one + other) / 2


def _numbered(outputs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"output {i}": t for i, t in enumerate(outputs)}


def _agree(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return first_difference(_numbered(one), _numbered(other)) is None


class _WithoutDropout(TorchFunctionMode):
    """Dropout leaves everything as it is, attention's too."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention:
            if len(args) > 4:
                args = (*args[:4], 0.0, *args[5:])
            else:
                kwargs = kwargs | {"dropout_p": 0.0}
        return func(*args, **kwargs)


def _take_running_statistics(norm: _BatchNorm) -> None:
    """Out of training mode; without running statistics, as if every batch had mean 0 and variance 1."""
    norm.training = False
    if norm.running_mean is None:
        norm.running_mean, norm.running_var = torch.zeros(norm.num_features), torch.ones(norm.num_features)
