"""How big a published run is and how it is split, from the row's cells, its notes and the stack's recipe.

dp            = n_gpus / (tp pp cp)
global batch  = micro_batch dp accumulation
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from planner.published import machines
from planner.published.csv_rows import Row, batch, in_tokens, noted, per_device, whole
from planner.published.recipes import Recipe
from planner.published.sources import Source
from planner.published.switches import LORA
from planner.published.wording import said
from topologies.errors import BadInput

REQUIRED = ("seq_len", "n_gpus", "global_batch", "tp", "pp")
MOST_LOGICAL = 2**24
_PARALLEL = r"[ _-](?:model[ _-])?parallel(?:ism)?(?:[ _-](?:size|degree))?"
LONG_NAMES = {
    "tp": rf"tp|tensor{_PARALLEL}|mp|model{_PARALLEL}",
    "pp": rf"pp|pipeline{_PARALLEL}",
    "cp": rf"cp|context{_PARALLEL}|(?:deepspeed-)?ulysses(?:[ _-]*(?:sp|degree|size))?|sequence_parallel_size",
    "ep": rf"ep|expert{_PARALLEL}",
    "vpp": r"vpp|vp",
    "micro_batch": r"mbs|micro[_ -]?batch(?:[_ -]?size)?",
    "global_batch": r"gbs|global[_ -]?batch(?:[_ -]?size)?",
    "seq_len": r"seq(?:uence)?[ _-]?len(?:gth)?|seqlen|context[ _-]?len(?:gth)?",
}
"""How flags spell what a column holds."""
WAYS = {"tp": "tensor|tp|model", "pp": "pipeline|pp", "cp": "context|cp", "ep": "expert|ep"}
"""What stands behind ``8-way``."""
ACCUMULATION = r"(?:grad(?:ient)?[ _-]?acc(?:um(?:ulation)?)?(?:[ _-]steps)?|accumulate[ _-]grad[ _-]batches)"
"""How Hugging Face, DeepSpeed and Lightning spell gradient accumulation."""
QUICKEST = "quickest"
"""A micro-batch or number of virtual stages that only a prediction can tell: of those that fit the quickest."""
MENDED_BATCH = 0.02
"""Share of a batch by which it may be off whole micro-batches before the row counts as contradictory."""
MENDED_TOKENS = 0.1
"""The same of a batch in tokens, which is told in one or two digits."""

MENDED_DEVICES = 1.5
"""Factor by which devices may differ from the product of all degrees: 320 stand for 256 in one published table."""


@dataclass(frozen=True)
class Sizes:
    """Whole numbers of one run. ``assumed`` names those that a default filled."""

    n_gpus: int
    seq_len: int
    global_batch: int
    micro_batch: int
    tp: int
    pp: int
    cp: int
    vpp: int
    ep: int
    etp: int
    assumed: tuple[str, ...] = ()

    @property
    def dp(self) -> int:
        """Copies of the batch."""
        return self.n_gpus // (self.tp * self.pp * self.cp)

    @property
    def micro_batches(self) -> int:
        """Micro-batches a step of one data-parallel rank."""
        return self.global_batch // (self.dp * self.micro_batch)


class Cells:
    """Whole numbers of a row under their names, each from the first place that has it."""

    def __init__(self, row: Row, source: Source, recipe: Recipe) -> None:
        self.row, self.source, self.recipe = row, source, recipe
        self.found: dict[str, int] = {}
        self.assumed: list[str] = []
        self.unread: list[str] = []

    @property
    def stated(self) -> bool:
        """Whether the row states all of :data:`REQUIRED`."""
        return all(name in self.found and name not in self.assumed for name in REQUIRED)

    def take(self, name: str, *values: int | None) -> int | None:
        """The first of ``values`` that is known, kept under ``name``."""
        known = next((value for value in values if value), None)
        if known is not None:
            self.found[name] = known
        return known

    def fill(self, name: str, otherwise: Any = None) -> None:
        """Where nothing is known: the recipe's cell, or ``otherwise``; noted as assumed."""
        memory_bytes = 0.0
        if isinstance(self.recipe.value(name), dict):
            memory_bytes = machines.ready_cluster(self.row["accelerator"], self.source.prefix).memory_bytes
        value = self.recipe.by_memory(name, memory_bytes, otherwise)
        value = otherwise if value == QUICKEST else value
        if name not in self.found and value is not None:
            self.found[name] = int(value)
            self.assumed.append(name)


