"""torchtitan_plan.py and torchtitan.sh: settings read back as data and through a config, each against the plan."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
import types

import pytest
from golden_plans import NAMES, alike, golden, host_words, hosts_agree, layers_of, rewritten
from plans import TINY_LLAMA, make_plan

from cost_models.strategy import DENSE_ORDER
from planner.errors import Unsupported
from planner.export import export
from planner.export.facts import checked, flat, target
from planner.export.torchtitan import module_names
from planner.result import Plan

EXPRESSIBLE = [4, 9, 10, 13, 14, 15, 16, 18, *range(21, 26)]


TP_INSIDE = {"tp": [2, 1], "cp": [1, 1], "dp_shard": [4, 4], "dp_replicate": [1, 1], "pp": [1, 2]}


def text_of(plan: Plan) -> str:
    return export(plan, ("torchtitan",))["torchtitan_plan.py"][0]


def constants(text: str) -> dict:
    """The file's constants, read without running it."""
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
    }


def compare(plan: Plan, found: dict) -> None:
    s, w, parallel, training = plan.strategy, plan.workload, dict(found["parallelism"]), dict(found["training"])
    take = parallel.pop
    degrees = {"data_parallel_replicate": s.dp_replicate, "data_parallel_shard": s.dp_shard, "tensor_parallel": s.tp,
               "context_parallel": s.cp, "expert_parallel": s.ep, "pipeline_parallel": s.pp}  # fmt: skip
    assert {axis: take(f"{axis}_degree") for axis in degrees} == degrees
    assert take("fsdp_reshard_after_forward") == ("always" if s.zero == 3 else "never")
    assert s.zero in ((0, 1) if s.pp > 1 else (0, 2, 3)), "stages hold whole gradients"
    assert take("enable_sequence_parallel") is True
    modules = take("module_fqns_per_model_part", None)
    if s.pp > 1:
        assert take("pipeline_parallel_schedule") == {"1f1b": "1F1B", "interleaved": "Interleaved1F1B"}[s.schedule]
        assert take("pipeline_parallel_microbatch_size") == s.micro_batch
        assert [sum(name.startswith("layers.") for name in part) for part in modules] == s.layers_per_stage
        in_order = ["tok_embeddings", *(f"layers.{i}" for i in range(plan.model.layers)), "norm", "lm_head"]
        assert [name for part in modules for name in part] == in_order
        assert training.pop("local_batch_size") == s.micro_batch * s.micro_batches
    else:
        assert modules is None
        assert training.pop("local_batch_size") == s.micro_batch
    assert parallel == {}
    assert training == {
        "global_batch_size": w.global_batch, "seq_len": w.seq_len, "dtype": "float32",
        "mixed_precision_param": {"bf16": "bfloat16", "fp32": "float32"}[w.precision],
        "mixed_precision_reduce": "float32", "disable_cuda_graphs": True,
    }  # fmt: skip


@pytest.mark.parametrize("number", EXPRESSIBLE, ids=lambda n: NAMES[n])
def test_every_value_is_the_plans(number):
    plan, files = golden(number), export(golden(number), ("torchtitan",))
    found = constants(files["torchtitan_plan.py"][0])

    compare(plan, found["SETTINGS"])
    checked("torchtitan", flat(found["SETTINGS"]) | {"activation_checkpoint": found["RECOMPUTE"]})
    assert {found["RECOMPUTE"]} == set(layers_of(plan))
    assert found["LAYERS"] == plan.model.layers
    assert hosts_agree(plan, files["torchtitan.sh"][0], DENSE_ORDER)


def test_what_a_host_runs(tmp_path):
    words = host_words(golden(9), "torchtitan", tmp_path, "--training.steps", "7")

    start = ["-m", "torchtitan.train", "--module", "torchtitan_plan", "--config", "planned", "--training.steps", "7"]
    assert words[-8:] == start


def test_a_config_of_the_users_becomes_the_plans(monkeypatch):
    """Run with stand-ins that have torchtitan's fields: what is not the plan's stays the user's."""
    module = run(golden(14), monkeypatch, layers=126)
    config = module["planned"]()

    assert config.parallelism.pipeline_parallel_schedule == "Interleaved1F1B"
    assert config.training.seq_len == 8192
    assert config.activation_checkpoint is None
    assert config.optimizer == "mine"
    assert run(golden(9), monkeypatch, layers=32)["planned"]().activation_checkpoint == "full ac"


def test_another_model_is_refused(monkeypatch):
    with pytest.raises(SystemExit, match="the plan is for 126 layers, and the model of the config has 32"):
        run(golden(14), monkeypatch, layers=32)["planned"]()


def test_no_config_is_refused_in_words(tmp_path):
    (tmp_path / "torchtitan_plan.py").write_text(text_of(golden(9)))
    code = "import torchtitan_plan; torchtitan_plan.planned()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.startswith("torchtitan_plan.py: MESHWRIGHT_CONFIG is not set")


