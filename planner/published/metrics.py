"""What a published row measured, in seconds a step, GiB a device, and whether it ran at all.

    tokens/s/GPU   step = tokens / (value n)            samples/s   step = global batch / value
    tokens/s       step = tokens / value                TFLOP/s/GPU step = F tokens / (value 1e12 n)
    tokens/s/node  step = tokens / (value nodes)        PFLOP/s     step = F tokens / (value 1e15)
    MFU, HFU       TFLOP/s = MFU peak, then as above    GPU hours per 10^12 tokens: tokens/s/GPU = 1e12 / (3600 value)

F is the FLOP a token as the source counts them:

    model, causal   3 (layers + head), a query seeing half of the keys          Megatron-Bridge, NeMo 25.09 and later
    model, full     3 (layers + head), a query seeing all keys                  72 B s l h^2 (1 + s/6h + V/12lh)
    hardware        (3 + what is recomputed) layers + 3 head, all keys          96 B s l h^2 (1 + s/6h + V/16lh)
    weights times 8 8 * parameters of the layers: BigScience's first estimator

with one pass less where weights are frozen (LoRA). MFU never counts what is recomputed and HFU always does
(Chowdhery et al., arXiv:2204.02311, appendix B), whatever the source's TFLOP/s count.

Checked on rows that state time and TFLOP/s: all dense pre-training rows of NeMo, Megatron-Bridge, llm-foundry,
nanotron, BigScience and Megatron-LM 2020 within 0.2 % in the median, worst 1.7 % (2.9 % on BigScience's 104B,
which used the first estimator with the size of the title).

Source: Narayanan et al., arXiv:2104.04473, equation 3.
"""

from __future__ import annotations

import dataclasses
import re
from functools import cache

from cost_models.model_graph import Layer, ModelGraph
from planner.published.csv_rows import Row, number
from planner.published.records import Job, Measured, Meter
from planner.published.sources import Source
from topologies.errors import BadInput

