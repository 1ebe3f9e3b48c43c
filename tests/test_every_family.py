"""Every family of transformers with its default sizes, one test each: ``pytest -m slow tests/test_every_family.py``.

Minutes in all; ``-k`` takes some of them by name.
"""

from __future__ import annotations

import json
import warnings

import pytest

from planner.errors import BadInput, UnknownName
from planner.read_model import read_config

pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    MODEL_TYPES = list(pytest.importorskip("transformers").CONFIG_MAPPING)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_it_is_read_or_refused(transformers, model_type):
    """Nothing but the errors that are meant for users."""
    try:
        config = json.loads(json.dumps(transformers.CONFIG_MAPPING[model_type]().to_dict(), default=str))
    except Exception as error:
        pytest.skip(f"transformers makes no config of it: {error!r}")
    try:
        assert read_config(config, model_type).parameters
    except (BadInput, UnknownName) as refused:
        assert str(refused)
