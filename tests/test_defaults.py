"""What is assumed where the user says nothing, and that every assumption is said."""

from __future__ import annotations

import dataclasses

import pytest

from cost_models.workload import Training
from planner.defaults import MOST_SEQUENCES, default_workload, read_workload
from planner.errors import BadInput
from planner.read_model import read_model
from topologies.ready import read_cluster


def assumed(model: str, cluster: str, **given: object) -> tuple[Training, list[str]]:
    fields = {"seq_len": None, "global_batch": None, "precision": None, "optimizer": "adam"} | given
    return default_workload(read_model(model), read_cluster(cluster), **fields)


def test_every_assumption_is_noted():
    workload, notes = assumed("llama-3.1-70b", "dgx-h100:4")

    assert (workload.seq_len, workload.precision) == (8192, "bf16")
    assert workload.tokens == 4 * 2**20
    assert [note.split()[0] for note in notes] == ["seq_len", "global_batch", "precision"]


def test_what_is_given_is_neither_changed_nor_noted():
    workload, notes = assumed("llama-3.1-70b", "dgx-h100:4", seq_len=4096, global_batch=24, precision="fp32")

    assert (workload.seq_len, workload.global_batch, workload.precision) == (4096, 24, "fp32")
    assert notes == []


def test_the_sequence_is_what_the_model_takes():
    assert assumed("gpt3-175b", "dgx-a100")[0].seq_len == 2048


def test_many_devices_get_more_tokens():
    assert assumed("llama-3.1-405b", "dgx-h100:2048")[0].tokens == 2**27


@pytest.mark.parametrize(("cluster", "precision"), [("dgx-h100", "bf16"), ("p3dn", "fp16"), ("cpu-local", "fp32")])
def test_precision_is_one_the_device_has(cluster: str, precision: str):
    assert assumed("llama-3.1-8b", cluster)[0].precision == precision


def test_short_sequences_do_not_make_an_absurd_batch():
    assert assumed("llama-3.1-8b", "dgx-h100", seq_len=1)[0].global_batch == MOST_SEQUENCES


def test_a_precision_the_device_lacks_is_noted():
    assert "no peak for fp8" in assumed("llama-3.1-8b", "dgx-a100", precision="fp8")[1][-1]
    assert "no peak" not in " ".join(assumed("llama-3.1-8b", "dgx-h100", precision="fp8")[1])


@pytest.mark.parametrize(
    ("cluster", "noted"), [("l40s-host", True), ("rtx-4090-host:2", True), ("dgx-h100", False), ("cpu-local", False)]
)
def test_hosts_on_pcie_are_taken_to_copy_between_their_devices(cluster: str, noted: bool):
    notes = assumed("llama-3.1-8b", cluster)[1]

    assert any("copy to each other over PCIe" in note for note in notes) == noted


def test_an_announced_device_is_noted():
    cluster = read_cluster("dgx-h100")
    promised = cluster.accelerator.model_copy(update={"announced": True})
    cluster = dataclasses.replace(cluster, accelerator=promised)
    given = {"seq_len": None, "global_batch": None, "precision": None, "optimizer": "adam"}

    assert "announced" in default_workload(read_model("llama-3.1-8b"), cluster, **given)[1][-1]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"seq_len": 0}, "seq_len=0"), ({"seq_len": 131073}, "131072 positions"),
        ({"global_batch": -4}, "global_batch=-4"),
        ({"global_batch": 2**20}, "limit is 131072"), ({"seq_len": 1.5}, "seq_len=1.5"),
        ({"precision": "int4"}, "'int4'"),
        ({"optimizer": "lion"}, "'lion'"), ({"global_batch": 10**30}, "global_batch=1000"),
    ],
)  # fmt: skip
def test_a_workload_that_is_wrong_is_refused_with_the_value(fields: dict, says: str):
    with pytest.raises(BadInput, match=says):
        read_workload(read_model("llama-3.1-8b"), **({"seq_len": 8192, "global_batch": 8} | fields))


@pytest.mark.parametrize("seq_len", ["4k", 2.5, 0])
def test_a_sequence_that_is_no_number_is_refused_before_a_batch_is_assumed(seq_len):
    with pytest.raises(BadInput, match=f"seq_len={seq_len!r}"):
        assumed("llama-3.1-8b", "dgx-h100", seq_len=seq_len)


def test_a_sequence_in_digits_is_a_number():
    assert assumed("llama-3.1-8b", "dgx-h100", seq_len="4096")[0].seq_len == 4096
