"""megatron.sh, read back word by word: every flag known, every value the plan's, every rank on the plan's host."""

from __future__ import annotations

import re

import pytest
from golden_plans import NAMES, alike, golden, host_words, hosts_agree, layers_of, rewritten
from plans import make_plan

from cost_models.strategy import DENSE_ORDER
from planner.errors import BadInput, PlannerBug, Unsupported
from planner.export import export
from planner.export.facts import checked, target
from planner.export.megatron import PP_INSIDE_DP, layout
from planner.result import Plan
from planner.strategy_record import OffloadRecord

PROGRAM = "my pretrain_gpt.py"
EXPRESSIBLE = [4, *range(9, 19), *range(21, 27)]


def read_words(words: list[str]) -> dict:
    """Flags of a command line by name, read by the facts' kinds; an unknown flag is an error."""
    keys, found = target("megatron").keys, {}
    while words:
        name, words = words[0].removeprefix("--"), words[1:]
        kind = keys[name].kind
        until = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
        values, words = words[:until], words[until:]
        convert = {"whole": int, "real": float}.get(kind, str)
        assert len(values) == 1 or kind in ("yes", "words")
        found[name] = True if kind == "yes" else values if kind == "words" else convert(values[0])
        assert kind != "yes" or not values
    return checked("megatron", found)


def stages_of(text: str) -> list[list[str]]:
    """Letters of every stage of a layout."""
    long = re.sub(r"(.)\*(\d+)", lambda found: found[1] * int(found[2]), text)
    return [list(stage) for stage in long.split("|")]


def recomputed(flags: dict, sizes: list[int], selective: str = "selective") -> list[str]:
    """What every layer recomputes under Megatron's rules."""
    if flags.get("recompute-granularity") is None:
        return ["none"] * sum(sizes)
    if flags["recompute-granularity"] == "selective":
        assert "recompute-method" not in flags and "recompute-num-layers" not in flags
        return [selective] * sum(sizes)
    n = flags["recompute-num-layers"]
    if flags["recompute-method"] == "uniform":
        return ["full"] * sum(sizes) if n == 1 else []
    return [kind for size in sizes for kind in ["full"] * min(n, size) + ["none"] * max(0, size - n)]


def compare(plan: Plan, flags: dict) -> None:
    """Every field of the strategy and of the workload against the flags; what is left over is an error."""
    s, w, left = plan.strategy, plan.workload, dict(flags)
    take = left.pop
    assert (take("tensor-model-parallel-size"), take("pipeline-model-parallel-size")) == (s.tp, s.pp)
    assert (take("context-parallel-size"), take("expert-model-parallel-size")) == (s.cp, s.ep)
    assert take("expert-tensor-parallel-size") == s.etp
    assert take("num-layers") == plan.model.layers
    assert (take("seq-length"), take("micro-batch-size")) == (w.seq_len, s.micro_batch)
    copies = plan.cluster.devices_used // (s.tp * s.cp * s.pp)
    assert take("global-batch-size") == w.global_batch == s.micro_batches * s.micro_batch * copies
    stages = stages_of(take("pipeline-model-parallel-layout", "E" + "t" * plan.model.layers + "L"))
    assert [stage.count("t") for stage in stages] == s.layers_per_stage
    assert len(stages) == s.pp * s.virtual_stages
    assert (stages[0][0], stages[-1][-1]) == ("E", "L")
    assert take("sequence-parallel", False) == (s.tp > 1)
    assert take("cp-comm-type", None) == (["p2p"] if s.cp > 1 else None)
    assert take("bf16", False) == (w.precision == "bf16")
    assert take("optimizer") == w.optimizer
    assert take("use-distributed-optimizer", False) == (s.zero > 0)
    assert take("num-distributed-optimizer-instances", 1) == (s.dp_replicate if s.zero else 1)
    strategy = take("data-parallel-sharding-strategy", None)
    assert strategy == {2: "optim_grads", 3: "optim_grads_params"}.get(s.zero)
    assert take("use-megatron-fsdp", False) == (s.zero > 1)
    assert take("ckpt-format", None) == ("fsdp_dtensor" if s.zero > 1 else None)
    assert take("outer-dp-sharding-strategy", None) == ("no_shard" if s.zero > 1 else None)
    assert take("overlap-grad-reduce") is w.stack.dp_overlap
    assert take("overlap-param-gather", False) == (s.zero > 0)
    assert recomputed(flags, s.layers_per_stage) == layers_of(plan)
    for name in ("granularity", "method", "num-layers", "modules"):
        left.pop(f"recompute-{name}", None)
    experts = "num_local_experts" in plan.model.config or "n_routed_experts" in plan.model.config
    assert take("moe-grouped-gemm", False) == experts
    assert take("moe-token-dispatcher-type", None) == ("alltoall" if experts else None)
    take("use-tp-pp-dp-mapping", None)
    assert left == {}


