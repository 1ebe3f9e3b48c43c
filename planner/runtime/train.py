"""The built-in trainer: a Llama of the plan's config on synthetic sequences, measured against the plan's estimate.

    torchrun ... -m planner.runtime.train --plan plan.json

``launch.sh`` runs this. It is a check that a plan runs and how fast, not a way to train a model for use: the
sequences follow a rule that a model learns in a few steps, so a falling loss says the gradients are right.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist

from planner.errors import PlannerError
from planner.mixed.launch import load_job
from planner.result import Plan
from planner.runtime.limits import check_trainer
from planner.runtime.mesh import join, leave, planned_device_type
from planner.runtime.parallelize import parallelize
from planner.runtime.schedule import Schedule
from planner.runtime.small_llama import SmallLlama, initialise

WARM_UP_STEPS = 1
"""Steps left out of the median: the first one allocates, connects and compiles."""


@dataclass(frozen=True)
class Step:
    """What one step gave."""

    number: int
    loss: float
    seconds: float


def synthetic_batch(plan: Plan, number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and next tokens ``[global_batch, seq_len]`` of step ``number``: each token is the last one plus 1 or 2.

    The choice between 1 and 2 is a sequence's own, so the loss can fall to almost nothing.
    """
    vocab, rows = plan.model.config["vocab_size"], plan.workload.global_batch
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    start = torch.randint(0, vocab, (rows, 1), generator=generator)
    stride = torch.randint(1, 3, (rows, 1), generator=generator)
    tokens = (start + stride * torch.arange(plan.workload.seq_len + 1)) % vocab
    return tokens[:, :-1], tokens[:, 1:]


def optimiser(plan: Plan, model: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """The optimiser that was planned for, over this rank's parameters."""
    if plan.workload.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=learning_rate)
    # Split and whole parameters are mixed, which the grouped kernels of foreach do not take.
    return torch.optim.AdamW(model.parameters(), lr=learning_rate, foreach=False)


def build(plan: Plan, device_type: str, seed: int) -> tuple[torch.nn.Module, Schedule]:
    """The plan applied to its model; no rank ever holds more than its own share and one layer."""
    with torch.device("meta"):
        model = SmallLlama(plan.model.config)
    return parallelize(plan, model, device_type=device_type, fill=functools.partial(initialise, seed=seed))


def train(plan: Plan, device: torch.device, steps: int, seed: int, learning_rate: float) -> list[Step]:
    """Run ``steps`` steps; rank 0 prints a line after each. A step's time is that of the slowest rank."""
    model, schedule = build(plan, device.type, seed)
    update = optimiser(plan, model, learning_rate)
    done: list[Step] = []
    for number in range(steps):
        batch = synthetic_batch(plan, number, seed)
        inputs, targets = (schedule.local(tensor).to(device) for tensor in batch)
        dist.barrier()
        started = time.perf_counter()
        loss = schedule.step(inputs, targets)
        update.step()
        update.zero_grad()
        seconds = _slowest(device, started)
        mean = schedule.mean_loss(loss, device)
        done.append(Step(number, mean, seconds))
        _say(f"step {number}  loss {mean:.4f}  {1e3 * done[-1].seconds:.1f} ms")
    return done


def _slowest(device: torch.device, started: float) -> float:
    """Seconds since ``started`` on the rank that took longest."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = torch.tensor(time.perf_counter() - started, dtype=torch.float64, device=device)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return seconds.item()


def _say(text: str) -> None:
    if dist.get_rank() == 0:
        print(text, flush=True)


def report(plan: Plan, steps: list[Step], log: Path | None) -> None:
    """Print the median measured step beside the predicted one; write both to ``log`` when there is one."""
    counted = steps[WARM_UP_STEPS:] or steps
    measured = statistics.median(step.seconds for step in counted)
    low, high = plan.step_interval_s
    _say(
        f"measured {1e3 * measured:.1f} ms a step (median of {len(counted)}), predicted {1e3 * plan.step_s:.1f} ms "
        f"({1e3 * low:.1f} to {1e3 * high:.1f}): measured/predicted = {measured / plan.step_s:.2f}"
    )
    if log is not None and dist.get_rank() == 0:
        record = {
            "measured_step_s": measured,
            "predicted_step_s": plan.step_s,
            "losses": [step.loss for step in steps],
            "step_s": [step.seconds for step in steps],
        }
        log.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m planner.runtime.train", description=__doc__.split("\n")[0])
    parser.add_argument("--plan", type=Path, required=True, help="plan.json, as Plan.write leaves it")
    parser.add_argument("--steps", type=int, default=5, help="optimiser steps (5)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data (0)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="constant (0.001)")
    parser.add_argument("--json-log", type=Path, help="write losses and step times here")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: as the plan's cluster")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="give up on a silent peer after this long (600)")
    return parser.parse_args(words)


def main() -> NoReturn:
    """Train as told; exit 2 for a plan that cannot run here, 1 when a rank fails."""
    warnings.filterwarnings("ignore", message=".*returned a view tensor.*")  # the loss changes nothing in place
    options = arguments()
    try:
        plan = load_job(options.plan)
        check_trainer(plan)
        wanted = planned_device_type(plan) if options.device == "auto" else options.device
        device = join(plan, wanted, options.timeout_s)
        steps = train(plan, device, max(1, options.steps), options.seed, options.learning_rate)
        report(plan, steps, options.json_log)
        dist.barrier()
    except PlannerError as error:
        print(f"rank {os.environ.get('RANK', '?')}: {error}", file=sys.stderr)
        leave(2)
    except Exception:
        print(f"rank {os.environ.get('RANK', '?')} failed:\n{traceback.format_exc()}", file=sys.stderr)
        leave(1)
    leave(0)


if __name__ == "__main__":
    main()
