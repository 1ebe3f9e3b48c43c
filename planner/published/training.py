"""A row of ``training_runs.csv`` as a case: model, machine, batch, layout and what was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from cost_models.model_graph import ModelGraph
from cost_models.strategy import Strategy
from cost_models.workload import Precision, Training
from planner.published import layouts, machines, metrics
from planner.published.csv_rows import Row, noted, whole
from planner.published.habits import stated_sizes
from planner.published.models import (
    block_costs,
    latent,
    model_of,
    recipe_prediction_passes,
    shaped_by_size,
    trained_vocabulary,
)
from planner.published.prediction_layers import predictions
from planner.published.recipes import Recipe, recipe
from planner.published.records import Case, Job, Kind, Measured
from planner.published.sizes import QUICKEST, Sizes, read_cells, whole_sizes
from planner.published.sources import Source, row_text, source_of, source_prefix
from planner.published.switches import LORA, both_ways, precision, stated_recompute, switches, tuning
from planner.published.unsplit import assume_unsplit
from planner.published.wording import mentions, said
from topologies.cluster import Cluster
from topologies.errors import BadInput, PlannerError

FINE_TUNING = rf"{LORA}|\bSFT\b|fine[ -]?tun\w*|instruct(?:ion)?[ -]tun\w*"
PREDICTION_PASSES = r"\bMTP\b|multi-?token prediction"
NOT_THE_SOURCE = "model card, not the source"
"""What a row says of its sizes where its source does not give them: the vocabulary is the model's, not the run's."""
MOE = re.compile(
    r"DeepSeek(?![ -]?(?:LLM|Math|\d+B|Coder(?![ -]?V2))|.*Distill)|\b\d+x\d+(?:\.\d+)?B\b|"
    r"Mixtral|MoE|\bA\d+(?:\.\d+)?B\b|Maverick|Scout|Grok|GPT-?OSS|Kimi|Moonlight|DBRX|"
    r"Nemotron[ -]?(?:V?3|3) (?:Nano|Super|Ultra)",
    re.IGNORECASE,
)
WHOLE_MODEL = 0.15
NARROWEST_FIRST: tuple[Precision, ...] = ("fp4", "fp8", "bf16", "fp16")
"""Types of products; a device without units for a recipe's takes the next."""
OFFLOADED = "offloading to the host is not modelled: memory and time are those without it"
T = TypeVar("T")
SECTION = re.compile(r'"([^"]*)"|\(([^)]*)\)')
LAYOUT_FLAGS = re.compile(r"(?:GA|GradAccum|micro_num|LBS|ETP)\s*=\s*\d*|schedule=[^;]*", re.IGNORECASE)


@dataclass(frozen=True)
class _Known:
    """What of a row could be read before its job is put together."""

    row: Row
    source: Source
    recipe: Recipe
    kind: Kind


def training_case(row: Row) -> Case:
    """The case that a row means, with a job or with what is missing for one.

    Raises ``BadInput`` for a cell that is no number or no JSON where one belongs; a measured one is only left out.
    """
    ran = metrics.fits(row)
    row, unmeasured = metrics.check_metric(row)
    arch, source = architecture(row), source_of(row)
    known = _Known(row, source, recipe(source.stack, source.release), kind_of(row, arch))
    measured = (*metrics.memory(row, source), *ran)
    cells = read_cells(row, source, known.recipe)
    stated = cells.stated
    try:
        assume_unsplit(cells)
        found = whole_sizes(cells)
        job, assumed, unread = job_of(known, arch, found)
    except PlannerError as error:
        return _case(
            row,
            known.kind,
            (*metrics.stated_step(row), *measured),
            None,
            "; ".join([*cells.unread, str(error), *unmeasured]),
            stated=stated,
        )
    step, untimed = _step(row, source, job)
    kind = known.kind if known.kind == "fine-tuning" else _kind(job.model.experts)
    missing = "; ".join([*cells.unread, *unread, *unmeasured, *([untimed] if untimed else [])])
    return _case(row, kind, (*step, *measured), job, missing, (*found.assumed, *assumed), stated)


def _step(row: Row, source: Source, job: Job) -> tuple[tuple[Measured, ...], str]:
    """The step's measured seconds, or why its metric gives none."""
    try:
        return metrics.step(row, source, job), ""
    except BadInput as error:
        return (), str(error)


def architecture(row: Row) -> dict[str, Any]:
    """The sizes in ``arch_json``. Raises ``BadInput`` for text that is no JSON object."""
    text = row.get("arch_json", "") or "{}"
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"row {row['id'][:60]!r}: arch_json is not JSON: {str(error)[:100]}") from error
    if not isinstance(found, dict):
        raise BadInput(f"row {row['id'][:60]!r}: arch_json is a JSON object; got {text[:60]!r}")
    return stated_sizes(found)


