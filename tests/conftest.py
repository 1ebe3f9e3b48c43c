"""What tests of parallel jobs share."""

from __future__ import annotations

import functools
import os

import pytest
from gradient_job import shared_findings

LIMIT_S = {"ci": 400.0, "matrix": 3600.0}


@pytest.fixture(scope="session")
def findings(tmp_path_factory):
    """What the gradient job of so many ranks found, by case: ``findings(world)``, or ``findings(world, "matrix")``."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    return functools.cache(lambda world, cases="ci": shared_findings(shared, world, cases, LIMIT_S[cases]))
