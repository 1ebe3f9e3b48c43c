"""An estimate as text: what ``print(estimate(...))`` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cost_models.estimate import Estimate

GB = 1e9


def estimate_text(it: Estimate) -> str:
    """Step with its interval, every term of it, memory of the fullest rank, power and money, a line each."""
    low, high = it.interval_s
    need = max(it.need_bytes)
    money = "" if it.usd is None else f", {it.usd:.4g} USD a step"
    lines = [
        f"step {it.step_s:.4g} s (90 % interval {low:.4g} to {high:.4g} s), "
        f"{it.tokens_per_s_per_device:,.0f} tokens/s a device, MFU {it.model_flop_utilisation:.1%}",
        *(f"  {name:<22}{seconds:10.4g} s {seconds / it.step_s:7.1%}" for name, seconds in it.time if seconds),
        f"memory {need / GB:.1f} of {it.memory_limit_bytes / GB:.1f} GB on the fullest rank"
        + ("" if need <= it.memory_limit_bytes else ": does not fit"),
        f"power {sum(it.watts.values()) / 1e3:.4g} kW, energy {it.joules / 1e6:.4g} MJ a step{money}",
    ]
    return "\n".join(lines)