@pytest.mark.parametrize("number", EXPRESSIBLE, ids=lambda n: NAMES[n])
def test_every_value_is_the_plans(number, tmp_path):
    plan = golden(number)
    words = host_words(plan, "megatron", tmp_path, "0", MESHWRIGHT_PROGRAM=PROGRAM)
    launched = dict(zip(words[2::2], words[3::2], strict=False))
    flags = read_words(words[words.index(PROGRAM) + 1 :])

    compare(plan, flags)
    assert int(launched["--nnodes"]) * int(launched["--nproc-per-node"]) == plan.cluster.devices_used
    script = (tmp_path / "megatron.sh").read_text()
    order = PP_INSIDE_DP if flags.get("use-tp-pp-dp-mapping") else DENSE_ORDER
    assert hosts_agree(plan, script, order)


@pytest.mark.parametrize("number", [n for n in range(len(NAMES)) if n not in EXPRESSIBLE], ids=lambda n: NAMES[n])
def test_what_it_cannot_say_is_refused_by_name(number):
    mixed = len(set(layers_of(golden(number)))) > 1
    text = "recompute of part of the layers: .*--pin recompute=none or --pin recompute=full"
    with pytest.raises(Unsupported, match=text if mixed else "dp_replicate = .* with experts.*--pin dp_replicate=1"):
        export(golden(number), ("megatron",))


def test_a_host_is_started_under_the_number_that_the_framework_gives_it(tmp_path):
    """Two domains of nine stages, dp across them: Megatron puts dp inside pp, so hosts are renumbered."""
    words = host_words(golden(4), "megatron", tmp_path, MESHWRIGHT_PROGRAM=PROGRAM, NODE_RANK="2")

    assert words[words.index("--node-rank") + 1] == "4"


def test_pp_inside_dp_is_a_flag_where_hosts_cannot_be_renumbered():
    """tp 2 x pp 2 fill a host, dp is across: with dp, pp nested the other way a host would hold two stages' halves."""
    placement = {axis: [1, 1] for axis in DENSE_ORDER} | {"tp": [2, 1], "pp": [2, 1], "dp_shard": [1, 2]}
    cluster = {"hosts_used": 2, "devices_used": 8, "devices_per_host": 4}
    plan = _on(alike(golden(0), "none"), cluster, tp=2, pp=2, dp_shard=2, edp=4, micro_batches=256, placement=placement)

    with pytest.raises(Unsupported, match="placement: tp 2 x 1, dp_shard 1 x 2, pp 2 x 1"):
        export(plan, ("megatron",))  # experts' dp is 4, and that mapping wants it to be dp
    inside = _on(plan, cluster, tp=1, cp=1, pp=4, dp_shard=2, edp=2, layers_per_stage=[8] * 4,
                 recompute=[[(8, "none")]] * 4, placement=placement | {"tp": [1, 1], "pp": [4, 1]})  # fmt: skip
    text = export(inside, ("megatron",))["megatron.sh"][0]
    assert "--use-tp-pp-dp-mapping" in text
    assert hosts_agree(inside, text, PP_INSIDE_DP)


