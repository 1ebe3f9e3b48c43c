"""Alternatives: each of another kind, ranked, found of neighbours near and far, and near the best of their kind."""

from __future__ import annotations

import pytest

from planner import plan
from planner.result import Plan

KIND = ("tp", "cp", "pp", "ep")


def kind(strategy) -> tuple[int, ...]:
    return (*(getattr(strategy, axis) for axis in KIND), strategy.dp_shard * strategy.dp_replicate)


@pytest.fixture(scope="module")
def dense() -> Plan:
    return plan("llama-3.1-8b", "dgx-h100:2", seq_len=4096, global_batch=64)


@pytest.fixture(scope="module")
def experts() -> Plan:
    return plan("mixtral-8x7b", "dgx-h100:2", seq_len=4096, global_batch=64)


def test_alternatives_are_of_different_kinds_and_ranked(dense: Plan, experts: Plan):
    for it in (dense, experts):
        kinds = [kind(it.strategy), *(kind(other.strategy) for other in it.alternatives)]
        assert len(kinds) == 6 == len(set(kinds))
        losses = [other.loses_fraction for other in it.alternatives]
        assert losses == sorted(losses)
        assert losses[0] >= -1e-9


def test_experts_spread_otherwise_are_an_alternative(experts: Plan):
    """Where all else is pinned, nothing else is left to differ."""
    it = experts.strategy
    pins = {"tp": it.tp, "cp": it.cp, "pp": it.pp, "dp": it.dp_shard * it.dp_replicate}
    pinned = plan("mixtral-8x7b", "dgx-h100:2", seq_len=4096, global_batch=64, pins=pins)
    assert pinned.alternatives
    assert all(other.strategy.ep != pinned.strategy.ep for other in pinned.alternatives)


def test_an_alternative_is_near_the_best_of_its_kind(dense: Plan):
    for other in dense.alternatives:
        it = other.strategy
        pins = {"tp": it.tp, "cp": it.cp, "pp": it.pp, "dp": it.dp_shard * it.dp_replicate}
        best = plan("llama-3.1-8b", "dgx-h100:2", seq_len=4096, global_batch=64, pins=pins, alternatives=0)
        assert best.objective <= other.objective * (1 + 1e-9)
        assert other.objective <= 1.03 * best.objective, pins


def test_pins_hold_for_alternatives_too():
    it = plan("llama-3.1-8b", "dgx-h100:2", seq_len=4096, global_batch=64, pins={"tp": 2, "zero": 1})
    assert it.alternatives
    assert all((other.strategy.tp, other.strategy.zero) == (2, 1) for other in it.alternatives)
