"""lightning_plan.py, read back as data and called with stand-ins; lightning.sh."""

from __future__ import annotations

import ast
import sys
import types

import pytest
from golden_plans import NAMES, golden, host_words, layers_of, rewritten

from planner.errors import Unsupported
from planner.export import export
from planner.export.facts import checked, flat
from planner.result import Plan

EXPRESSIBLE = [9, 10, 15, 18, 21, 22, 24, 25]


def constants(plan: Plan) -> dict:
    body = ast.parse(export(plan, ("lightning",))["lightning_plan.py"][0]).body
    return {node.targets[0].id: ast.literal_eval(node.value) for node in body if isinstance(node, ast.Assign)}


def compare(plan: Plan, found: dict) -> None:
    s, w = plan.strategy, plan.workload
    kinds = {0: {}, 2: {"sharding_strategy": "SHARD_GRAD_OP"}, 3: {"sharding_strategy": "FULL_SHARD"}}
    hybrid = {"sharding_strategy": "HYBRID_SHARD", "device_mesh": [s.dp_replicate, s.dp_shard]}
    mixed = {"param_dtype": "bfloat16", "reduce_dtype": "float32", "buffer_dtype": "bfloat16"}
    assert found == {
        "MICRO_BATCH": s.micro_batch, "SEQ_LEN": w.seq_len, "RECOMPUTE": set(layers_of(plan)) == {"full"},
        "TRAINER": {
            "num_nodes": plan.cluster.hosts_used, "accumulate_grad_batches": s.micro_batches,
            "devices": plan.cluster.devices_used // plan.cluster.hosts_used,
            "precision": {"bf16": "bf16-mixed", "fp32": "32-true"}[w.precision],
        },
        "STRATEGY": hybrid if s.zero and s.dp_replicate > 1 else kinds[s.zero],
        "TYPES": mixed if s.zero and w.precision == "bf16" else {},
    }  # fmt: skip
    assert s.tp == s.cp == s.pp == s.ep == s.etp == 1
    assert set(layers_of(plan)) <= {"full", "none"}


@pytest.mark.parametrize("number", EXPRESSIBLE, ids=lambda n: NAMES[n])
def test_every_value_is_the_plans(number):
    found = constants(golden(number))

    compare(golden(number), found)
    checked("lightning", flat({key.lower(): found[key] for key in ("TRAINER", "STRATEGY", "TYPES")}))


def test_the_strategy_that_is_made(monkeypatch):
    """With stand-ins that keep what they are called with."""
    made = {name: lambda _name=name, **given: (_name, given) for name in ("Trainer", "DDPStrategy", "FSDPStrategy")}
    modules = {
        "torch": types.SimpleNamespace(bfloat16="bf16", float32="fp32"),
        "torch.distributed": None, "lightning": types.SimpleNamespace(Trainer=made["Trainer"]),
        "torch.distributed.fsdp": types.SimpleNamespace(MixedPrecision=lambda **given: given),
        "lightning.pytorch": None,
        "lightning.pytorch.strategies": types.SimpleNamespace(**{k: made[k] for k in ("DDPStrategy", "FSDPStrategy")}),
    }  # fmt: skip
    for name, stand_in in modules.items():
        module = types.ModuleType(name)
        vars(module).update(vars(stand_in) if stand_in else {})
        monkeypatch.setitem(sys.modules, name, module)
    names: dict = {}
    exec(export(golden(9), ("lightning",))["lightning_plan.py"][0], names)
    kind, given = names["trainer"](int, max_steps=7)

    assert kind == "Trainer"
    assert (given["max_steps"], given["num_nodes"], given["devices"]) == (7, 1, 8)
    assert given["strategy"] == (
        "FSDPStrategy",
        {
            "sharding_strategy": "HYBRID_SHARD", "device_mesh": (2, 4), "auto_wrap_policy": {int},
            "activation_checkpointing_policy": {int},
            "mixed_precision": {"param_dtype": "bf16", "reduce_dtype": "fp32", "buffer_dtype": "bf16"},
        },
    )  # fmt: skip
    exec(export(golden(25), ("lightning",))["lightning_plan.py"][0], names)
    assert names["strategy"](int) == ("DDPStrategy", {})


def test_what_a_host_runs(tmp_path):
    words = host_words(golden(9), "lightning", tmp_path, MESHWRIGHT_PROGRAM="train.py")

    assert words[-1] == "train.py"


@pytest.mark.parametrize(
    ("number", "changes", "text"),
    [
        (1, {}, r"pp = 4: it has no pipeline.* cp = 2: it has no context.* tp = 2: ModelParallelStrategy takes sizes"),
        (26, {}, r"ep = 4: it has no expert parallelism"),
        (9, {"zero": 1}, "ZeRO-1: .*--pin zero=2 or --pin zero=3"),
        (9, {"zero": 2}, "ZeRO-2 with dp_replicate = 2: HYBRID_SHARD shards weights too; --pin zero=3"),
        (2, {}, "recompute of part of the layers: 31 layers selective, 49 none"),
        (9, {"recompute": [[(32, "selective")]]}, "selective recompute"),
        (25, {"recompute": [[(4, "full")]]}, "recompute with DDP"),
    ],
)
def test_refusals(number, changes, text):
    with pytest.raises(Unsupported, match=text):
        export(rewritten(golden(number), **changes), ("lightning",))
