"""Predictions of published rows, by the code that prices plans."""

from __future__ import annotations

import bisect
import csv
import dataclasses
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

from cost_models.calibration import FOLDER, Calibration, calibrate
from cost_models.chain import Chain, joules
from cost_models.estimate import busy_ticks, evaluate, memory_classes
from cost_models.intervals import at_most, classes, interval
from cost_models.memory import metered, needed
from cost_models.power import static_power
from cost_models.price import price
from cost_models.rows import Rows
from cost_models.strategy import RECOMPUTE, LayerChoice, LayerRun, Stage, TrainingSchedule, uniform_stages
from cost_models.ticks import Ticks
from planner.published.forked import each
from planner.published.recipes import recipe
from planner.published.records import Case, Job, Prediction, Quantity, Rank
from planner.published.settings import with_settings
from planner.published.spreads import Error
from planner.published.switches import whole_layers
from planner.search.interleaved import legal_virtual
from topologies.errors import PlannerError

GIB = 2**30
SUPPLY_EFFICIENCY = 0.977
"""DC over AC watts of the same runs in the MLPerf Power v4.0 logs: 0.984 (GPT-3) and 0.971 (LoRA, one host)."""
STANDS_IN = {
    "model": "shaped by the size in its title",
    "accelerator": "the nearest one stands in",
    "source": "read by the stack that it names, else as Megatron-Core",
}
"""What is told about rows of which something is not known."""
METERS_GIB = 6.0
"""Most by which allocated, reserved and the driver's memory differ in published runs."""
FITS_IN = 5 / 6
"""Share of like runs that fit from which a run is said to: an alarm for nothing costs a fifth of a run that dies.

Like runs are those of the stack that it is read by, known or not: sources lie apart for what they do not say, and the
spread between them would call two of five runs that strangers report too large, all of which ran."""
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Priced:
    """One job at its price: seconds a step, bytes of the fullest device, mean watts of one host."""

    job: Job
    chain: Chain
    step_s: float
    need_bytes: float
    node_w: float


def prepared(job: Job) -> Job:
    """The job under its stack's settings, with the micro-batch, recompute or fp8 that a recipe leaves to prediction."""
    return _settled(with_settings(job), None)[0]


def _settled(known: Job, chain: Chain | None) -> tuple[Job, Chain | None]:
    """What :func:`prepared` gives of a job under its settings, and its chain where that is known."""
    fits = calibrate(known.cluster, known.workload.stack)
    if known.switches.get("quickest"):
        known, chain = quickest(known, fits), None
    else:
        known = least_recompute(known, fits, chain)
    if recipe(known.stack, known.release).value("fp8_activation") != "least":
        return known, chain
    chain = chain or _chain(known, fits)
    if _need_bytes(known, chain, fits) <= known.cluster.memory_bytes:
        return known, chain
    stack = known.workload.stack.model_copy(update={"fp8_activation": True})
    return dataclasses.replace(known, workload=known.workload.model_copy(update={"stack": stack})), None


def priced(job: Job, fits: Calibration, chain: Chain | None = None) -> Priced:
    """Time, memory and power of a prepared job; ``chain`` is its own or that of another recompute, priced alike.

    A pipeline that a step fills several times has its bubble as often.
    """
    chain = chain or _chain(job, fits)
    runs, rows = chain.runs(job.strategy.stages), chain.prices.rows.take([chain.row])
    found = evaluate(chain, runs)
    bubble = found.step - int(busy_ticks(chain.schedule, found).max())
    step_s = (found.step + (job.switches.get("pipeline_fills", 1) - 1) * bubble) * chain.prices.ticks.second
    return Priced(job, chain, step_s, float(found.need.max()), _node_w(job, rows, joules(chain, runs).mean() / step_s))


def _chain(job: Job, fits: Calibration) -> Chain:
    return _chains([job], fits)[0]


