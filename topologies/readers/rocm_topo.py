"""``rocm-smi --showtopo``, with or without ``--showproductname``, ``--showcomputepartition`` and
``--showmemorypartition`` in the same file: tables of :mod:`topologies.readers.xgmi_tables`, and single facts.

Where packages are shown as several devices each (CPX), weights are other ones (13, 15, 41: ROCm/rccl pull request
1290), all devices reach each other, and links are left to the catalogue.

Source: the tables that the command prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from topologies.readers.seen import Device, HostSeen, Seen
from topologies.readers.xgmi_tables import Tables, asymmetries, partition_mode, wires

TITLE = "rocm-smi --showtopo"
_TITLES = {"weight between two gpus": "weight", "hops between two gpus": "hops", "link type between two gpus": "type"}
_HEADING = re.compile(r"=+ ?([A-Za-z ]{4,60}?) ?=+")
_NAME = re.compile(r"GPU[0-9]{1,4}")
_FACT = re.compile(r"GPU\[([0-9]{1,4})\]\s*:\s*([A-Za-z() ]{2,40}?)\s*:\s*(.{1,80}?)\s*")


def recognises(text: str) -> bool:
    """Whether the text holds a table of ``rocm-smi --showtopo``."""
    return "between two gpus" in text[:200_000].lower()


def read(text: str, origin: str) -> Seen:
    """The one host of the text. Raises ``BadInput`` for a table that is missing, cut or holds other cells."""
    tables = _tables(text)
    names, facts = tables.checked(origin, TITLE), tables.facts
    oddities = [*asymmetries(tables, origin), *_apart(facts, origin)]
    told = ([each.get(f"{what} partition", "") for each in facts.values()] for what in ("compute", "memory"))
    mode = partition_mode(*told, origin)
    devices = tuple(_device(name, facts.get(name, {}), mode, origin) for name in names)
    links = None if mode else tuple(wires(tables, names, origin))
    return Seen(origin, (HostSeen("", origin, devices, links),), oddities=tuple(oddities))


def _tables(text: str) -> Tables:
    found = Tables()
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
    return found


def _add_row(rows: dict[str, list[str]], tokens: list[str]) -> None:
    """A row of the matrix; its header names devices alone and is left out."""
    if tokens and _NAME.fullmatch(tokens[0]) and not all(map(_NAME.fullmatch, tokens[:2])) and len(tokens) > 1:
        rows.setdefault(tokens[0], tokens[1:])


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


def _apart(facts: dict[str, dict[str, str]], origin: str) -> Iterator[str]:
    if any(each.get("(topology) numa node") == "-1" for each in facts.values()):
        yield f"{origin}: NUMA node -1, as virtual machines report; nearness of NICs and memory is unknown"
