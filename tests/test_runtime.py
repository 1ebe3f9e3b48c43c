"""Plans at work: gradients of parallel jobs against one process's, and what the runtime refuses.

One gloo job per world size runs every case of that size in turn (``gradient_worker.py``).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from gradient_cases import CASES, MATRIX_CASES, Case  # noqa: E402
from plans import TINY_LLAMA, llama_parameters, make_mixed_plan, make_part, make_plan, make_stage  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from planner.checks.verify_schedule import work_order  # noqa: E402
from planner.errors import BadInput, Unsupported  # noqa: E402
from planner.mixed.launch import job_of  # noqa: E402
from planner.runtime.limits import check_trainer  # noqa: E402
from planner.runtime.parallelize import parallelize  # noqa: E402
from planner.runtime.recompute import kinds_by_layer, recomputing  # noqa: E402
from planner.runtime.small_llama import SmallLlama  # noqa: E402
from planner.runtime.train import synthetic_batch  # noqa: E402


def named(cases: list[Case]) -> Any:
    """Parametrise over cases, by their names."""
    return pytest.mark.parametrize("case", cases, ids=[f"{case.name} on {case.world}" for case in cases])


@named([case for case in CASES if case.mutation is None])
def test_gradients_equal_a_single_process(case, findings):
    compared(case, findings(case.world)[case.name])


def compared(case: Case, found: dict[str, Any]) -> None:
    """Loss and gradients, against a single process's on the same micro-batches."""
    assert found["covered"], "the ranks together do not hold every parameter"
    assert found["loss"] == pytest.approx(found["wanted_loss"], rel=case.tolerance / 10)
    assert found["error"] < case.tolerance


@pytest.mark.matrix
@named(MATRIX_CASES)
def test_options_one_by_one(case, findings):
    compared(case, findings(case.world, "matrix")[case.name])


@pytest.mark.matrix
@named([case for case in CASES if case.mutation is not None])
def test_a_job_with_a_part_taken_out_is_noticed(case, findings):
    """The comparison above would fail if this exchange or division were missing."""
    assert findings(case.world, "matrix")[case.name]["error"] > 0.5


@named([case for case in CASES if case.exchanges is not None])
def test_exchanges_and_kept_tensors_are_what_the_cost_model_charges(case, findings):
    assert findings(case.world)[case.name]["exchanges"] == case.exchanges


@named([case for case in CASES if case.strategy.get("schedule") or case.strategy.get("virtual_stages", 1) > 1])
def test_the_order_that_runs_is_the_priced_one(case, findings):
    """Also where it is torch's own, of interleaved stages."""
    plan = case.plan().strategy
    priced = work_order(plan.schedule, plan.pp, plan.virtual_stages, plan.micro_batches, plan.in_flight)

    ran = findings(case.world)[case.name]["order"]
    assert [[tuple(work) for work in device] for device in ran] == [list(itertools.chain(*it)) for it in priced]


def test_stages_hold_what_the_plan_says(findings):
    """Stage 0 of 1 + 3 layers has one layer (9 parameters) and the embedding, stage 1 three layers, norm and head."""
    assert findings(2)["pp2, uneven, zb-h1"]["held"] == [9 + 1, 3 * 9 + 2]