def kind_of(row: Row, arch: dict[str, Any]) -> Kind:
    """Whether the row fine-tunes, else whether its model, so far as the row tells, has experts."""
    section = " ".join(quoted or inside for quoted, inside in SECTION.findall(row.get("source", "")))
    texts = (row.get("other_flags", ""), row["model"], section)
    if any(one.on for text in texts for one in mentions(text, FINE_TUNING)):
        return "fine-tuning"
    return _kind(arch.get("experts") or MOE.search(row["model"]))


def _kind(has_experts: Any) -> Kind:
    return "moe" if has_experts else "dense"


def job_of(known: _Known, arch: dict[str, Any], size: Sizes) -> tuple[Job, tuple[str, ...], tuple[str, ...]]:
    """The job, the cells that a default filled, and what of the row was not understood or is not modelled.

    Raises ``BadInput`` for what cannot be put together.
    """
    row, source, defaults = known.row, known.source, known.recipe
    unread = list(both_ways(row))
    model = published_model(known, arch, size)
    a_host = _or_default(
        row.get("gpus_per_node", ""), unread, lambda text: whole({**row, "gpus_per_node": text}, "gpus_per_node")
    )
    ready = machines.with_smaller_hosts(machines.ready_cluster(row["accelerator"], source.prefix), a_host)
    group, assumed = _or_default(
        row.get("zero_or_fsdp_stage", ""), unread, lambda text: layouts.sharding(text, defaults, ready.host.devices)
    )
    memory, works = ready.memory_bytes, _works(known)
    choice, words, more = _or_default(
        stated_recompute(row), unread, lambda text: layouts.recompute_choice(text, defaults, memory, works=works)
    )
    schedule = _or_default(
        layouts.schedule_words(row, defaults), unread, lambda text: layouts.known_schedule(text), otherwise="1f1b"
    )
    cluster = layouts.machine(ready, layouts.degrees(size, group), row.get("inter_node_link", ""))
    plan, last = layouts.strategy(
        size, model.layers, group, choice, schedule, cluster, longer_last=bool(defaults.value("longer_last")),
        filled=bool(defaults.value("filled_stages")),
        full=latent(model) and bool(defaults.value("latent_full_stages")), predictions=predictions(model),
        costs=block_costs(model) if defaults.value("stages_by_cost") else (),
    )  # fmt: skip
    workload, filled = _workload(known, size, cluster)
    settings = switches(row, source, defaults, recompute=words, schedule=schedule)
    settings |= {"recompute_assumed": True} if "recompute" in more and not source.listed else {}
    unread += [OFFLOADED] if settings.get("offload") else []
    left_open = [name for name in ("micro_batch", "vpp") if name in size.assumed and _is_open(name, known, schedule)]
    settings |= {"quickest": tuple(left_open)} if left_open else {}
    settings |= _pipeline_fills(known, plan)
    job = Job(model, cluster, workload, plan, source.stack, source.release, settings)
    return job, (*assumed, *more, *last, *filled, *_stood_in(known, arch)), tuple(unread)


def _works(known: _Known) -> tuple[str, ...]:
    """Kinds of work whose own cells go before a recipe's others: of adapters, and of all fine-tuning."""
    adapters = ("lora",) if tuning(row_text(known.row)) == "lora" else ()
    return (*adapters, *(("tuned",) if known.kind == "fine-tuning" else ()))


def _pipeline_fills(known: _Known, plan: Strategy) -> dict[str, int]:
    """How often a step fills the pipeline, where the trainer runs its schedule once for each local batch (``LBS``)."""
    local, held = noted(known.row, "LBS"), plan.schedule
    if not (local and known.recipe.value("fills_per_local_batch") and plan.degrees.pp > 1):
        return {}
    return {"pipeline_fills": max(1, round(held.micro_batches * held.micro_batch / local))}


def _is_open(name: str, known: _Known, schedule: str) -> bool:
    """Whether the quickest that fits is taken: the recipe says so, or a source in no table, whose recipe is another's.

    A schedule that splits the backward pass has its own number of virtual stages, and needs its micro-batches.

    Such a source is taken to have tuned its micro-batch and, under Megatron-Core, its virtual stages: of the carried
    rows of that stack which state these with pp above 1, 98 % interleave.
    """
    if layouts.splits_backward(schedule):
        return False
    tuned = {"micro_batch": not known.recipe.value("micro_batches"), "vpp": known.source.stack == "megatron-core"}
    return (tuned[name] and not known.source.listed) or known.recipe.value(name) == QUICKEST


def _or_default(words: str, unread: list[str], read: Callable[[str], T], otherwise: str = "") -> T:
    """What ``read`` makes of ``words``, or of ``otherwise`` where it does not understand them, which is noted."""
    try:
        return read(words)
    except BadInput as error:
        unread.append(f"{error}; taken as not stated")
        return read(otherwise)


def _stood_in(known: _Known, arch: dict[str, Any]) -> Iterator[str]:
    """What something like it stands in for: a source not listed, a model of a size alone, a machine."""
    if not known.source.listed:
        yield "source"
    if shaped_by_size(known.row["model"], arch):
        yield "model"
    if machines.stands_in(known.row["accelerator"], known.source.prefix):
        yield "accelerator"