OLD_ESTIMATOR = re.compile(r"old estimator|under-report", re.IGNORECASE)
UNUSABLE_TIME = re.compile(r"use the memory, not the timing|memory useful, time not", re.IGNORECASE)
LOWER_BOUND = re.compile(r"lower bound", re.IGNORECASE)
RAN_OUT = re.compile(r"result: OOM", re.IGNORECASE)
_OUT_OF_MEMORY = re.compile(
    r"(?!\s*[~≈]?\d).*(?:\bOOM\b|\bout[ _-]of[ _-](?:\w+[ _-])?memory\b)", re.IGNORECASE | re.DOTALL
)
"""Words of a value that is no number."""
_RANGE = re.compile(r"([~≈]?\s*)(\d[\d,]*(?:\.\d+)?)\s*(?:[-–—]|to)\s*(\d[\d,]*(?:\.\d+)?)(.*)", re.DOTALL)
_OF_CAPACITY = r"\s*/\s*\d+(?:\.\d+)?\s*(?:[GMT]i?B)?"
_METER_WORDS = r"reserved|allocated|(?:nvidia|rocm)-smi|peak|max(?:imum)?|per (?:GPU|device)|/ ?GPU"
_MEMORY_WORDS = rf"(?:[GMT]i?B)?(?:{_OF_CAPACITY})?(?:\s*,?\s*(?:{_METER_WORDS}))*"
_METERS: tuple[tuple[str, Meter], ...] = (
    (r"reserved", "reserved"), (r"allocated", "allocated"), (rf"{_OF_CAPACITY}|-smi\b", "device"),
)  # fmt: skip
"""What a memory's words meter; a figure of the device's whole is a driver's."""
RECOMPUTE_PASSES = {"none": 3.0, "selective": 3.0, "full": 4.0}
GIB = 2.0**30
SECONDS = {"iter_time_s": 1.0, "iter_time_ms": 1e-3, "iter_time_min": 60.0}
OTHER_NAMES = {
    "gpu_hours_per_t_tokens": "gpu_hours_per_T_tokens", "out of memory": "oom", "out_of_memory": "oom",
    "tgs": "tokens_per_s_per_gpu", "tflops": "tflops_per_gpu", "peak_mem": "peak_mem_only",
    "model_flops_utilization": "mfu", "hardware_flops_utilization": "hfu",
}  # fmt: skip
"""Other names of metrics, in lower case, that no grammar gives."""
_SPELLINGS = (
    (r"\bw(?:ords? per second|ps)\b(?=.*\b(?:gpu|global|total)\b)|\btps\b", "token s"),
    (r"\b(?:min|minutes?|mins)\b", "min"), (r"\b(?:nodes?|hosts?|servers?)\b", "node"),
    (r"\b(?:global|aggregate|overall)\b", "total"),
    (r"\bpeta?flop[/ ]?s?\b|\bpflops?\b", "pflop"), (r"\btok(?:en)?s?\b", "token"),
    (r"\b(?:samples?|sequences?|seqs?|examples?|sentences?)\b", "sample"), (r"\btiming\b", "time"),
    (r"\b(?:iterations?|iters?|its?|steps?|batch(?:es)?)\b", "step"), (r"\b(?:seconds?|secs?)\b", "s"),
    (r"\b(?:milliseconds?|msecs?)\b", "ms"),
    (r"\b(?:gpu|device|chip|accelerator|card|xpu|npu|tpu|core|neuroncore|gcd)s?\b", "gpu"),
    (r"\btera?flop[/ ]?s?\b|\bt?flops?\b", "tflop"),
)  # fmt: skip
_PER_LONGER = re.compile(
    r"(?:/|(?<![a-z])per)[\s_]*(?:(?P<m>min(?:ute)?s?)|(?P<h>h(?:(?:ou)?rs?)?)|(?P<d>d(?:ays?)?))(?![a-z])"
)
_LONGER_S = {"m": 60.0, "h": 3600.0, "d": 86400.0}
"""Seconds of what a rate may be counted in: ``"tokens/day"``, ``"steps per hour"``."""
_SAID_ANYWAY = {"throughput", "train", "training", "in", "speed", "rate", "performance"}
_MEAN = r"(?:(?:median|mean|average|avg|elapsed) )*"
_GRAMMAR = (
    (r"tokens? (?:per )?s (?:per )?gpu", "tokens_per_s_per_gpu"),
    (r"tokens? (?:per )?gpu (?:per )?s", "tokens_per_s_per_gpu"),
    (r"(?:total )?tokens? (?:per )?s(?: total)?", "tokens_per_s_total"),
    (r"tokens? (?:per )?s (?:per )?node", "tokens_per_s_per_node"),
    (r"sample (?:per )?s (?:per )?gpu", "samples_per_s_per_gpu"),
    (r"(?:total )?sample (?:per )?s(?: total)?", "samples_per_s"), (r"step (?:per )?s", "steps_per_s"),
    (rf"{_MEAN}(?:step )?(?:time )?(?:per step )?ms(?: (?:per )?step)?", "iter_time_ms"),
    (rf"{_MEAN}(?:step )?(?:time )?(?:per step )?s(?: (?:per )?step)?", "iter_time_s"),
    (rf"{_MEAN}(?:step time|time per step)", "iter_time_s"),
    (rf"{_MEAN}(?:step )?(?:time )?(?:per step )?min(?: (?:per )?step)?", "iter_time_min"),
    (r"(?:total )?(?:(?:model|achieved) )*pflop(?: (?:per )?s)?(?: total)?", "pflops_total"),
    (r"(?:(?:model|achieved) )*tflop(?: (?:per )?s)?(?: (?:per )?gpu)?", "tflops_per_gpu"),
    (r"model tflop(?: s)? util\w*(?: mfu)?", "mfu"), (r"hardware tflop(?: s)? util\w*(?: hfu)?", "hfu"),
)  # fmt: skip
"""What a metric's words mean, once each thing has one name and slashes and marks are spaces."""
_TIME_UNIT = re.compile(r"\d\s*(ms|msec|milliseconds|s|secs?|seconds)(?:$|[ /(±])", re.IGNORECASE)
_TIME_UNITS = {"s": 1.0, "sec": 1.0, "secs": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3, "milliseconds": 1e-3}
_MEMORY_UNITS = {"gib": GIB, "mib": 2.0**20, "mb": 1e6, "tib": 2.0**40}
"""Bytes; GB and no unit at all are as the source counts."""
NO_STEP = {"oom", "peak_mem_only", "activation_mem_gib", "time_to_train_s"}
KNOWN = {
    *SECONDS,
    *NO_STEP,
    "mfu",
    "hfu",
    "tflops_per_gpu",
    "samples_per_s",
    "tokens_per_s_total",
    "tokens_per_s_per_gpu",
}


