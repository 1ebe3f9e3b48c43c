"""Predictions of published rows, by the code that prices plans."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from cost_models.calibration import Calibration, calibrate
from cost_models.chain import Chain
from cost_models.estimate import evaluate
from cost_models.price import Ticks, price
from cost_models.rows import Rows
from cost_models.strategy import RECOMPUTE, LayerChoice, LayerRun, Stage
from planner.published.records import Case, Job, Prediction
from planner.published.settings import with_settings

GIB = 2**30


def step_and_memory(job: Job, fits: Calibration) -> tuple[float, float]:
    """Seconds of a step and bytes of the fullest device."""
    ticks = Ticks.of(job.model, job.cluster, job.workload)
    rows = Rows.of(job.strategy)
    chain = Chain(job.model, price(job.model, job.cluster, job.workload, rows, fits, ticks), 0)
    found = evaluate(chain, chain.runs(job.strategy.stages))
    return found.step * ticks.second, float(found.need.max())


def least_recompute(job: Job, fits: Calibration) -> Job:
    """The job with the least recompute that fits its devices, where the recipe leaves that to the memory."""
    if job.switches.get("recompute") != "least":
        return job
    for choice in RECOMPUTE:
        tried = recomputing(job, choice)
        if step_and_memory(tried, fits)[1] <= job.cluster.memory_bytes:
            return tried
    return job


def recomputing(job: Job, choice: str) -> Job:
    """The job with every layer recomputed in that way."""
    stages = tuple(Stage((LayerRun(stage.layers, LayerChoice(choice)),)) for stage in job.strategy.stages)
    return dataclasses.replace(job, strategy=dataclasses.replace(job.strategy, stages=stages))