def published_model(known: _Known, arch: dict[str, Any], size: Sizes) -> ModelGraph:
    """The row's model, with the passes of multi-token prediction that its stack's recipes train unless it says so.

    Its vocabulary is that of the benchmark's tokenizer where the row has its sizes from a model card.
    """
    title, names = known.row["model"], ("heads", "vocab", "decoder_seq_len")
    given = {name: known.recipe.value(name) for name in names}
    filled = {name: value for name, value in given.items() if value is not None} | arch
    trained = trained_vocabulary(title, known.source.stack, known.source.release)
    if trained and arch.get("arch_src") == NOT_THE_SOURCE:
        filled["vocab"] = trained
    flags = f"{known.row.get('other_flags', '')} ; {known.row.get('notes', '')}"
    passes = recipe_prediction_passes(title, known.source.stack)
    if passes and said(flags, PREDICTION_PASSES) is not False:
        filled.setdefault("mtp", passes)
    has_experts = bool(MOE.search(title)) or size.ep > 1
    model = model_of(title, filled, size.seq_len, has_experts=has_experts)
    layers = _layers_run(known, model, size.seq_len)
    if layers == model.layers:
        return model
    return model_of(title, {**filled, "layers": layers}, size.seq_len, has_experts=has_experts)


def _layers_run(known: _Known, model: ModelGraph, seq_len: int) -> int:
    """Layers that a row's TFLOP/s at its tokens/s leave room for, where its source cuts models.

        layers = (F / 3 - head) / mean layer        F = FLOP a token, as stated

    Within 15 % of the whole model the row is taken to be whole.
    """
    row, rate = known.row, noted(known.row, "tflops_per_gpu")
    timed = metrics.metric_kind(row) == "tokens_per_s_per_gpu" and not metrics.ran_out(row)
    tokens = metrics.metric_value(row) if timed else None
    if not (known.source.cuts_models and rate and tokens):
        return model.layers
    counted = metrics.counted_model(model, known.source)
    whole = counted.forward_flop_per_token(seq_len)
    stated, head = rate * 1e12 / tokens / 3, counted.head.forward_flop_per_token(seq_len)
    if abs(stated / whole - 1) < WHOLE_MODEL:
        return model.layers
    return min(model.layers, max(1, round((stated - head) / (whole - head) * model.layers)))


def _workload(known: _Known, size: Sizes, cluster: Cluster) -> tuple[Training, tuple[str, ...]]:
    """The step's work; adapter ranks follow the recipe, packed examples that of a source which the table knows.

    Raises ``BadInput`` for products that the device has no units for; a recipe's type gives way to what it has.
    """
    number_type, assumed = precision(known.row, known.recipe, known.source)
    if assumed and number_type in NARROWEST_FIRST:
        wider = NARROWEST_FIRST[NARROWEST_FIRST.index(number_type) :]
        number_type = next((one for one in wider if cluster.supports(one)), number_type)
    if number_type in ("fp8", "fp4") and not cluster.supports(number_type):
        raise BadInput(f"{cluster.accelerator.name} has no {number_type} products, which the row names")
    how = tuning(row_text(known.row))
    packed = known.recipe.value("packed_len") if known.kind == "fine-tuning" and known.source.listed else None
    rank = {"lora_rank": int(known.recipe.value("lora_rank", 16))} if how == "lora" else {}
    filled = (*assumed, *rank, *(("packed_len",) if packed else ()))
    return Training(
        seq_len=size.seq_len,
        global_batch=size.global_batch,
        precision=number_type,
        tuning=how,
        packed_len=packed,
        **rank,
    ), filled


def layout_key(row: Row, job: Job | None) -> str:
    """The problem that the row solves, without its layout: model, machine, size, batch, precision and release.

    Flags that are part of a layout (schedule, accumulation) are left out, all others stay.
    """
    source = source_of(row)
    pieces = (piece.strip() for piece in LAYOUT_FLAGS.sub("", row.get("other_flags", "")).split(";"))
    flags = "; ".join(piece for piece in pieces if piece)
    parts = [row.get(name, "") for name in ("model", "accelerator", "n_gpus", "precision")]
    work = [str(job.workload.global_batch), str(job.workload.seq_len)] if job else []
    return " | ".join([*parts, *work, _problem_arch(row), flags, source.release])


def _problem_arch(row: Row) -> str:
    """Sizes that tell models of one title apart."""
    arch = architecture(row)
    return " ".join(f"{name}={arch[name]}" for name in ("hidden", "layers", "heads") if name in arch)


def _case(
    row: Row,
    kind: Kind,
    measured: tuple,
    job: Job | None,
    missing: str,
    assumed: tuple[str, ...] = (),
    stated: bool = False,
) -> Case:
    return Case(
        id=row["id"],
        source=source_prefix(row["id"]),
        title=row["model"],
        accelerator=row["accelerator"],
        kind=kind,
        layout=layout_key(row, job),
        measured=measured,
        job=job,
        missing=missing,
        assumed=tuple(dict.fromkeys(assumed)),
        stated=stated,
    )