def ran_out(row: Row) -> bool:
    """Whether the row says that the device's memory was too small."""
    return _instead_of_value(row) or bool(RAN_OUT.search(row.get("notes", "")))


def _instead_of_value(row: Row) -> bool:
    value = row.get("metric_value", "")
    return "oom" in (metric_kind(row), metric_name(value)) or bool(_OUT_OF_MEMORY.match(value))


def memory(row: Row, source: Source) -> tuple[Measured, ...]:
    """The peak memory that the row states, in GiB, none where it is only a bound."""
    value, unit = _peak(row, source)
    bound = _instead_of_value(row) or LOWER_BOUND.search(row.get("notes", ""))
    if not value or bound:
        return ()
    words = row["peak_mem_gib"]
    meter = next((name for pattern, name in _METERS if re.search(pattern, words, re.IGNORECASE)), source.meter)
    return (Measured("peak_mem_gib", value * unit / GIB, meter, source.rank),)


def _peak(row: Row, source: Source) -> tuple[float | None, float]:
    """The figure of the row's peak memory and the bytes of its unit. Raises ``BadInput`` for a share of the device."""
    value = number(row, "peak_mem_gib", _MEMORY_WORDS)
    unit = re.search(r"(?<=[\d ])[GMT]i?B", row.get("peak_mem_gib", ""), re.IGNORECASE)
    return value, _MEMORY_UNITS.get(unit[0].lower(), source.memory_unit_bytes) if unit else source.memory_unit_bytes


def fits(row: Row) -> tuple[Measured, ...]:
    """1 for a row that ran, 0 for one that ran out of memory, none where nothing ran or other words are its value."""
    value = row.get("metric_value", "")
    if metric_kind(row) == "activation_mem_gib" or (value and not re.search(r"\d", value) and not ran_out(row)):
        return ()
    return (Measured("fits", 0.0 if ran_out(row) else 1.0),)


def step(row: Row, source: Source, job: Job) -> tuple[Measured, ...]:
    """Seconds a step, none where the row states no usable time. Raises ``BadInput`` for a metric it does not know."""
    kind, value = metric_kind(row), None
    if kind not in NO_STEP and not ran_out(row):
        value = metric_value(row)
    if not value or UNUSABLE_TIME.search(row.get("notes", "")):
        return ()
    return (Measured("step_s", _seconds(kind, value, row, source, job)),)


def metric_kind(row: Row) -> str:
    """What the row measured, under the name of this module."""
    return metric_name(row["metric_kind"])


@cache
def metric_name(words: str) -> str:
    """A metric as this module names it: ``"Tokens/sec/GPU"`` is ``tokens_per_s_per_gpu``."""
    plain = words.strip().lower()
    if plain in OTHER_NAMES or plain in KNOWN:
        return OTHER_NAMES.get(plain, plain)
    text = re.sub(r"[_/()\[\]:.%-]+", " ", _PER_LONGER.sub("/s", plain))
    for pattern, name in _SPELLINGS:
        text = re.sub(pattern, name, text)
    text = " ".join(word for word in text.split() if word not in _SAID_ANYWAY)
    text = OTHER_NAMES.get(text, text)
    return next((name for pattern, name in _GRAMMAR if re.fullmatch(pattern, text)), text if text in KNOWN else plain)


def metric_value(row: Row) -> float | None:
    """The metric's number, rates a second; a unit of time behind it wins over the one in the metric's name."""
    kind, longer = metric_kind(row), _PER_LONGER.search(row["metric_kind"].lower())
    value = number(row, "metric_value", r"%?|[A-Za-z/ .]*", {"k": 1e3, "m": 1e6, "b": 1e9})
    if value is not None and longer:
        value /= _LONGER_S[longer.lastgroup or ""]
    unit = _TIME_UNIT.search(row.get("metric_value", ""))
    if value is None or unit is None or kind not in SECONDS:
        return value
    return value * _TIME_UNITS[unit[1].lower()] / SECONDS[kind]


