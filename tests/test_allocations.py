"""Bytes held at most, from allocations and releases of which some were not seen."""

from __future__ import annotations

import threading

import pytest

torch = pytest.importorskip("torch")

from planner.runtime.allocations import Change, changes_of, highest_bytes  # noqa: E402

MEGABYTE = 2**20


def test_what_went_unseen_counts_until_its_maker_returned():
    """Two blocks of 5 in a row at one address, none released in sight, beside one of 3 that was: 8 at most, not 13."""
    changes = [
        Change(0, 5, 100, returned_ns=2), Change(1, 3, 200, returned_ns=1), Change(4, 5, 100, returned_ns=5),
        Change(6, -3, 200, returned_ns=6),
    ]  # fmt: skip

    assert highest_bytes(changes) == 8
    assert highest_bytes(changes[:1]) == 5
    assert highest_bytes([]) == 0


def test_a_tensor_that_another_thread_drops_is_not_held_for_ever():
    held = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        for _ in range(3):
            held.append(torch.zeros(MEGABYTE, dtype=torch.uint8))
            dropper = threading.Thread(target=held.clear)
            dropper.start()
            dropper.join()
        two = [torch.zeros(MEGABYTE, dtype=torch.uint8) for _ in range(2)]
        del two
    changes = list(changes_of(profile))

    assert sum(it.size_bytes for it in changes) >= MEGABYTE, "releases on other threads are seen now: simplify"
    assert highest_bytes(changes) == pytest.approx(2 * MEGABYTE, rel=0.01)
