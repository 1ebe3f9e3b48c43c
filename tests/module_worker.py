"""Module cases for ``gradient_worker.py``: any module made parallel, against itself in one process."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
import torch_models
from module_cases import ModuleCase
from module_faults import mutation
from plans import make_plan
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from cost_models.model_graph import ModelGraph
from planner.errors import PlannerError
from planner.read_model import torch_module, torch_rules
from planner.read_model.traced_rules import TensorRules
from planner.result import Plan
from planner.runtime import any_module, apply
from planner.runtime.stages import logits_of
from planner.runtime.target_mean import IGNORED, summed_cross_entropy

SEQ, VOCAB, LIMIT = 12, 64, 0.05
LEAST_PART = 0.01
"""Part of a module's largest gradient under which rounding of its terms shows. The bias of keys has no gradient, since
softmax is the same with one number added to all scores: what is left of it in fp32 (ViT: 4e-11 in one process, 1.6e-10
from there under tp, 9e-20 in fp64) is rounding of terms as large as the gradient of their weight, 8e-4."""

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}

LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip

VARIANTS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4}, "phi3": {"pad_token_id": None},
    "phi3, one KV head": {"pad_token_id": None, "num_key_value_heads": 1},
    "qwen3, one KV head": {"num_key_value_heads": 1},
    "llama, one KV head": {"num_key_value_heads": 1},
    "deepseek_v3": LATENT | {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "initializer_range": 0.2,
    },
}  # fmt: skip
"""Sizes of families of transformers besides."""

HAND_WRITTEN = {"moe": 2, "deep": 5}
"""Layers of the decoders with experts in a loop; ``deep`` has parameters outside of all modules at both ends."""

BARE = {"centred": torch_models.Centred, "shared": torch_models.Shared, "grouped": torch_models.Grouped}
"""Decoders without experts."""

T5 = {"d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8, "vocab_size": VOCAB, "dropout_rate": 0.0}


def build(family: str, seed: int) -> nn.Module:
    """A small module of the family, with weights that depend on the seed alone."""
    torch.manual_seed(seed)
    if family in BARE:
        return BARE[family](width=32, layers=2, vocab=VOCAB)
    if family in HAND_WRITTEN:
        kind = torch_models.Scaled if family == "deep" else torch_models.Decoder
        return kind(
            width=32, layers=HAND_WRITTEN[family], vocab=VOCAB, network=lambda: torch_models.Experts(32, inner=40)
        )
    if family == "convolutions":
        return torch_models.Convolutional()
    import transformers

    if family == "vit":
        config = transformers.ViTConfig(**SIZES, image_size=16, patch_size=8, hidden_dropout_prob=0.0)
        return transformers.ViTForImageClassification(config)
    if family == "t5":
        return transformers.T5ForConditionalGeneration(transformers.T5Config(**T5))
    if family == "bert":
        options = SIZES | {"vocab_size": VOCAB, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return transformers.BertForMaskedLM(transformers.BertConfig(**options))
    if family == "classes":
        options = SIZES | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "vocab_size": VOCAB}
        return transformers.BertForSequenceClassification(transformers.BertConfig(**options))
    if family == "gpt2":
        options = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCAB, "n_positions": 48}
        options |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        options = SIZES | {"num_key_value_heads": 2, "vocab_size": VOCAB} | VARIANTS.get(family, {})
    kind = family.partition(",")[0]
    return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **options))


def padded(targets: torch.Tensor) -> torch.Tensor:
    """Targets ``[rows, seq]`` with ends that do not count, of a length that differs by row."""
    seq = targets.shape[1]
    length = seq - torch.arange(len(targets)).mul(3) % seq
    return targets.masked_fill(torch.arange(seq) >= length[:, None], IGNORED)


def batch_of(family: str, rows: int) -> tuple[Any, torch.Tensor]:
    """Inputs and targets of a global batch."""
    generator = torch.Generator().manual_seed(7)
    if family == "vit":
        images = torch.randn(rows, 3, 16, 16, generator=generator)
        return {"pixel_values": images}, torch.randint(0, 2, (rows,), generator=generator)
    if family == "convolutions":
        return torch.randn(rows, 8, 8, 8, generator=generator), torch.randint(0, 10, (rows,), generator=generator)
    tokens = torch.randint(0, VOCAB, (rows, SEQ + 1), generator=generator)
    inputs = tokens[:, :-1]
    if family == "classes":
        return {"input_ids": inputs}, tokens[:, 0] % 2
    if family == "t5":
        return {"input_ids": inputs, "decoder_input_ids": inputs.flip(1)}, tokens[:, 1:]
    return (inputs if family in (*HAND_WRITTEN, *BARE) else {"input_ids": inputs}), tokens[:, 1:]


@functools.cache
def read_of(family: str) -> tuple[ModelGraph, TensorRules]:
    """The family's graph and tensor-parallel rules, read once for all cases, before ranks are forked."""
    module, example = build(family, 1), batch_of(family, 1)[0]
    trace = torch_module.traced(module, torch_module.read_example(module, example))
    with (
        mock.patch.object(torch_module, "traced", lambda *args: trace),
        mock.patch.object(torch_rules, "traced", lambda *args: trace),
    ):
        return torch_module.read_module(module, example, family), torch_rules.tensor_rules(module, example)