def _on(plan: Plan, cluster: dict, **strategy) -> Plan:
    return rewritten(plan, **strategy).model_copy(update={"cluster": plan.cluster.model_copy(update=cluster)})


@pytest.mark.parametrize(("number", "one"), [(4, True), (13, False), (9, False)])
def test_one_connection_where_tp_and_cp_need_it_and_fsdp_does_not_forbid_it(number, one):
    for target_name in ("megatron", "megatron-bridge"):
        text = export(golden(number), (target_name,))[f"{target_name}.sh"][0]
        assert ("export CUDA_DEVICE_MAX_CONNECTIONS=1\n" in text) is one


def test_layouts():
    assert layout([3]) == "Et*3L"
    assert layout([1, 2, 1]) == "Et|t*2|tL"


def test_the_first_layers_of_every_stage_in_full():
    runs = [[(3, "full"), (14, "none")], [(3, "full"), (12, "none")]]
    text = export(rewritten(golden(0), recompute=runs), ("megatron",))["megatron.sh"][0]

    assert "--recompute-method\n    block\n    --recompute-num-layers\n    3\n" in text
    with pytest.raises(Unsupported, match="5 layers full, 27 none"):
        runs = [[(3, "full"), (14, "none")], [(2, "full"), (13, "none")]]
        export(rewritten(golden(0), recompute=runs), ("megatron",))


@pytest.mark.parametrize(
    ("number", "selective", "modules"),
    [(0, "attention", "core_attn"), (0, "network", "mlp\n    moe"), (16, "activation", "moe_act")],
)
def test_modules_that_repeat_what_the_plan_repeats(number, selective, modules):
    plan = rewritten(alike(golden(number), "selective"), stack={"selective": selective})

    assert f"selective\n    --recompute-modules\n    {modules}\n" in export(plan, ("megatron",))["megatron.sh"][0]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"stack": {"selective": "pointwise"}}, "selective recompute: the plan repeats norms and activation functions"),
        ({"stack": {"selective": "activation"}}, "selective recompute: .* moe_act those of routed experts only"),
        ({"workload": {"tuning": "lora"}}, "tuning: the plan trains lora adapters"),
        ({"workload": {"packed_len": 100.0}}, "packed sequences: examples of 100 tokens"),
        ({"stack": {"reduce_bytes": 2.0}}, "bytes a parameter: the stack sets reduce_bytes"),
    ],
)
def test_refusals(changes, text):
    with pytest.raises(Unsupported, match=text):
        export(rewritten(alike(golden(0), "selective"), **changes), ("megatron",))


@pytest.mark.parametrize(
    ("number", "changes", "text"),
    [
        (16, {"ep": 3, "etp": 1, "edp": 8}, "ep = 3 does not divide 8 experts"),
        (16, {"edp": 3}, "ep \\* etp \\* edp = 8 \\* 1 \\* 3, but a stage has 8 devices"),
        (9, {"micro_batches": 7}, "micro_batch \\* micro_batches \\* dp = 8 \\* 7 \\* 8, but global_batch = 512"),
        (14, {"tp": 3}, "tp = 3 does not divide 128 attention heads"),
        (14, {"layers_per_stage": [1]}, "1 stages are listed, but pp \\* virtual_stages = 32 \\* 2"),
        (9, {"layers_per_stage": [31]}, "the stages hold 31 layers of 32; the runs of layers that recompute alike"),
        (9, {"recompute": [[(31, "full")]]}, "the runs of layers that recompute alike do not add up"),
        (9, {"recompute": []}, "the runs of layers that recompute alike do not add up"),
        (9, {"placement": {}}, "the placement of dp_shard is \\[\\], but dp_shard = 4"),
        (9, {"dp_shard": 2**24, "dp_replicate": 2**24}, "the degrees multiply to 281474976710656, and the plan uses 8"),
    ],
)
def test_a_plan_that_does_not_add_up(number, changes, text):
    """Megatron starts with ep = 3 and 4 experts, and dies when all ranks have met."""
    with pytest.raises(BadInput, match=text):
        export(rewritten(golden(number), **changes), ("megatron",))


