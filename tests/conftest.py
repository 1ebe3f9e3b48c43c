"""What tests of parallel jobs share."""

from __future__ import annotations

import functools
import os
import warnings

import pytest
from gradient_job import shared_findings
from steady import steady_prices

# Before torch is imported: test processes are as many as cores already.
os.environ.setdefault("OMP_NUM_THREADS", "1")
LIMIT_S = {"ci": 400.0, "matrix": 3600.0}


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