@contextlib.contextmanager
def read_once(family: str) -> Iterator[None]:
    """Reading is tested elsewhere: cases of a family share what one reading found."""
    with (
        mock.patch("planner.runtime.blocks.read_module", lambda *args: read_of(family)[0]),
        mock.patch.object(any_module, "tensor_rules", lambda *args: read_of(family)[1]),
        mock.patch.object(any_module, "check_rules", lambda *args: None),
        mock.patch.object(any_module, "mixed_samples", lambda *args: None),
        mock.patch.object(any_module, "check_sequence_kept", lambda *args: None),
        mock.patch.object(
            any_module, "returns_loss", lambda _, example: isinstance(example, dict) and "labels" in example
        ),
    ):
        yield


def plan_for(case: ModuleCase) -> Plan:
    """The case's plan, for just this module."""
    graph = read_of(case.family)[0]
    plan = make_plan(config=None, name=case.family, seq_len=SEQ, layers=graph.layers, **case.strategy)
    planned = {"parameters": graph.parameters, "layers": graph.layers, "digest": graph.digest}
    return plan.model_copy(update={"model": plan.model.model_copy(update=planned)})


def called(module: Callable[..., Any], inputs: Any) -> Any:
    """The module's output."""
    return logits_of(module(**inputs) if isinstance(inputs, dict) else module(inputs))


