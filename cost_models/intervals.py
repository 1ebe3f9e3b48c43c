"""How far a prediction may be off: the spread of errors on published runs that were left out of the fit.

For each stack, kind of work, family of accelerators, one host or several and with or without full recompute the
calibration keeps the shortest range that holds nine of ten logarithms of measured over predicted, and 0, each row
predicted with its whole (model, accelerator) group left out; of a class with few rows it is drawn towards the next
wider one. Recompute is among them since steps with it are predicted worse: half of llm-foundry's lie within 4.8 %, of
the others within 2.3 %. A class without rows takes the range of its stack and kind, then of its kind, where whole
stacks were left out.

What no run has shown is wider. On an accelerator without published runs time is also in the range with whole
accelerators left out, and memory in that of all stacks' errors together; for a model of which only the size is known
both are also in the range with all models shaped so. Of a source that is in no table, so that its stack, release and
settings are read from its words, both are also in the range of a source that the fit did not have: each of the fit was
left out in turn and its rows read so (:mod:`planner.published.unlisted`). Where nothing was ever left out so, power
among it, the range is also :data:`ASSUMED`.

Ranges: ``calibration/intervals.toml``, written by ``meshwright calibrate --published``.
"""

from __future__ import annotations

import math
import tomllib
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Literal

from cost_models.calibration import FOLDER
from cost_models.model_graph import ModelGraph
from cost_models.workload import Training

ASSUMED = (-0.3, 0.3)
"""Logarithms of measured over predicted where no run says anything."""
Kind = Literal["dense", "moe", "fine-tuning"]


def kind_of(model: ModelGraph, workload: Training) -> Kind:
    """Which kind of work a job is; fine-tuning comes first."""
    if workload.tuning == "lora" or workload.packed_len:
        return "fine-tuning"
    return "moe" if model.experts else "dense"


def interval(
    quantity: Literal["time", "memory", "power"],
    value: float,
    stack: str,
    kind: Kind,
    family: str,
    accelerator: str = "",
    by_size: bool = False,
    hosts: int = 0,
    full_recompute: bool = False,
) -> tuple[float, float]:
    """Bounds that hold 90 % of what is measured where ``value`` is predicted, ``family`` being the accelerator's.

    ``stack`` is empty where no source in a table says which it is; ``by_size`` is true of a model of which nothing but
    its size is known; ``hosts`` is 0 where neither it nor the recompute is known.
    """
    wider = [f"by size {kind}"] if by_size else []
    wider += [] if stack else ["unseen source"]
    wider += [] if accelerator in _seen(quantity) else [f"unseen accelerator {kind}"]
    own = classes(stack, kind, family, hosts, full_recompute)
    spans = [_spread(quantity, names) for names in (own, *((name,) for name in wider))]
    return value * math.exp(min(low for low, _ in spans)), value * math.exp(max(high for _, high in spans))


def at_most(quantity: Literal["time", "memory", "power"], share: float, *of: Any) -> float:
    """What ``share`` of all measured over predicted lie below, from a half of them on; ``of`` as in :func:`interval`.

    Above 1 their logarithms are taken as those of a normal distribution of which 0.95 lie below the interval's end.
    """
    _, high = interval(quantity, 1.0, *of)
    return high ** (NormalDist().inv_cdf(share) / NormalDist().inv_cdf(0.95))


def _seen(quantity: str) -> list[str]:
    """Accelerators on which published runs measured the quantity."""
    return _tables().get("seen", {}).get(quantity, [])


def told_apart_log() -> float:
    """Difference of two layouts' log step times from which nine of ten published pairs are in the predicted order.

    ``1.28`` standard deviations of the difference of two layouts' errors within one problem (model, machine, batch).
    """
    return _tables().get("pairs", {}).get("log_difference", 0.08)


def classes(stack: str, kind: Kind, family: str, hosts: int = 0, full_recompute: bool = False) -> tuple[str, ...]:
    """Names of the classes that a run belongs to, the narrowest first; as many as are known where ``hosts`` is 0."""
    wider = (f"{stack} {kind} {family}", f"{stack} {kind}", kind, "all")
    if not hosts:
        return wider
    own = f"{wider[0]} on {'one host' if hosts == 1 else 'several hosts'}"
    return f"{own} {'with' if full_recompute else 'without'} full recompute", own, *wider


def _spread(quantity: str, names: tuple[str, ...]) -> tuple[float, float]:
    tables = _tables().get(quantity, {})
    for name in names:
        if name in tables:
            return tuple(tables[name]["log_ratio"])
    return ASSUMED


@lru_cache(maxsize=1)
def _tables() -> dict[str, Any]:
    path = FOLDER / "intervals.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
