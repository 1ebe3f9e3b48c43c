"""Nine plans of well-known models on well-known machines: proved, and such as a practitioner would believe."""

from __future__ import annotations

import pytest

from planner.api import plan
from planner.result import Plan

CASES = [
    ("llama-3.1-8b", "dgx-h100:1"),
    ("llama-3.1-70b", "dgx-h100:4"),
    ("llama-3.1-70b", "mi300x:8"),
    ("llama-3.1-405b", "dgx-h100:128"),
    ("llama-3.1-405b", "gb200-nvl72:2"),
    ("mixtral-8x22b", "dgx-h100:8"),
    ("gpt3-175b", "dgx-a100:128"),
    ("deepseek-v3", "dgx-h100:256"),
    ("llama-3.1-405b", "dgx-h100:131072"),
]


@pytest.mark.parametrize(("model", "cluster"), CASES)
def test_a_well_known_case_is_proved_and_believable(model: str, cluster: str):
    it = plan(model, cluster)
    strategy = it.strategy

    assert it.status == "optimal"
    assert it.gap <= 1e-9
    assert it.cluster.devices_used >= 0.9 * it.cluster.devices
    assert 0.2 <= it.model_flop_utilisation <= 0.65
    assert strategy.tp * strategy.cp <= max(8, it.cluster.scale_up_devices) * 2
    assert strategy.placement["tp"][0] == strategy.tp, "tensor parallelism stays inside the scale-up domain"
    assert all(0 < stage.need_bytes <= stage.limit_bytes for stage in it.memory)
    assert it.step_interval_s[0] <= it.step_s <= it.step_interval_s[1]
    # Every price is rounded up to a tick, which is long where a million devices share the work.
    assert sum(term.seconds for term in it.time) == pytest.approx(it.step_s, rel=1e-5)
    assert Plan.from_json(it.to_json()) == it
    assert all(other.loses_fraction >= -1e-9 for other in it.alternatives)
