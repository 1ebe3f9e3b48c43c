"""Broken copies of every format's dumps end in a cluster or in an error in words; 10,000 each: tests/mutations.py."""

import time

import pytest

from tests.mutations import DUMPS, outcomes
from topologies.errors import BadInput
from topologies.readers import FORMATS, read_seen


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


ENDLESS = {
    "newlines": "\n" * 200_000,
    "slurm": "\n" * 200_000 + "SwitchName=s Nodes=a",
    "keys": "SwitchName=" + "ab=" * 60_000,
    "brackets": "SwitchName=s Nodes=" + "[0-9]" * 8,
    "json": '{"apiVersion": "v1", "metadata": 0, "kind": "List", "items": ' + "[" * 100_000,
    "yaml": "- topology: " + "[" * 5000,
    "lines": "=" * 200_000 + "\nWeight between two GPUs",
    "columns": " ".join(f"GPU{n}" for n in range(3000)),
    "ports": 'Switch\t65 "S-1"\t\t# "a" x\n' + '[1]\t"S-2"[1] # "b"' + "x" * 200_000,
    "edges": "devices:\n- name: a\n  components: [{name: xpu, count: 100000, choice: xpu}]\n  edges: ["
    + "{ep1: {component: xpu}, ep2: {component: xpu}}," * 500 + "]",
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_texts_are_refused_at_once(name):
    begun = time.process_time()
    with pytest.raises(BadInput):
        read_seen(ENDLESS[name], "file")

    assert time.process_time() - begun < 2