def run(plan: Plan, monkeypatch, layers: int) -> dict:
    """The file's names, with dataclasses of torchtitan's sections and a config of the user's to start from."""
    sections = {"parallelism": {}, "training": {}}
    for key in target("torchtitan").keys:
        section, _, field = key.partition(".")
        if field:
            sections[section][field] = None
    made = {name: dataclasses.make_dataclass(name, [(f, object, None) for f in fields])()
            for name, fields in sections.items()}  # fmt: skip
    model = types.SimpleNamespace(model=types.SimpleNamespace(layers=[0] * layers))
    fields = {**made, "activation_checkpoint": None, "optimizer": "mine", "model_spec": model}
    config = dataclasses.make_dataclass("Config", list(fields))(**fields)
    recompute = types.ModuleType("torchtitan.distributed.activation_checkpoint")
    recompute.FullAC = types.SimpleNamespace(Config=lambda: "full ac")
    recompute.SelectiveAC = types.SimpleNamespace(Config=lambda: "selective ac")
    mine = types.ModuleType("mine")
    mine.config = lambda: config
    for name in ("torchtitan", "torchtitan.distributed"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, recompute.__name__, recompute)
    monkeypatch.setitem(sys.modules, "mine", mine)
    monkeypatch.setenv("MESHWRIGHT_CONFIG", "mine:config")
    names: dict = {}
    exec(compile(text_of(plan), "torchtitan_plan.py", "exec"), names)
    return names


def test_modules_of_uneven_stages():
    assert module_names([1, 2]) == [["tok_embeddings", "layers.0"], ["layers.1", "layers.2", "norm", "lm_head"]]


def test_selective_recompute_of_every_second_product():
    plan = rewritten(alike(golden(9), "selective"), stack={"selective": "alternate"})

    assert constants(text_of(plan))["RECOMPUTE"] == "selective"


@pytest.mark.parametrize(
    ("number", "changes", "text"),
    [
        (0, {}, "plan: recompute of part of the layers: .*--pin recompute=none"),
        (9, {"zero": 1}, "ZeRO-1 without a pipeline: .*--pin zero=2 or --pin zero=3"),
        (12, {}, "ZeRO-2 under a pipeline: .*--pin zero=1 or --pin pp=1. 10 virtual stages: .*--pin virtual_stages=1"),
        (20, {}, "ZeRO-3 under a pipeline: its stages gather weights once and hold whole gradients"),
        (9, {"recompute": [[(32, "selective")]]}, "selective recompute: its selective policy repeats every second"),
        (17, {"etp": 2, "edp": 2}, "etp = 2: with ep = 8 and tp = 1 its experts have etp 1; --pin etp=1"),
        (17, {"ep": 1, "edp": 32, "tp": 2, "dp_shard": 16, "micro_batch": 4, "placement": TP_INSIDE},
         "etp = 1: with ep = 1 and tp = 2"),
        (19, {}, "dp_replicate = 16 with experts"),
        (9, {"workload": {"precision": "fp8"}}, "precision: the plan is for fp8; --precision bf16 or --precision fp32"),
        (14, {"stack": {"cuda_graphs": True}}, "CUDA graphs with a pipeline"),
    ],
)  # fmt: skip
def test_refusals(number, changes, text):
    with pytest.raises(Unsupported, match=text):
        export(rewritten(golden(number), **changes), ("torchtitan",))


def test_a_stack_whose_stages_gather_once():
    """Plans for that stack count on just what torch's stages do."""
    plan = rewritten(make_plan(pp=2, dp_shard=2, zero=3), stack={"gather_once": True})

    assert constants(text_of(plan))["SETTINGS"]["parallelism"]["fsdp_reshard_after_forward"] == "never"


def test_states_replicated_over_cp():
    with pytest.raises(Unsupported, match=r"states replicated over cp: .* 1 \* 2; --pin zero=2"):
        export(make_plan(dp_replicate=4, cp=2), ("torchtitan",))


def test_models_that_it_cannot_split():
    with pytest.raises(Unsupported, match="tp = 4: it does not repeat the model's 2 key-value heads; --pin tp=2"):
        export(make_plan(tp=4), ("torchtitan",))
    with pytest.raises(Unsupported, match="pp = 2: embedding and head are tied"):
        export(make_plan(pp=2, config=TINY_LLAMA | {"tie_word_embeddings": True}), ("torchtitan",))


def test_a_placement_that_no_order_of_hosts_gives():
    """dp_shard inside a host and cp across: torchtitan puts cp inside."""
    placement = {axis: [1, 1] for axis in DENSE_ORDER} | {"cp": [1, 2], "dp_shard": [2, 1]}
    with pytest.raises(Unsupported, match=r"placement: cp 1 x 2, dp_shard 2 x 1 .*--pin cp=1"):
        export(make_plan(cp=2, dp_shard=2, zero=3, placement=placement), ("torchtitan",))
