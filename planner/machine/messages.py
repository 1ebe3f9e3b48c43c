"""What a pipeline's messages hold on a rank, and where in its order of work it is fullest.

torch keeps a buffer for each message of the step that a rank receives from another, and where it runs a list of work
(interleaved and all further schedules, not 1F1B) every tensor that was sent until the step ends.

Source: torch 2.13, torch/distributed/pipelining/schedules.py, ``_PipelineScheduleRuntime._step_microbatches``
(``send_ops``); stage.py, ``_setup_forward_recv_info``.
"""

from __future__ import annotations

from cost_models.chain import Chain
from cost_models.schedules import FURTHER

FORWARD, BACKWARD, WEIGHTS = range(3)
"""Passes, as :meth:`cost_models.schedules.Schedule.work` numbers them."""
Work = list[tuple[int, int, int]]


def until_fullest(chain: Chain, rank: int) -> Work:
    """A rank's work up to the last moment at which it holds most micro-batches."""
    work = chain.schedule.work(rank)
    ends = WEIGHTS if chain.schedule.split else BACKWARD
    held = most = last = 0
    for position, (which, _, _) in enumerate(work):
        held += (which == FORWARD) - (which == ends)
        if which == FORWARD and held >= most:
            most, last = held, position
    return work[: last + 1]


def a_backward_ended(chain: Chain, work: Work) -> bool:
    """Whether there are gradients of weights by then."""
    return any(which == (WEIGHTS if chain.schedule.split else BACKWARD) for which, _, _ in work)


def messages_held(chain: Chain, rank: int, work: Work) -> int:
    """Messages that a rank holds by then: all that it will receive, and those sent where they are kept."""
    mine = chain.schedule.stages_of(rank).tolist()
    ends = {-1, chain.pp * chain.virtual, *mine}
    received = sum((stage - 1 not in ends) + (stage + 1 not in ends) for stage in mine) * chain.micro_batches
    if chain.virtual == 1 and chain.schedule.kind not in FURTHER:
        return received
    steps = {FORWARD: 1, BACKWARD: -1}
    return received + sum(which in steps and stage + steps[which] not in ends for which, stage, _ in work)
