"""Goodput as text: what failures leave, where the rest goes, what a run of tokens takes with them."""

from __future__ import annotations

from planner.failures.goodput_record import GoodputRecord
from planner.result import Plan
from topologies.units import duration_text, quantity_text

USUAL_TOKENS = 1e12


def goodput_lines(plan: Plan) -> list[tuple[str, str]]:
    """The lines of a summary about failures; none for a plan without goodput."""
    it = plan.goodput
    if it is None:
        return []
    low, high = it.range
    return [
        ("goodput", f"{it.fraction:.2%} ({low:.2%} to {high:.2%}): {lost_text(it)}"),
        ("failures", failures_text(it)),
        ("checkpoint", checkpoint_text(it)),
        ("kept", run_text(plan, plan.training_run.tokens if plan.training_run else USUAL_TOKENS)),
    ]


def lost_text(it: GoodputRecord) -> str:
    """``restarts 5.3%, work done again 0.1%``, largest first."""
    parts = sorted(((part, name) for name, part in it.lost.items() if part > 0), reverse=True)
    return ", ".join(f"{name} {part:.2%}" for part, name in parts)


def failures_text(it: GoodputRecord) -> str:
    """How often something fails, what, and how many spare hosts that takes."""
    total = sum(it.failures_per_day.values())
    causes = ", ".join(f"{name} {rate / total:.0%}" for name, rate in it.failures_per_day.items() if total and rate)
    return (
        f"one in {duration_text(it.mtbf_s)} ({causes}; as in {it.fleet}), restart {duration_text(it.restart_s)}, "
        f"{it.spares_needed} spare host{'' if it.spares_needed == 1 else 's'} needed"
    )


def checkpoint_text(it: GoodputRecord) -> str:
    """Bytes, store, seconds and interval of a checkpoint."""
    each = it.checkpoint
    every = "every step" if it.interval_steps == 1 else f"every {it.interval_steps:,} steps"
    how = "behind the steps, which wait" if it.asynchronous else "the steps wait"
    return (
        f"{quantity_text(each.size_bytes, 'B')} to {it.store} in {duration_text(each.write_s)}, {how} "
        f"{duration_text(each.blocked_s)}; {every} ({duration_text(it.interval_s)})"
    )


def run_text(plan: Plan, tokens: float) -> str:
    """``1.47 M tokens/s; a trillion tokens in 7.9 d, 402 MWh, 1.1 M USD``."""
    it = plan.goodput
    if it is None or it.effective_tokens_per_s <= 0:
        return "nothing is ever finished: a restart takes longer than the job stays whole"
    seconds = tokens / it.effective_tokens_per_s
    steps = seconds / plan.step_s
    money = "" if plan.usd_per_step is None else f", {quantity_text(steps * plan.usd_per_step, 'USD')}"
    energy = quantity_text(steps * plan.joules_per_step / 3600, "Wh")
    rate = f"{it.effective_tokens_per_s:,.0f} tokens/s"
    return f"{rate}; {tokens_text(tokens)} tokens in {duration_text(seconds)}, {energy}{money}"


def tokens_text(tokens: float) -> str:
    """``15 T``: a number of tokens."""
    return f"{tokens / 1e12:g} T" if tokens >= 1e11 else f"{tokens / 1e9:g} G"