def labelled(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Inputs with labels, some of them padding, from which a module computes its loss."""
    return inputs | {"labels": padded(inputs["input_ids"])}


def reference(
    module: nn.Module, inputs: Any, targets: torch.Tensor | None, size: int, precision: str = "fp32"
) -> tuple[float, dict[str, Any]]:
    """Loss and gradients of the batch in one process; micro-batch by micro-batch unless the loss is own.

    In bf16 the module runs on 16-bit copies of its weights and inputs too, and gradients add up in fp32: what is
    rounded, and which expert a token goes to, is the same. So is the order in which gradients of what several layers
    read (an encoder's output) are rounded: torch adds up those of one layer before it adds up layers.
    """
    call = module if precision == "fp32" else functools.partial(_in_16_bits, module)
    total = _accumulated(call, inputs, targets, size) if targets is not None else _own(call(**inputs).loss)
    return total, {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in module.named_parameters()}


class _Through(torch.autograd.Function):
    """Tensors as they are; their gradients are whole before any of them goes back further."""

    @staticmethod
    def forward(ctx: Any, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tensors

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return gradients


def enter_together(module: nn.Module, family: str) -> None:
    """Let what each layer is given enter it at once, as fully_shard does to exchange gradients behind it."""

    def entered(inner: nn.Module, args: Any, kwargs: Any) -> Any:
        flat, shape = tree_flatten((args, kwargs))
        at = [i for i, it in enumerate(flat) if isinstance(it, torch.Tensor) and it.requires_grad]
        for i, it in zip(at, _Through.apply(*(flat[i] for i in at)) if at else (), strict=True):
            flat[i] = it
        return tree_unflatten(flat, shape)

    for name in dict.fromkeys(name for layer in read_of(family)[0].modules[1:-1] for name in layer):
        module.get_submodule(name).register_forward_pre_hook(entered, with_kwargs=True)


@contextlib.contextmanager
def routes(kept: list[torch.Tensor], *, again: bool) -> Iterator[None]:
    """Keep the experts that tokens are sent to, call by call; or send them there ``again``."""
    choose, calls = torch_models.Experts.chosen, iter(kept)

    def chosen(experts: nn.Module, shares: torch.Tensor) -> torch.Tensor:
        if again:
            return next(calls)
        kept.append(choose(experts, shares))
        return kept[-1]

    with mock.patch.object(torch_models.Experts, "chosen", chosen):
        yield


def _in_16_bits(module: nn.Module, *inputs: Any, **named: Any) -> Any:
    norms = {name for name, it in module.named_modules() if isinstance(it, nn.modules.batchnorm._BatchNorm)}
    weights = {n: p if n.rpartition(".")[0] in norms else _rounded(p) for n, p in module.named_parameters()}
    args, kwargs = tree_map(_rounded, (inputs, named))
    return torch.func.functional_call(module, weights, args, kwargs)


def _rounded(it: Any) -> Any:
    return it.bfloat16() if isinstance(it, torch.Tensor) and it.is_floating_point() else it


def _own(loss: torch.Tensor) -> float:
    loss.backward()
    return loss.item()


def _accumulated(module: Callable[..., Any], inputs: Any, targets: torch.Tensor, size: int) -> float:
    count, total = (targets != IGNORED).sum(), 0.0
    for i in range(len(targets) // size):
        rows = slice(i * size, (i + 1) * size)
        some = {key: it[rows] for key, it in inputs.items()} if isinstance(inputs, dict) else inputs[rows]
        loss = summed_cross_entropy(called(module, some), targets[rows]) / count
        loss.backward()
        total += loss.item()
    return total


def whole_of(module: nn.Module, pick: Callable[[nn.Parameter], torch.Tensor]) -> dict[str, torch.Tensor]:
    """What ``pick`` takes of this rank's parameters, whole, in the module's own order."""
    found = {}
    sectioned, tied = getattr(module, "sectioned_weights", {}), getattr(module, "tied_copies", {})
    for name, parameter in module.named_parameters():
        part = pick(parameter)
        whole = part.full_tensor() if isinstance(part, DTensor) else part
        found[tied.get(name, name)] = sectioned[name].module_order(whole) if name in sectioned else whole
    return found


def take_first(alone: nn.Module, model: nn.Module) -> float:
    """Give ``alone`` the weights of the first rank that holds each; the largest difference of any other rank's."""
    held = whole_of(model, lambda parameter: parameter.detach().clone())
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, held)
    first = {name: it for weights in reversed(ranks) for name, it in weights.items()}
    with torch.no_grad():
        for name, parameter in alone.named_parameters():
            parameter.copy_(first[name])
    return worst([(it - first[name]).abs().max().item() for weights in ranks for name, it in weights.items()])[1]


def worst(errors: list[float]) -> tuple[int, float]:
    """The position and value of the first NaN, which ``max`` may pass over, or else of the largest error."""
    at = int(np.argmax(errors))
    return at, errors[at]


def relative_errors(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest difference of each gradient, of its largest element or ``LEAST_PART`` of the largest in its module."""
    largest = {name: it.abs().max().item() for name, it in wanted.items()}
    module: dict[str, float] = {}
    for name, it in largest.items():
        owner = name.rpartition(".")[0]
        module[owner] = max(module.get(owner, 0.0), it)
    scale = {name: max(largest[name], LEAST_PART * module[name.rpartition(".")[0]], 1e-6) for name in found}
    return {name: (it - wanted[name]).abs().max().item() / scale[name] for name, it in found.items()}


def statistics_error(model: nn.Module, alone: nn.Module) -> float:
    """How far the buffers of modules that this rank holds are from those of a single process."""
    wanted = dict(alone.named_buffers())
    held = {name for name, inner in model.named_modules() if any(True for _ in inner.parameters(recurse=False))}
    pairs = [(it, wanted[name]) for name, it in model.named_buffers() if name.rpartition(".")[0] in held]
    return worst([0.0, *((it - other).abs().max().item() for it, other in pairs)])[1]


def refusal(case: ModuleCase, plan: Plan, example: Any) -> str:
    """What applying the plan says, with rules found and checked here."""
    checks = {"check_rules": _fails, "mixed_samples": _fails}
    failing = mock.patch.multiple(any_module, **checks) if case.mutation else contextlib.nullcontext()
    with mock.patch("planner.runtime.blocks.read_module", lambda *args: read_of(case.family)[0]), failing:
        try:
            apply(plan, build(case.family, 1), device_type="cpu", example_inputs=example, rules=case.rules)
        except PlannerError as error:
            return str(error)
    return "applied"


def _fails(*args: Any) -> None:
    raise TypeError("forward() takes no such thing")


def drop(module: nn.Module, part: float, seed: int) -> None:
    """Let a GPT-2 drop out that part of what its halves add to the hidden states, drawn from ``seed`` on."""
    for name, inner in module.named_modules():
        if name.endswith((".attn.resid_dropout", ".mlp.dropout")):
            inner.p = part
    torch.manual_seed(seed)


def inputs_of(case: ModuleCase, plan: Plan) -> tuple[Any, torch.Tensor | None]:
    """Inputs and targets of the case's global batch, some of them padding; labels for targets where that is asked."""
    inputs, targets = batch_of(case.family, plan.workload.global_batch)
    if targets.dim() > 1:
        targets = padded(targets)
    return (labelled(inputs), None) if case.own_loss else (inputs, targets)


def run_module_case(case: ModuleCase) -> dict[str, Any]:
    """Apply the case's plan, take a step, compare; the findings are the worst of all ranks."""
    alone = build(case.family, case.seed)
    example, _ = batch_of(case.family, 1)
    plan = plan_for(case)
    if case.refused:
        said: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(said, refusal(case, plan, example))
        return {"said": said}
    inputs, targets = inputs_of(case, plan)
    drop(alone, case.dropout, seed=3)
    if plan.workload.precision == "bf16":
        enter_together(alone, case.family)
    compared = functools.partial(reference, alone, inputs, targets, plan.strategy.micro_batch, plan.workload.precision)
    kept: list[torch.Tensor] = []
    with routes(kept, again=False):
        loss, wanted = (0.0, {}) if case.own_seeds else compared()
    module = build(case.family, case.seed + (dist.get_rank() if case.own_seeds else 0))
    drop(module, case.dropout, seed=3 + dist.get_rank())
    with read_once(case.family), mutation(case.mutation):
        given = labelled(example) if case.own_loss else example
        model, schedule = apply(plan, module, device_type="cpu", example_inputs=given)
    apart = 0.0
    if case.own_seeds:
        apart = take_first(alone, model)
        loss, wanted = compared()
    with mutation(case.mutation), routes(kept, again=True) if case.routed else contextlib.nullcontext():
        own_loss = schedule.step(schedule.local(inputs), None if targets is None else schedule.local(targets))
    return findings_of(plan, alone, model, schedule, wanted) | {
        "loss": schedule.mean_loss(own_loss, torch.device("cpu")), "wanted_loss": loss, "apart": apart,
    }  # fmt: skip


def findings_of(
    plan: Plan, alone: nn.Module, model: nn.Module, schedule: Any, wanted: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """Gradients, their norm and running statistics behind a step, against those of the module ``alone``."""
    found = whole_of(model, lambda parameter: parameter.grad)
    errors = relative_errors(found, wanted)
    norm = schedule.clip_grad_norm(LIMIT)
    clipped = schedule.clip_grad_norm(math.inf)
    whole = plan.strategy.micro_batch * plan.strategy.micro_batches == plan.workload.global_batch
    statistics = statistics_error(model, alone) if whole else 0.0
    names: list[Any] = [None] * dist.get_world_size()
    at, error = worst(list(errors.values()))
    dist.all_gather_object(names, (sorted(found), error, list(errors)[at], statistics))
    at, error = worst([it[1] for it in names])
    return {
        "error": error, "worst": names[at][2],
        "covered": {name for it in names for name in it[0]} == set(wanted),
        "statistics": worst([it[3] for it in names])[1], "norm": norm, "clipped": clipped,
        "wanted_norm": math.sqrt(sum(g.double().square().sum().item() for g in wanted.values())),
    }  # fmt: skip