def test_hybrids_are_cut_by_their_own_pattern():
    plan = alike(golden(0), "none")
    config = plan.model.config | {"model_type": "nemotron_h"}
    hybrid = plan.model_copy(update={"model": plan.model.model_copy(update={"config": config})})
    with pytest.raises(Unsupported, match="pp = 2: nemotron_h is cut by --hybrid-layer-pattern"):
        export(hybrid, ("megatron",))


def test_precisions():
    def flags(precision, **stack):
        plan = rewritten(golden(9), workload={"precision": precision}, stack=stack)
        text = export(plan, ("megatron",))["megatron.sh"][0]
        return re.findall(r"--(fp\S+|bf16)(?:\n    ([a-z]\S+))?", text)

    assert flags("fp32") == []
    assert flags("fp16") == [("fp16", "")]
    assert flags("fp8") == [("bf16", ""), ("fp8-format", "hybrid"), ("fp8-recipe", "tensorwise")]
    assert flags("fp8", block_scaled=True)[-1] == ("fp8-recipe", "blockwise")
    assert flags("fp4") == [("bf16", ""), ("fp4-format", "e2m1"), ("fp4-recipe", "nvfp4")]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [("tensor-parallel", 2, "has no setting"), ("micro-batch-size", 0, "between 1"), ("bf16", "yes", "is no yes"),
     ("recompute-modules", ["norms"], "'norms' is none of"), ("seq-length", True, "is no whole")],
)  # fmt: skip
def test_a_flag_or_value_that_it_does_not_know_is_never_written(key, value, text):
    with pytest.raises(PlannerBug, match=text):
        checked("megatron", {key: value})


def leaving(layers: list[int], tensors: str = "activations", tier: str = "dram", share: float = 1.0, **made) -> Plan:
    """Four layers on four devices, of which so many first ones let tensors go; of an empty list all do."""
    plan = make_plan(**{"dp_shard": 4, "zero": 1, "precision": "bf16", **made})
    offload = OffloadRecord(tensors=tensors, tier=tier, share=share)
    return rewritten(plan, offloads=[offload], activations_offloaded=layers)


def test_activations_of_first_layers_leave_as_the_plan_says(tmp_path):
    """The flag counts first layers, which TransformerEngine copies to the host; the rest of the line is the same."""
    some, flags = leaving([2]), []
    for k, plan in enumerate((some, rewritten(some, offloads=[], activations_offloaded=[]))):
        words = host_words(plan, "megatron", tmp_path / str(k), MESHWRIGHT_PROGRAM=PROGRAM)
        flags.append(read_words(words[words.index(PROGRAM) + 1 :]))

    assert flags[0].pop("cpu-offloading-num-layers") == 2
    assert flags[0] == flags[1]


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (leaving([]), "offloading of every layer: activations of all 4 layers leave, and it keeps those of the last"),
        (leaving([4]), "offloading of every layer"),
        (leaving([2], recompute="full"), "offloading with recompute: .*--pin recompute=none"),
        (leaving([2], zero=3), "offloading with ZeRO-3: .*--pin zero=1 or --pin zero=0"),
        (leaving([2], share=0.5), "offloading: the plan keeps 50% of activations in dram; plan without --tiers"),
        (leaving([2], tier="nvme"), "offloading: the plan keeps 100% of activations in nvme"),
        (leaving([2], "checkpoints"), "offloading: the plan keeps 100% of checkpoints in dram"),
    ],
)
def test_other_offloads_are_refused_by_name(plan, said):
    with pytest.raises(Unsupported, match=said):
        export(plan, ("megatron",))


def test_no_pipeline_offloads_and_no_recipe_does():
    with pytest.raises(Unsupported, match=r"offloading with pp = 2: .*--pin pp=1"):
        export(leaving([1, 1], pp=2, dp_shard=2), ("megatron",))
    with pytest.raises(Unsupported, match="offloading: the plan keeps 100% of activations in dram"):
        export(leaving([2]), ("megatron-bridge",))