def _chains(jobs: Sequence[Job], fits: Calibration) -> list[Chain]:
    """Of jobs alike in all but degrees and sizes (:func:`_alike`), priced as one table."""
    model, cluster, workload = jobs[0].model, jobs[0].cluster, jobs[0].workload
    rows = Rows.concat([Rows.of(job.strategy) for job in jobs])
    prices = price(model, cluster, workload, rows, fits, Ticks.of(model, cluster, workload))
    return [Chain(model, prices, row) for row in range(len(jobs))]


def _need_bytes(job: Job, chain: Chain, fits: Calibration, spare: float = 1.0) -> float:
    """Bytes that must be free at once on the fullest device if it takes ``spare`` times what is predicted."""
    ranks = memory_classes(chain, chain.runs(job.strategy.stages))
    return max(needed(held, job.workload, fits, spare) for held in ranks)


def _node_w(job: Job, rows: Rows, dynamic_w: float) -> float:
    """Watts of one host at its plug, or behind its power supplies where the row was metered on the DC side."""
    static, hosts = static_power(rows, job.cluster), job.cluster.hosts
    working_w = dynamic_w * float(rows.world_size[0]) * _working_fraction(job)
    plug_w = (float(static.devices[0] + static.hosts[0]) + working_w) / hosts
    return plug_w * (SUPPLY_EFFICIENCY if job.switches.get("meter") == "DC" else 1.0)


def _working_fraction(job: Job) -> float:
    """Part of a metered run in which it takes steps; all of one whose length is not stated."""
    metered_s, start_up_s = job.switches.get("measured_s"), job.switches.get("start_up_s", 0.0)
    return max(1.0 - start_up_s / metered_s, 0.0) if metered_s else 1.0


def step_s(job: Job, changes: Mapping[str, float]) -> float:
    """Seconds of a prepared job's step with some constants changed: what the fit moves."""
    return priced(job, calibrate(job.cluster, job.workload.stack, changes)).step_s


def step_and_memory(job: Job, fits: Calibration) -> tuple[float, float]:
    """Seconds of a step and bytes of the fullest device."""
    it = priced(job, fits)
    return it.step_s, it.need_bytes


def memory_gib(job: Job, fits: Calibration, meter: str = "device", rank: Rank | None = None) -> float:
    """GiB of a prepared job's fullest pipeline rank, its first or its last, as that meter shows them."""
    return _metered_gib(job, _chain(job, fits), fits, meter, rank)


def _metered_gib(job: Job, chain: Chain, fits: Calibration, meter: str, rank: Rank | None) -> float:
    runs, rows = chain.runs(job.strategy.stages), chain.prices.rows.take([chain.row])
    most, classes = job.cluster.memory_bytes, memory_classes(chain, runs)  # the allocator gives unused blocks back
    need = [max(needed(held, job.workload, fits), most) for held in classes]
    ranks = [min(metered(held, rows, fits, meter), room) for held, room in zip(classes, need, strict=True)]
    return {"first": ranks[0], "last": ranks[-1], None: max(ranks)}[rank] / GIB


def least_recompute(job: Job, fits: Calibration, chain: Chain | None = None, spare: float = 1.0) -> Job:
    """The job with the least recompute with which ``spare`` times its need fits, where the recipe leaves that open.

    Where a number of layers is told, that many of every stage are recomputed whole.

    ``least modules`` stops at selective recompute: the stack recomputes modules, never whole layers. The recompute that
    a source in no table is assumed to have is the least that it may have: under Megatron-Core, which can, of as few
    layers of every stage as fit.
    """
    told = str(job.switches.get("recompute", ""))
    if whole := whole_layers(told):
        return recomputing(job, "none", whole)
    words = told.split()
    assumed = job.switches.get("recompute_assumed", False)
    if words[:1] != ["least"] and not assumed:
        return job
    chain = chain or _chain(job, fits)
    tried = list(_recomputes(job, "modules" in words, by_layers=assumed and job.stack == "megatron-core"))

    def fit(one: Job) -> bool:
        return _need_bytes(one, chain, fits, spare) <= job.cluster.memory_bytes

    return tried[bisect.bisect_left(tried, True, hi=len(tried) - 1, key=fit)]


