"""``amd-smi`` and ``amd-smi topology``, one after the other in a file or each alone.

    | 0000:05:00.0    AMD Instinct MI300X | ...        the table of devices: bus, product, and a row below it the mode
    |   0       0       7        DPX/NPS1 | ...        of the package, N/A on its partitions after the first
    WEIGHT TABLE:, LINK TYPE TABLE:                    of ``topology``, devices by bus, SELF or 0 to itself

The table of devices names products and modes and has no links; ``topology`` has links and names no product.

Source: what the commands print; ROCm/amdsmi issue 132 (DPX/NPS1) and public dumps of whole devices.
"""

from __future__ import annotations

import re

from topologies.errors import BadInput
from topologies.readers.seen import Device, HostSeen, Seen
from topologies.readers.xgmi_tables import MOST_DEVICES, Tables, asymmetries, partition_mode, wires

TITLE = "amd-smi"
_TITLES = {"WEIGHT TABLE:": "weight", "HOPS TABLE:": "hops", "LINK TYPE TABLE:": "type"}
_TABLE = re.compile(r"[A-Z][A-Z -]{2,30} TABLE:")
_BUS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", re.IGNORECASE)
_LISTED = re.compile(rf"\|\s*({_BUS.pattern})\s+(\S.{{0,60}}?)\s*\|.{{0,120}}", re.IGNORECASE)
_MODE = re.compile(r"\|(?:\s+\S{1,8}){3}\s+([A-Z]{3})/(NPS[0-9])\s*\|.{0,120}")


def recognises(text: str) -> bool:
    """Whether the text holds a table of ``amd-smi`` or of ``amd-smi topology``."""
    head = text[:200_000]
    return "LINK TYPE TABLE:" in head or ("AMD-SMI" in head and any(map(_LISTED.fullmatch, head.splitlines())))


def read(text: str, origin: str) -> Seen:
    """The one host of the text. Raises ``BadInput`` for a table that is missing, cut or holds other cells."""
    lines = [line.strip() for line in text.splitlines()]
    products = {match[1].lower(): match[2] for match in map(_LISTED.fullmatch, lines) if match}
    if len(products) > MOST_DEVICES:
        raise BadInput(f"{origin}: {len(products)} devices are listed; a host has at most {MOST_DEVICES}")
    modes = [match for match in map(_MODE.fullmatch, lines) if match]
    mode = partition_mode([match[1] for match in modes], [match[2] for match in modes], origin)
    tables = _tables(lines)
    buses = tables.checked(origin, "amd-smi topology") if tables.matrices else list(products)
    names = {bus: f"GPU{n}" for n, bus in enumerate(buses)}
    tables.matrices = {what: {names[bus]: row for bus, row in rows.items()} for what, rows in tables.matrices.items()}
    devices = tuple(Device(names[b], origin, product=products.get(b, ""), bus=b, partition=mode) for b in buses)
    links = tuple(wires(tables, list(names.values()), origin)) if tables.matrices and not mode else None
    return Seen(origin, (HostSeen("", origin, devices, links),), oddities=tuple(asymmetries(tables, origin)))


def _tables(lines: list[str]) -> Tables:
    found = Tables()
    rows: dict[str, list[str]] | None = None
    for line in lines:
        if _TABLE.fullmatch(line):
            name = _TITLES.get(line)
            rows = None if name is None else found.matrices.setdefault(name, {})
        elif rows is not None:
            tokens = line.split()
            if len(tokens) > 1 and _BUS.fullmatch(tokens[0]) and not _BUS.fullmatch(tokens[1]):
                rows.setdefault(tokens[0].lower(), tokens[1:])
    return found
