"""``rocm-smi --showtopo``, with or without ``--showproductname`` and ``--showcomputepartition`` in the same file.

    Weight  15 a direct XGMI link, 30 over one other device; PCIe 20 a segment      Link Type  XGMI, PCIE

Where packages are shown as several devices each (CPX), weights are other ones (13, 15, 41: ROCm/rccl pull request
1290), all devices reach each other, and links are left to the catalogue.

``Hops`` are no hops but 1 for XGMI, 2 and 3 for PCIe, so weights tell direct neighbours.

Source: the tables that the command prints; what they mean: ROCm/rocm-systems issue 5763 and pull request 7372.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from topologies.errors import BadInput
from topologies.readers.bounded import whole
from topologies.readers.seen import Device, HostSeen, Seen, Wire

TITLE = "rocm-smi --showtopo"
MOST_DEVICES = 512
_DIRECT = 15
_TITLES = {"weight between two gpus": "weight", "hops between two gpus": "hops", "link type between two gpus": "type"}
_HEADING = re.compile(r"=+ ?([A-Za-z ]{4,60}?) ?=+")
_NAME = re.compile(r"GPU[0-9]{1,4}")
_FACT = re.compile(r"GPU\[([0-9]{1,4})\]\s*:\s*([A-Za-z() ]{2,40}?)\s*:\s*(.{1,80}?)\s*")
_PARTS = ("DPX", "TPX", "QPX", "CPX")
_MEMORY = ("NPS1", "NPS2", "NPS4", "NPS8")


@dataclass
class _Tables:
    """Matrices by name, rows by device, and single facts by device."""

    matrices: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)


def recognises(text: str) -> bool:
    """Whether the text holds a table of ``rocm-smi --showtopo``."""
    return "between two gpus" in text[:200_000].lower()


def read(text: str, origin: str) -> Seen:
    """The one host of the text. Raises ``BadInput`` for a table that is missing, cut or holds other cells."""
    tables = _tables(text, origin)
    for what in ("weight", "type"):
        if not tables.matrices.get(what):
            raise BadInput(f"{origin}: no table of {what}s between two GPUs; give the whole output of {TITLE}")
    names = list(tables.matrices["type"])
    if list(tables.matrices["weight"]) != names:
        raise BadInput(f"{origin}: the tables of weights and types name different devices; was the text cut?")
    oddities = [*_asymmetries(tables, names, origin), *_apart(tables.facts, names, origin)]
    mode = _mode(tables.facts, origin)
    devices = tuple(_device(name, tables.facts.get(name, {}), mode, origin) for name in names)
    wires = None if mode else tuple(_wires(tables, names, origin))
    return Seen(origin, (HostSeen("", origin, devices, wires),), oddities=tuple(oddities))


def _mode(facts: dict[str, dict[str, str]], origin: str) -> str:
    """``CPX``, or ``CPX/NPS4`` where the memory's is told too; empty for whole devices.

    Partitions after a package's first say ``N/A``. Raises ``BadInput`` for packages in different modes.
    """
    found = {}
    for what, legal in (("compute partition", ("SPX", *_PARTS)), ("memory partition", _MEMORY)):
        words = {each.get(what, "").upper() for each in facts.values()} & set(legal)
        if len(words) > 1:
            raise BadInput(
                f"{origin}: packages are in different modes ({', '.join(sorted(words))}); a host's are planned alike: "
                "describe those of one mode, or set all to the same"
            )
        found[what] = next(iter(words), "")
    compute, memory = found.values()
    return "" if compute in ("", "SPX") else f"{compute}/{memory}" if memory else compute


def _tables(text: str, origin: str) -> _Tables:
    found = _Tables()
    rows: dict[str, list[str]] | None = None
    for line in text.splitlines():
        heading = _HEADING.fullmatch(line.strip())
        if heading:
            name = _TITLES.get(heading[1].strip().lower())
            rows = None if name is None else found.matrices.setdefault(name, {})
        elif match := _FACT.fullmatch(line):
            found.facts.setdefault(f"GPU{int(match[1])}", {})[match[2].strip().lower()] = match[3]
        elif rows is not None:
            _add_row(rows, line.split())
    for name, matrix in found.matrices.items():
        _check_square(name, matrix, origin)
    return found


def _add_row(rows: dict[str, list[str]], tokens: list[str]) -> None:
    """A row of the matrix; its header names devices alone and is left out."""
    if tokens and _NAME.fullmatch(tokens[0]) and not all(map(_NAME.fullmatch, tokens[:2])) and len(tokens) > 1:
        rows.setdefault(tokens[0], tokens[1:])


def _check_square(name: str, matrix: dict[str, list[str]], origin: str) -> None:
    if len(matrix) > MOST_DEVICES:
        raise BadInput(f"{origin}: the table of {name}s has {len(matrix)} rows; a host has at most {MOST_DEVICES}")
    for row, cells in matrix.items():
        if len(cells) != len(matrix):
            raise BadInput(
                f"{origin}: row {row} of the table of {name}s has {len(cells)} cells for {len(matrix)} devices; "
                "was the text cut or wrapped?"
            )


def _device(name: str, facts: dict[str, str], mode: str, origin: str) -> Device:
    numa = facts.get("(topology) numa node", "")
    model = facts.get("card model", facts.get("device id", "")).lower()
    return Device(
        name,
        origin,
        product=facts.get("card series", facts.get("device name", "")),
        pci=f"1002:{model[2:]}" if re.fullmatch(r"0x[0-9a-f]{4}", model) else "",
        numa=int(numa) if re.fullmatch(r"[0-9]{1,4}", numa) else None,
        partition=mode,
    )


def _wires(tables: _Tables, names: list[str], origin: str) -> Iterator[Wire]:
    """One link between any two devices that are direct neighbours over XGMI, as both directions say."""
    types, weights = tables.matrices["type"], tables.matrices["weight"]
    for i, a in enumerate(names):
        for j, b in enumerate(names[:i]):
            kinds = {_kind(types[a][j], origin), _kind(types[b][i], origin)}
            far = max(whole(weights[a][j], f"weight of {a} and {b}", origin), whole(weights[b][i], "a weight", origin))
            if kinds == {"XGMI"} and far <= _DIRECT:
                yield Wire((b, a), "XGMI", 1, origin)


def _kind(cell: str, origin: str) -> str:
    if cell.upper() not in ("XGMI", "PCIE", "0", "N/A"):
        raise BadInput(f"{origin}: a link type is XGMI, PCIE or 0; got {cell[:20]!r}")
    return cell.upper()


def _asymmetries(tables: _Tables, names: list[str], origin: str) -> Iterator[str]:
    for what, matrix in tables.matrices.items():
        rows = list(matrix)
        for i, a in enumerate(rows):
            if matrix[a][i] not in ("0", "N/A"):
                yield f"{origin}: {a} has {what} {matrix[a][i][:20]} to itself, not 0"
            for j, b in enumerate(rows[:i]):
                if matrix[a][j] != matrix[b][i]:
                    yield (
                        f"{origin}: {what} from {a} to {b} is {matrix[a][j][:20]}, back {matrix[b][i][:20]}: "
                        "the table is not symmetric"
                    )


def _apart(facts: dict[str, dict[str, str]], names: list[str], origin: str) -> Iterator[str]:
    if any(each.get("(topology) numa node") == "-1" for each in facts.values()):
        yield f"{origin}: NUMA node -1, as virtual machines report; nearness of NICs and memory is unknown"