def read_cells(row: Row, source: Source, recipe: Recipe) -> Cells:
    """Everything that the row itself says or that follows from it. Raises ``BadInput`` for a broken number."""
    cells = Cells(row, source, recipe)
    cells.take("n_gpus", whole(row, "n_gpus"))
    for name in ("seq_len", "tp", "pp", "cp", "vpp", "ep"):
        cells.take(name, whole(row, name), _noted(row, f"{name}_derived"), _spelt(row, name))
    cells.take("etp", _noted(row, "ETP", "etp"))
    cells.take("micro_batch", _micro_batch(cells), _noted(row, "LBS"), _spelt(row, "micro_batch"))
    cells.take(
        "global_batch",
        None if per_device(row, "global_batch") else batch(row, cells.found.get("seq_len")),
        _noted(row, "gbs_derived"),
        _rounded(row),
        _spelt(row, "global_batch"),
    )
    _count_devices(cells)
    _fill_forced(cells)
    _unswap(cells)
    _fill_batches(cells)
    return cells


def whole_sizes(cells: Cells) -> Sizes:
    """The run's sizes, the recipe's where the row says nothing.

    Raises ``BadInput`` naming what is not stated, and for degrees that contradict each other.
    """
    _longest_example(cells)
    for name in ("seq_len", "tp", "pp"):
        cells.fill(name)
    _split_batch(cells)
    cells.fill("micro_batch")
    _fill_batches(cells)
    _gather_batch(cells)
    cells.fill("global_batch")
    missing = [name for name in REQUIRED if name not in cells.found]
    if missing:
        raise BadInput(f"{', '.join(missing)} not stated")
    if not _experts(cells.row):
        cells.found.setdefault("ep", 1)
    for name, otherwise in (("micro_batch", 1), ("vpp", 1), ("cp", 1), ("ep", 1)):
        cells.fill(name, otherwise)
    _split_sequences(cells)
    _forget_what_cannot_matter(cells)
    return _checked(cells)


def _micro_batch(cells: Cells) -> int | None:
    """The cell's micro-batch, which is one device's; words that are no number are noted and count as not stated."""
    row = per_device(cells.row, "micro_batch") or cells.row
    try:
        return whole(row, "micro_batch")
    except BadInput as error:
        cells.unread.append(f"{error}; taken as not stated")
        return None


def _count_devices(cells: Cells) -> None:
    """Devices of a row that states all its degrees, dp among them."""
    found, dp = cells.found, whole(cells.row, "dp") or _noted(cells.row, "dp_derived")
    if dp and {"tp", "pp"} <= found.keys():
        cells.take("n_gpus", found.get("n_gpus"), dp * found["tp"] * found["pp"] * found.get("cp", 1))


def _fill_forced(cells: Cells) -> None:
    """Degrees that are not stated are 1 where those that are multiply to the devices: ``tp=8, dp=124`` of 992."""
    found, dp = cells.found, whole(cells.row, "dp") or _noted(cells.row, "dp_derived")
    stated = math.prod(found.get(name, 1) for name in ("tp", "pp", "cp")) * (dp or 1)
    if found.get("n_gpus") == stated:
        for name in ("tp", "pp", "cp"):
            cells.take(name, found.get(name), 1)


def _split_sequences(cells: Cells) -> None:
    """More copies than sequences: where no cp is stated, devices share a sequence until each copy has one.

    By cp alone, or by cp up to the recipe's ``most_cp`` and then tp where that is not stated either and the model is
    trained whole. Raises ``BadInput`` where the sequence has no such 2 cp parts, which balanced attention needs.
    """
    found, dp = cells.found, _data_parallel(cells)
    if not (dp and "cp" in cells.assumed and dp > found["global_batch"]):
        return
    if in_tokens(cells.row) and dp / found["global_batch"] - 1 <= MENDED_TOKENS:
        return
    share, most = dp // math.gcd(dp, found["global_batch"]), cells.recipe.value("most_cp")
    if most and "tp" in cells.assumed and share % most == 0 and not said(cells.row.get("other_flags", ""), LORA):
        found["tp"] *= share // most
        share = most
    if found["seq_len"] % (2 * share):
        raise BadInput(
            f"fewer sequences than copies: global_batch = {found['global_batch']} on dp = {dp}, and cp = {share} "
            f"does not cut seq_len = {found['seq_len']}; state cp or the batch"
        )
    found["cp"] *= share


def _forget_what_cannot_matter(cells: Cells) -> None:
    """No chunks without stages and no groups of experts without experts: nothing was assumed there."""
    for name, idle in (("vpp", cells.found["pp"] == 1), ("ep", not _experts(cells.row))):
        if idle and name in cells.assumed:
            cells.assumed.remove(name)


def _noted(row: Row, *names: str) -> int | None:
    value = noted(row, *names)
    return int(value) if value and value == int(value) else None


