"""Broken copies of every format's dumps end in a cluster or in an error in words; 10,000 each: tests/mutations.py."""

import pytest

from tests.mutations import DUMPS, outcomes
from topologies.readers import FORMATS


def test_every_format_has_two_dumps():
    assert DUMPS.keys() == FORMATS.keys()
    assert min(map(len, DUMPS.values())) >= 2


@pytest.mark.parametrize("name", DUMPS)
def test_broken_copies(name):
    found = outcomes(name, 300, seed=1)

    assert set(found) == {"cluster", "error"}
    assert min(found.values()) > 30, "faults that are all harmless, or all fatal, test little"


@pytest.mark.parametrize("name", DUMPS)
def test_every_dump_is_recognised_by_its_own_reader_alone(name):
    for make in DUMPS[name]:
        assert [each for each, module in FORMATS.items() if module.recognises(make())][:1] == [name]
