"""What tests of parallel jobs share."""

from __future__ import annotations

import functools
import gc
import os
import warnings

import pytest
from gradient_job import shared_findings
from steady import steady_prices

# Before torch is imported: test processes are as many as cores already.
os.environ.setdefault("OMP_NUM_THREADS", "1")
SLOW_FILES = {
    "test_activation_layers.py", "test_explain.py", "test_front.py", "test_host_order.py",
    "test_infeasible.py", "test_interleaved.py", "test_mixed_bands.py", "test_mixed_clocks.py",
    "test_mixed_energy.py", "test_mixed_front.py", "test_mixed_in_order.py", "test_mixed_rent.py",
    "test_mixed_step_ranges.py", "test_mixed_watts.py", "test_placed_plans.py", "test_placed_tiers.py",
    "test_recent_families.py", "test_routed.py", "test_search_clocks.py", "test_site.py", "test_sweep.py",
    "test_tier_bound.py", "test_tier_layers.py", "test_torch_from_config.py", "test_torch_models.py",
    "test_torch_rules.py", "test_verify_clocks.py", "test_vocabulary.py", "test_whole_layers.py",
}  # fmt: skip
"""Files that take half of all time and ask on further ground what others ask: all of them run with ``-m slow``."""
LIMIT_S = {"ci": 400.0, "matrix": 3600.0}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what takes long, before what is marked is left out."""
    for item in items:
        if item.path.name in SLOW_FILES:
            item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is collected stays: no time is spent on looking for garbage among it, then or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def findings(tmp_path_factory):
    """What the gradient job of so many ranks found, by case: ``findings(world)``, or ``findings(world, "matrix")``."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    return functools.cache(lambda world, cases="ci": shared_findings(shared, world, cases, LIMIT_S[cases]))


@pytest.fixture(scope="module")
def transformers():
    """transformers, and the torch that it builds with, without the hub."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("HF_HUB_OFFLINE", "1")
        pytest.importorskip("torch")
        yield pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def steady(tmp_path_factory):
    """A module's plans at prices that no fit moves."""
    with steady_prices(tmp_path_factory.mktemp("steady") / "calibration"):
        yield