def _spelt(row: Row, name: str) -> int | None:
    """What a column holds where the row's flags, or else its notes, spell it instead."""
    return _flagged(row, name) or _in_notes(row, name)


def _flagged(row: Row, name: str) -> int | None:
    """The number that a row's flags spell: ``"TP=4"``, ``"tp 4"``, ``"TP4 PP2"``, ``"4-way tensor parallel"``.

    A degree may also stand beside the sharding: ``"TP=4 + FSDP=16"``.
    """
    text = row.get("other_flags", "") + (" ; " + row.get("zero_or_fsdp_stage", "") if name in WAYS else "")
    spelt = LONG_NAMES.get(name, name)
    found = re.search(rf"(?<![a-z.])(?:{spelt})[ =:-]{{0,2}}(\d+)(?![\d.])", text, re.IGNORECASE)
    if found is None and name in WAYS:
        found = re.search(rf"(?<![\d.])(\d+)-way[ -](?:{WAYS[name]})(?![a-z])", text, re.IGNORECASE)
    return int(found[1]) or None if found else None


def _in_notes(row: Row, name: str) -> int | None:
    """The number that a row's notes spell with an equals sign, ``"TP=4"``, unless they say that columns are shifted."""
    notes = row.get("notes", "")
    spelt = LONG_NAMES.get(name, name)
    found = re.search(rf"(?<![\w./])(?:{spelt})\s*=\s*(\d+)(?![\d./])", notes, re.IGNORECASE)
    return int(found[1]) or None if found and not re.search(r"shifted|typo|conflict|swapped", notes) else None


def _rounded(row: Row) -> int | None:
    """The batch that a source prints with three digits: "prints 1020 (3-digit rounding of 1024)"."""
    found = re.search(r"global_batch[^;]*rounding of (\d+)", row.get("notes", ""))
    return int(found[1]) if found else None


def _unswap(cells: Cells) -> None:
    """Batch and micro-batch of a row whose notes say that its source swapped them."""
    found = cells.found
    swapped = "swapped" in cells.row.get("notes", "") and found.get("global_batch", 0) < found.get("micro_batch", 0)
    if swapped:
        found["global_batch"], found["micro_batch"] = found["micro_batch"], found["global_batch"]


def _fill_batches(cells: Cells) -> None:
    """Batch and micro-batch from each other, where accumulation is known."""
    found, dp = cells.found, _data_parallel(cells)
    if dp is None:
        return
    steps = _accumulation(cells.row)
    local = _local_batch(cells)
    if "micro_batch" in found and steps:
        cells.take("global_batch", found.get("global_batch"), found["micro_batch"] * dp * steps)
    if local or (cells.source.local_batch and "micro_batch" in found):
        cells.take("global_batch", found.get("global_batch"), (local or found["micro_batch"]) * dp)
    if "global_batch" in found and "micro_batch" not in found and not cells.recipe.value("micro_batches"):
        each, left = divmod(found["global_batch"], dp * (steps or found["global_batch"]))
        whole_local = cells.source.local_batch and found.get("pp") == 1 and found["global_batch"] % dp == 0
        guess = found["global_batch"] // dp if whole_local and not steps else each if not left and each else None
        cells.take("micro_batch", guess)


def _accumulation(row: Row) -> int | None:
    """Micro-batches a step of one rank, as flags and notes spell them: ``"GA=8"``, ``"grad_accum 8"``."""
    text = " ; ".join((row.get("other_flags", ""), row.get("notes", "")))
    found = re.search(rf"(?<![a-z]){ACCUMULATION}(?:\s*[=:]\s*|\s+)(\d{{1,6}})(?![\d.])", text, re.IGNORECASE)
    spelt = int(found[1]) or None if found else None
    return _noted(row, "GA", "GradAccum", "micro_num", "MINIBS(grad accum)") or spelt


def _micro_batches(cells: Cells) -> int | None:
    """Micro-batches a step of one data-parallel rank by the recipe, where ``"pp"`` stands for the row's own degree."""
    value = cells.recipe.value("micro_batches")
    return cells.found.get("pp") if value == "pp" else value


def _split_batch(cells: Cells) -> None:
    """The micro-batch of a known batch in the recipe's number of micro-batches."""
    found, dp, each = cells.found, _data_parallel(cells), _micro_batches(cells)
    if "micro_batch" in found or "global_batch" not in found or not (dp and each):
        return
    if found["global_batch"] % (dp * each) == 0:
        found["micro_batch"] = found["global_batch"] // (dp * each)
        cells.assumed.append("micro_batch")


def _gather_batch(cells: Cells) -> None:
    """The batch of a known micro-batch in the recipe's number of micro-batches."""
    found, dp, each = cells.found, _data_parallel(cells), _micro_batches(cells)
    if "global_batch" not in found and dp and each and "micro_batch" in found:
        found["global_batch"] = found["micro_batch"] * dp * each
        cells.assumed.append("global_batch")


