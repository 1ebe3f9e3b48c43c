"""What launchers that carry files to the hosts have in common: which script starts the job, and what they cannot do."""

from __future__ import annotations

from collections.abc import Iterator

from cost_models.strategy import DENSE_ORDER, level_ranks
from planner.export.refusals import Refusal, clocks_of_ranks
from planner.export.render import Files
from planner.export.torchrun import torchrun, trainer_refusal
from planner.ranks import processes_per_host
from planner.result import Plan

SCRIPTS = ("megatron.sh", "megatron-bridge.sh", "torchtitan.sh", "deepspeed.sh", "accelerate.sh", "lightning.sh")
"""What starts a framework; ``launch.sh`` starts the built-in trainer or a program of the user's."""
NEEDS_A_PROGRAM = tuple(script for script in SCRIPTS if script != "torchtitan.sh")


def carried(plan: Plan, beside: Files) -> tuple[Files, str]:
    """The files that go to every host, and the script among them that starts the job.

    Only one framework can be started: with several beside, or none, it is ``launch.sh``.
    """
    files = torchrun(plan) | beside
    scripts = [name for name in SCRIPTS if name in files]
    return files, scripts[0] if len(scripts) == 1 else "launch.sh"


def asks_for_a_program(plan: Plan, script: str) -> bool:
    """Whether ``script`` starts nothing until it is told a program."""
    return script in NEEDS_A_PROGRAM or (script == "launch.sh" and trainer_refusal(plan) is not None)


def cannot_carry(plan: Plan) -> Iterator[Refusal]:
    """Clocks and domains of several hosts, which take rights or knowledge of a machine that is not yet given."""
    yield from clocks_of_ranks(plan, "it gives no one the rights to set clocks on a host")
    hosts = level_ranks(plan.strategy.placement, DENSE_ORDER, 0) // processes_per_host(plan.strategy, plan.cluster)
    if hosts > 1:
        why = f"{hosts} hosts of the plan have to lie in one domain together, and it does not place hosts"
        yield Refusal("scale-up domains of several hosts", why, otherwise="take the target slurm")