def _recomputes(job: Job, only_modules: bool, by_layers: bool) -> Iterator[Job]:
    """The job with what it may recompute, the least first."""
    own = job.strategy.stages[0].runs[0].choice.recompute
    yield from (recomputing(job, choice) for choice in RECOMPUTE[RECOMPUTE.index(own) : 2])
    most = max(stage.layers for stage in job.strategy.stages)
    if own == "full" or not only_modules:
        yield from (recomputing(job, "selective", layers) for layers in range(1 if by_layers else most, most + 1))


def quickest(job: Job, fits: Calibration) -> Job:
    """The job with the schedule that the recipe leaves to tuning: the quickest that fits with the least recompute."""
    tried = [least_recompute(one, fits) for one in _schedules(job)]
    found = [(*step_and_memory(one, fits), one) for one in tried]
    roomy = [one for one in found if one[1] <= job.cluster.memory_bytes]
    return min(roomy, key=lambda one: one[0])[2] if roomy else tried[0]


def _schedules(job: Job) -> Iterator[Job]:
    """The job with every micro-batch, a power of two, and number of even virtual stages that the recipe leaves open."""
    plan, layers, pp = job.strategy, job.model.layers, job.strategy.degrees.pp
    batch, chosen = plan.schedule.micro_batch * plan.schedule.micro_batches, job.switches["quickest"]
    sizes = (2**k for k in range(batch.bit_length())) if "micro_batch" in chosen else (plan.schedule.micro_batch,)
    chunks = {plan.schedule.virtual_stages, *((1, *legal_virtual(layers, pp)) if "vpp" in chosen else ())}
    for size, v in itertools.product(sizes, sorted(chunks)):
        if batch % size or (v > 1 and batch // size % pp):
            continue
        schedule = TrainingSchedule("interleaved" if v > 1 else "1f1b", v, size, batch // size)
        same = v == plan.schedule.virtual_stages
        stages = plan.stages if same else uniform_stages(layers, pp * v, plan.stages[0].runs[0].choice.recompute)
        changed = dataclasses.replace(plan, schedule=schedule, stages=stages)
        yield dataclasses.replace(job, strategy=changed)


def recomputing(job: Job, choice: str, full: int = 0) -> Job:
    """The job with every layer recomputed in that way, but for up to ``full`` of each stage, which are whole."""
    stages = tuple(Stage(tuple(_runs(stage.layers, choice, full))) for stage in job.strategy.stages)
    return dataclasses.replace(job, strategy=dataclasses.replace(job.strategy, stages=stages))


def _runs(layers: int, choice: str, full: int) -> Iterator[LayerRun]:
    """A stage's runs; one without layers, an end's, has a run of none."""
    whole = min(full, layers)
    counts = [(whole, "full"), (layers - whole, choice)]
    return (LayerRun(count, LayerChoice(name)) for count, name in counts if count or (name == choice and not layers))


def predict(cases: Iterable[Case], *, progress: Progress = lambda done, total: None) -> list[Prediction]:
    """One line a row and quantity: what was measured, and time, memory and fit of every row that has a job."""
    cases = list(cases)
    places, found = _alike(cases), {}
    for at, figures in zip(places, each(_figures, [[cases[k] for k in at] for at in places]), strict=True):
        for k, one in zip(at, figures, strict=True):
            found[k] = one
            progress(len(found), len(cases))
    return [Prediction(case, *figure) for k, case in enumerate(cases) for figure in found[k]]


def _alike(cases: Sequence[Case]) -> list[list[int]]:
    """Places of rows that run alike under their settings but for degrees and sizes of one schedule, group by group."""
    groups: dict[Hashable, list[int]] = {}
    for k, case in enumerate(cases):
        groups.setdefault(_of_a_table(case), []).append(k)
    return list(groups.values())


def _of_a_table(case: Case) -> Hashable:
    """What the prices of a table's rows have in common; the row itself where it has a reason for none."""
    if case.job is None:
        return case.id
    job, row = with_settings(case.job), Rows.of(case.job.strategy)
    return job.model, job.cluster, job.workload, row.schedule, row.in_flight, row.tiers


def left_out(cases: Iterable[Case], lines: Iterable[Prediction]) -> list[Prediction] | None:
    """``lines``, as :func:`predict` gave them, with each row's (model, accelerator) group left out of the fit.

    ``None`` when a row with a measured step was not in the fit: then plain predictions are out of sample already.
    """
    ratios = left_out_ratios()
    timed = {case.id for case in cases if case.job is not None and _measured(case, "step_s") is not None}
    if not timed or not timed <= ratios.keys():
        return None
    return [_scaled(line, ratios.get(line.case.id, 1.0)) for line in lines]


def _scaled(line: Prediction, ratio: float) -> Prediction:
    if line.quantity != "step_s" or line.predicted is None:
        return line
    return dataclasses.replace(
        line, predicted=line.predicted * ratio, low=line.low * ratio, high=line.high * ratio
    )  # fmt: skip


def _figures(cases: Sequence[Case]) -> list[list[tuple]]:
    """The fields of alike rows' lines but for the rows themselves, which do not travel between processes."""
    names = [field.name for field in dataclasses.fields(Prediction)][1:]
    lines = (_lines(case, chain) for case, chain in zip(cases, _known_chains(cases), strict=True))
    return [[tuple(getattr(line, name) for name in names) for line in each] for each in lines]


def _known_chains(cases: Sequence[Case]) -> list[Chain | None]:
    """The rows' chains; none where one of them is refused, which each is then asked by itself."""
    try:
        jobs = [with_settings(case.job) for case in cases if case.job is not None]
        return _chains(jobs, calibrate(jobs[0].cluster, jobs[0].workload.stack)) if jobs else [None] * len(cases)
    except PlannerError:
        return [None] * len(cases)


def _lines(case: Case, chain: Chain | None) -> list[Prediction]:
    if case.job is None:
        return _refused(case, case.missing)
    try:
        it = _priced_once(case.job, chain)
    except PlannerError as error:
        return _refused(case, str(error))
    wanted: dict[Quantity, float | None] = {"step_s": None, "peak_mem_gib": None, "fits": None}
    if any(one.quantity == "node_w" for one in case.measured):
        wanted = {"node_w": None}
    wanted |= {one.quantity: one.value for one in case.measured}
    return [_line(case, quantity, value, it) for quantity, value in wanted.items()]


def _refused(case: Case, reason: str) -> list[Prediction]:
    """Every measured figure of a row that cannot be predicted; a row that ran has a step whatever its metric."""
    known: dict[Quantity, float | None] = {one.quantity: one.value for one in case.measured}
    if known.get("fits") == 1.0:
        known = {"step_s": None} | known
    return [Prediction(case, quantity, value, None, None, None, reason) for quantity, value in known.items()]


def _line(case: Case, quantity: Quantity, measured: float | None, it: Priced) -> Prediction:
    part = it.job.cluster.accelerator
    accelerator = "" if "accelerator" in case.assumed else part.whole
    stack = "" if "source" in case.assumed else it.job.stack
    known = (it.job.cluster.hosts, it.job.strategy.recomputes_whole_layers)
    of = (stack, case.kind, part.family, accelerator, "model" in case.assumed, *known)
    if quantity == "peak_mem_gib":
        gib = _gib(case, it)
        return Prediction(case, quantity, measured, gib, *_by_any_meter(case, gib, *interval("memory", gib, *of)))
    if quantity == "step_s":
        low, high = interval("time", it.step_s, *of)
        return Prediction(case, quantity, measured, it.step_s, low, high, _note(case))
    if quantity == "node_w":
        low, high = interval("power", it.node_w, *of)
        return Prediction(case, quantity, measured, it.node_w, low, high)
    spare = at_most("memory", FITS_IN, it.job.stack, *of[1:])
    return Prediction(case, quantity, measured, float(_fits(it, spare)), None, None)


def _fits(it: Priced, spare: float) -> bool:
    """Whether ``spare`` times the need fits, with as much recompute as that takes where the recipe leaves it open."""
    fits = calibrate(it.job.cluster, it.job.workload.stack)
    job = least_recompute(it.job, fits, it.chain, spare)
    return _need_bytes(job, it.chain, fits, spare) <= job.cluster.memory_bytes


def _by_any_meter(case: Case, gib: float, low: float, high: float) -> tuple[float, float]:
    """Bounds that also hold the other meters' figures, where the source is in no table and its meter not known."""
    if "source" not in case.assumed:
        return low, high
    return max(0.0, min(low, gib - METERS_GIB)), max(high, gib + METERS_GIB)


def _note(case: Case) -> str:
    """What stands in for something that is not known, sizes that were assumed, and a metric that gives no time."""
    stood_in = [f"{what} not known: {STANDS_IN[what]}" for what in STANDS_IN if what in case.assumed]
    sizes = _assumed_sizes(case)
    return "; ".join([*stood_in, *([f"{sizes} assumed"] if sizes else []), *([case.missing] if case.missing else [])])


def _assumed_sizes(case: Case) -> str:
    """``"global_batch = 64, cp = 2"``: sizes that the row does not state or that were mended; a cp of 1 is none."""
    split = case.job.strategy.degrees
    sizes = {
        "n_gpus": split.world_size, "global_batch": case.job.workload.global_batch, "tp": split.tp, "pp": split.pp,
    } | ({"cp": split.cp} if split.cp > 1 else {})  # fmt: skip
    return ", ".join(f"{name} = {value}" for name, value in sizes.items() if name in case.assumed)


def _gib(case: Case, it: Priced) -> float:
    """Peak memory as the row's own meter shows it, the whole device's where the row has no figure."""
    figure = next((one for one in case.measured if one.quantity == "peak_mem_gib"), None)
    if figure is None:
        return it.need_bytes / GIB
    fits = calibrate(it.job.cluster, it.job.workload.stack)
    return _metered_gib(it.job, it.chain, fits, figure.meter or "device", figure.rank)


def _priced_once(job: Job, chain: Chain | None) -> Priced:
    ready, chain = _settled(with_settings(job), chain)
    return priced(ready, calibrate(ready.cluster, ready.workload.stack), chain)


def _measured(case: Case, quantity: Quantity) -> float | None:
    return next((one.value for one in case.measured if one.quantity == quantity), None)


def left_out_ratios() -> dict[str, float]:
    """For each row that was fitted: its prediction with its group left out over the plain one."""
    path = FOLDER / "left_out.csv"
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["id"]: float(row["ratio"]) for row in csv.DictReader(file)}


def classes_of(case: Case, job: Job) -> tuple[str, ...]:
    """Classes of errors that a row belongs to; ``job`` is its own, prepared."""
    known = (job.cluster.accelerator.family, job.cluster.hosts, job.strategy.recomputes_whole_layers)
    return classes(job.stack, case.kind, *known)


def priced_node(cases: Iterable[Case]) -> dict[str, list[Error]]:
    """Errors of memory and node power of every row that has them."""
    found: dict[str, list[Error]] = {"memory": [], "power": []}
    names = {"peak_mem_gib": "memory", "node_w": "power"}
    for line in predict(case for case in cases if any(one.quantity in names for one in case.measured)):
        if line.quantity in names and line.predicted is not None and line.measured is not None:
            log = math.log(line.measured / line.predicted)
            group = f"{line.case.title} | {line.case.accelerator}"
            part = line.case.job.cluster.accelerator.whole
            kept = classes_of(line.case, prepared(line.case.job))
            found[names[line.quantity]].append(Error(kept, group, log, part))
    return found