def _local_batch(cells: Cells) -> int | None:
    """Sequences that one rank takes of the batch, by the notes or a batch "per GPU"."""
    found, row = re.search(r"local batch size (\d+)", cells.row.get("notes", "")), per_device(cells.row, "global_batch")
    stated = batch(row, cells.found.get("seq_len")) if row else None
    return int(found[1]) if found else stated


def _data_parallel(cells: Cells) -> int | None:
    """Copies of the batch: from the degrees, else as stated."""
    found = cells.found
    if not {"n_gpus", "tp", "pp"} <= found.keys():
        return whole(cells.row, "dp") or _noted(cells.row, "dp_derived")
    inner = found["tp"] * found["pp"] * found.get("cp", 1)
    return found["n_gpus"] // inner or None


def _longest_example(cells: Cells) -> None:
    """For fine-tuning on examples of many lengths: the longest, which is what memory has to hold."""
    longest = re.search(r"longest example (\d+) tokens", cells.row.get("notes", ""))
    if longest and "seq_len" not in cells.found:
        cells.found["seq_len"] = int(longest[1])
        cells.assumed.append("seq_len")


def _checked(cells: Cells) -> Sizes:
    """The sizes, mended where the row contradicts itself. Raises ``BadInput`` where that cannot be."""
    found = dict(cells.found)
    etp = found.pop("etp", None) or _expert_tensor(cells, found)
    inner = found["tp"] * found["pp"] * found["cp"]
    if found["n_gpus"] % inner:
        found["n_gpus"] = _devices_by_degrees(cells, found, inner)
    dp = found["n_gpus"] // inner
    found["micro_batch"], found["global_batch"] = _whole_batches(cells, found, dp)
    for name, value in found.items():
        if value > MOST_LOGICAL:
            raise BadInput(f"{name} = {value} is above {MOST_LOGICAL}")
    found["ep"], found["etp"] = _expert_split(cells, found["n_gpus"] // found["pp"], found["ep"], etp)
    return Sizes(**found, assumed=tuple(dict.fromkeys(cells.assumed)))


def _expert_split(cells: Cells, stage: int, ep: int, etp: int) -> tuple[int, int]:
    """``(ep, etp)``, the largest near the row's that divide the devices of a pipeline stage."""
    legal = math.gcd(stage, ep), math.gcd(stage // math.gcd(stage, ep), etp)
    cells.assumed += [name for name, one, was in zip(("ep", "etp"), legal, (ep, etp), strict=True) if one != was]
    return legal


def _expert_tensor(cells: Cells, found: dict[str, int]) -> int:
    """Ways to split an expert by the recipe, where ``"tp"`` stands for the row's own degree."""
    if found["ep"] == 1 and not _experts(cells.row):
        return 1
    value = cells.recipe.value("etp", 1)
    cells.assumed.append("etp")
    return found["tp"] if value == "tp" else int(value)


def _experts(row: Row) -> bool:
    return bool(row.get("ep", "")) or '"experts"' in row.get("arch_json", "")


def _devices_by_degrees(cells: Cells, found: dict[str, int], inner: int) -> int:
    """Devices of a row whose count contradicts its degrees: by its own dp, where the count may be a slip."""
    dp, stated = whole(cells.row, "dp") or _noted(cells.row, "dp_derived"), found["n_gpus"]
    if dp is None:
        raise BadInput(f"tp*pp*cp = {inner} does not divide n_gpus = {stated}")
    if not 1 / MENDED_DEVICES <= dp * inner / stated <= MENDED_DEVICES:
        raise BadInput(f"tp*pp*cp*dp = {dp * inner} contradicts n_gpus = {stated}")
    cells.assumed.append("n_gpus")
    return dp * inner


def _whole_batches(cells: Cells, found: dict[str, int], dp: int) -> tuple[int, int]:
    """``(micro_batch, global_batch)`` such that every data-parallel rank has whole micro-batches."""
    micro, batch = found["micro_batch"], found["global_batch"]
    if batch % (dp * micro) == 0:
        return micro, batch
    if batch % dp == 0 and "micro_batch" in cells.assumed:
        return math.gcd(batch // dp, micro), batch
    mended = max(1, round(batch / (dp * micro))) * dp * micro
    if abs(mended / batch - 1) > (MENDED_TOKENS if in_tokens(cells.row) else MENDED_BATCH):
        raise BadInput(f"global_batch = {batch} is no multiple of dp * micro_batch = {dp} * {micro}")
    cells.assumed.append("global_batch")
    return micro, mended