class Operators(TorchDispatchMode):
    """Counts the operators that run, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.__name__.partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("kind", "products", "silus"), [("none", 14, 0), ("selective", 14, 1), ("full", 20, 1)])
def test_what_recomputing_runs_again(kind, products, silus):
    """A layer has 7 matrix products: the backward pass has two for each, and a third where they are recomputed.

    The last product of the layer is not needed again: nothing in its backward pass reads its result.
    """
    model = SmallLlama(TINY_LLAMA).model
    layer = recomputing(model.layers[0], kind)
    hidden = torch.randn(2, 8, 32, requires_grad=True)
    rotation = model.rotary_emb(hidden, position_ids=torch.arange(8).unsqueeze(0))
    output = layer(hidden, position_embeddings=rotation)
    with Operators() as backward:
        output.sum().backward()

    assert backward.counts["mm"] == products
    assert backward.counts["silu"] == silus


def test_recompute_runs_cover_the_layers_in_order():
    assert kinds_by_layer([[(1, "full"), (2, "none")], [(1, "selective")]]) == ["full", "none", "none", "selective"]


ROPES = {
    "default": {"rope_theta": 500000.0},
    "llama3": {
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("extra", [{}, {"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}])
def test_small_llama_is_transformers_llama(rope, extra):
    """Same names, same number of parameters, same logits with the same weights."""
    transformers = pytest.importorskip("transformers")
    config = TINY_LLAMA | ROPES[rope] | extra
    ours = SmallLlama(config)
    options = {key: value for key, value in config.items() if key != "model_type"}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options))
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randint(0, config["vocab_size"], (2, 48), generator=torch.Generator().manual_seed(0))

    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert sum(p.numel() for p in ours.parameters()) == llama_parameters(config)
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)


def test_synthetic_sequences_follow_their_rule():
    plan = make_plan(micro_batch=3, micro_batches=2)
    inputs, targets = synthetic_batch(plan, number=4, seed=0)

    assert inputs.shape == targets.shape == (6, plan.workload.seq_len)
    steps = (targets - inputs) % TINY_LLAMA["vocab_size"]
    assert set(steps.unique().tolist()) <= {1, 2}
    assert (steps == steps[:, :1]).all()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"dp_shard": 2, "ep": 2}, "ep = 2: no experts were found in SmallLlama; pin ep=1"),
        ({"tp": 2, "etp": 2}, "etp = 2: no experts were found in SmallLlama; pin etp=1"),
        ({"precision": "fp8"}, "trains in bf16 or fp32"),
        ({"tp": 2, "seq_len": 15}, "tp = 2 does not divide seq_len = 15"),
        ({"tp": 3, "seq_len": 15}, "tp = 3 neither divides 2 key-value heads nor is a multiple; pin a tp that is"),
    ],
)
def test_plans_that_the_runtime_refuses(fields, text):
    with pytest.raises(Unsupported, match=text):
        make_plan(**fields).apply(SmallLlama(TINY_LLAMA))


def test_a_tied_head_is_refused_where_stages_differ():
    """In the trainer too, before the job."""
    config = TINY_LLAMA | {"tie_word_embeddings": True}
    stages = [make_stage(0, 1, tp=2, micro_batch=2), make_stage(1, 3, dp=2, zero=2)]
    job = job_of(make_mixed_plan(stages, [make_part("a", devices=4), make_part("b", devices=4)]))
    tied = dataclasses.replace(job, model=job.model.model_copy(update={"config": config}))
    for refuse in (lambda: parallelize(tied, SmallLlama(config)), lambda: check_trainer(tied)):
        with pytest.raises(Unsupported, match=r"share one weight.*differ in tp, dp or ZeRO; pin tp and zero"):
            refuse()


@pytest.mark.parametrize(("rules", "said"), [(None, "a decoder one by one.*pin tp and zero"), ({"a": "b"}, "rules")])
def test_alike_stages_on_hosts_of_unequal_processes_are_called_so(rules, said):
    """Three devices a stage, and one part has hosts of two."""
    stages = [make_stage(0, 1, dp=3), make_stage(1, 3, dp=3)]
    found = make_mixed_plan(stages, [make_part("a", hosts=2, devices=2), make_part("b", devices=3)])
    with pytest.raises(Unsupported, match=f"differ in tp, dp or ZeRO, or whose hosts start unequal.*{said}"):
        found.apply(torch.nn.Linear(2, 2), rules=rules)


def test_a_plan_of_another_model_is_refused():
    with pytest.raises(BadInput, match="parameters = 35104, but the module has 37152; plan again"):
        make_plan().apply(SmallLlama(TINY_LLAMA | {"vocab_size": 96}))


def test_a_batch_that_does_not_add_up_is_refused():
    plan = make_plan(micro_batch=2, micro_batches=2)
    broken = plan.model_copy(update={"workload": plan.workload.model_copy(update={"global_batch": 5})})
    with pytest.raises(BadInput, match=r"2 \* 2 \* 1 = 4, but global_batch = 5"):
        broken.apply(SmallLlama(TINY_LLAMA))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers_per_stage": [3, 1]}, r"layers_per_stage is 3\+1, but recompute names 2\+2 layers; plan again"),
        ({"recompute": [[(4, "none")]]}, r"2\+2, but recompute names 4 layers"),
        ({"layers_per_stage": [4]}, r"pp \* virtual_stages = 2 \* 1 = 2 stages, but layers_per_stage has 1"),
        ({"virtual_stages": 2, "schedule": "interleaved"}, r"2 \* 2 = 4 stages, but layers_per_stage has 2"),
        ({"virtual_stages": 2}, "schedule=1f1b has virtual_stages = 1, and not 2"),
        ({"schedule": "zbv"}, "schedule=zbv has virtual_stages = 2, and not 1"),
    ],
)
def test_stages_that_do_not_add_up_are_refused_before_the_job(changes, said):
    plan = make_plan(pp=2)
    with pytest.raises(BadInput, match=said):
        check_trainer(plan.model_copy(update={"strategy": plan.strategy.model_copy(update=changes)}))


def test_a_job_of_another_size_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(BadInput, match=r"1\*2\*1\*1\*2 = 4, but the job has 3 processes"):
        make_plan(dp_shard=2, pp=2, zero=1).apply(SmallLlama(TINY_LLAMA))


def test_outside_a_job_is_refused(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(BadInput, match="processes that torchrun started"):
        make_plan().apply(SmallLlama(TINY_LLAMA))


@pytest.mark.parametrize("what", [None, "llama-3.1-8b"])
def test_what_is_no_module_is_refused(what):
    with pytest.raises(BadInput, match=r"apply takes a torch module, and (NoneType|str) is none"):
        make_plan().apply(what)


@pytest.mark.parametrize(
    ("model_type", "options", "tp", "text"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 64}, 1, "not built as the runtime expects"),
        ("gemma", {"head_dim": 8}, 1, "its forward may do more"),
        ("mistral", {"sliding_window": 8}, 1, "no windowed attention mask"),
        ("qwen3", {"head_dim": 8}, 2, "no rule for the layers' parameter 'self_attn.q_norm.weight'"),
    ],
)
def test_models_that_the_runtime_refuses(model_type, options, tp, text):
    """Running their layers one after another would compute something else than they do, or split them wrongly."""
    transformers = pytest.importorskip("transformers")
    sizes = {key: TINY_LLAMA[key] for key in TINY_LLAMA if key.startswith(("hidden", "inter", "num", "vocab"))}
    config = transformers.AutoConfig.for_model(model_type, **({} if model_type == "gpt2" else sizes) | options)
    model = transformers.AutoModelForCausalLM.from_config(config)
    plan = make_plan(config=None, tp=tp)
    parameters = sum(p.numel() for p in model.parameters())
    plan = plan.model_copy(update={"model": plan.model.model_copy(update={"parameters": parameters})})

    with pytest.raises((BadInput, Unsupported)) as refused:
        plan.apply(model)
    assert text in str(refused.value)