def stated_step(row: Row) -> tuple[Measured, ...]:
    """Seconds a step of a row that states them as such, which takes no job to know."""
    kind = metric_kind(row)
    value = metric_value(row) if kind in SECONDS and not ran_out(row) else None
    return (Measured("step_s", value * SECONDS[kind]),) if value else ()


def check_metric(row: Row) -> tuple[Row, tuple[str, ...]]:
    """The row with ranges as their middles and without the measured cells that are no numbers, and why they are not."""
    columns = {"metric_value": _value_or_out, "peak_mem_gib": lambda one: number(one, "peak_mem_gib", _MEMORY_WORDS)}
    row, unread = {**row, **{name: _middle(row.get(name, "")) for name in columns}}, []
    for name, read in columns.items():
        try:
            read(row)
        except BadInput as error:
            unread.append(f"{error}; not compared")
            row[name] = ""
    return row, tuple(unread)


def _value_or_out(row: Row) -> float | None:
    return None if ran_out(row) else metric_value(row)


def _middle(text: str) -> str:
    """``"410 s"`` for ``"400-420 s"``; any other text as it is."""
    found = _RANGE.fullmatch(text)
    low, high = (float(found[k].replace(",", "")) for k in (2, 3)) if found else (0.0, 0.0)
    return f"{found[1]}{(low + high) / 2!r}{found[4]}" if found and low < high else text


def _seconds(kind: str, value: float, row: Row, source: Source, job: Job) -> float:
    tokens, devices = job.workload.tokens, job.strategy.degrees.world_size
    if kind in SECONDS:
        return value * SECONDS[kind]
    if kind == "samples_per_s":
        return job.workload.global_batch / value
    if kind == "samples_per_s_per_gpu":
        return job.workload.global_batch / (value * devices)
    if kind == "steps_per_s":
        return 1.0 / value
    if kind == "tokens_per_s_total":
        return tokens / value
    if kind == "tokens_per_s_per_gpu":
        return tokens / (value * devices)
    if kind == "tokens_per_s_per_node":
        return tokens * job.cluster.host.devices / (value * devices)
    if kind == "gpu_hours_per_T_tokens":
        return tokens * value * 3600 / (1e12 * devices)
    if kind in ("tflops_per_gpu", "pflops_total", "mfu", "hfu"):
        shares = {"tflops_per_gpu": value, "pflops_total": value * 1e3 / devices}
        tflops = shares[kind] if kind in shares else _utilised_tflops(value, job)
        return counted_flop_per_token(row, source, job) * tokens / (tflops * 1e12 * devices)
    raise BadInput(f"metric {kind[:40]!r} is no time that a step's seconds follow from")


def _utilised_tflops(value: float, job: Job) -> float:
    share = value / 100 if value > 1 else value
    return share * job.cluster.peak_flop_per_s(job.workload.recipe.compute) / 1e12


def counted_flop_per_token(row: Row, source: Source, job: Job) -> float:
    """FLOP a token as the row's source counts them; see the module's table."""
    model, seq_len = job.model, job.workload.seq_len
    if OLD_ESTIMATOR.search(row.get("notes", "")):
        return 8.0 * sum(model.kinds[k].column_parameters for k in model.order)
    counted = counted_model(model, source)
    head = 3.0 * counted.head.forward_flop_per_token(seq_len)
    layers = counted.forward_flop_per_token(seq_len) - head / 3.0
    choice = job.strategy.stages[0].runs[0].choice.recompute
    hardware = {"mfu": False, "hfu": True}.get(metric_kind(row), source.tflops == "hardware")
    passes = RECOMPUTE_PASSES[choice] if hardware else 3.0
    frozen = 1.0 if job.workload.tuning == "lora" else 0.0
    return (passes - frozen) * layers + head * (3.0 - frozen) / 3.0


def counted_model(model: ModelGraph, source: Source) -> ModelGraph:
    """The model with as many keys a query as the source counts."""
    if source.tflops == "model, causal":
        return model
    return dataclasses.replace(model, kinds=tuple(_not_causal(kind) for kind in model.kinds))


def _not_causal(layer: Layer) -> Layer:
    operators = tuple(
        op
        if op.attention is None
        else dataclasses.replace(op, attention=dataclasses.replace(op.attention, causal=False))
        for op in layer.operators
    )
    return dataclasses.replace(layer, operators=operators)
