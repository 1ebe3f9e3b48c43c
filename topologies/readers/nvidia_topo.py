"""``nvidia-smi topo -m``, with or without the ``nvidia-smi -L`` that names the devices, alone or in what the
``collect_env`` of torch, vLLM and SGLang prints.

    cells   X itself, NVn n NVLinks, PIX one PCIe switch, PXB several, PHB the CPU's bridge, NODE, SYS across sockets

The matrix has no bandwidths and no names of products; ``nvidia-smi -L`` in the same file gives the latter, as do lines
``GPU 0,1,2,3: NVIDIA GB200``. Columns are what stands before ``CPU Affinity``: NICs are called as drivers like. Of
several NUMA nodes (``0,3-9`` on Grace, whose devices' memory is nodes too) the first is the processor's.

Source: the legend that the command prints; columns and spacing differ between drivers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from topologies.errors import BadInput
from topologies.readers.seen import Device, HostSeen, Nic, Seen, Wire

TITLE = "nvidia-smi topo -m"
MOST_NAMES = 256
_CELL = re.compile(r"X|NV[0-9]{1,2}|PIX|PXB|PSB|PHB|NODE|SYS|SOC|N/A")
_SWITCHED = ("PIX", "PXB", "PSB")
_ANSI = re.compile(r"\x1b\[[0-9;]{0,12}m")
_LINK = re.compile(r"X|NV[0-9]{1,2}|PIX|PXB|PSB|PHB|NODE|SYS|SOC")
_COLUMN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{1,40}")
_LEGEND = re.compile(r"\s*(NIC[0-9]{1,3}): (\S{1,40})\s*")
_LISTED = re.compile(
    r"(?:GPU models and configuration: )?GPU ([0-9]{1,3}(?:,[0-9]{1,3}){0,255}): "
    r"(.{1,80}?)(?: \(UUID: .{1,80}\))?\s{0,80}"
)
_MIG = re.compile(r"\s+MIG (\S{1,20})\s+Device\s+[0-9]{1,3}:.{0,90}")


def recognises(text: str) -> bool:
    """Whether the text holds a matrix of ``nvidia-smi topo -m``."""
    return any(_header(line) for line in _ANSI.sub("", text[:200_000]).splitlines())


def read(text: str, origin: str) -> Seen:
    """The one host of the text. Raises ``BadInput`` for rows that are missing, short or hold other cells."""
    lines = _ANSI.sub("", text).splitlines()
    start = next((k for k, line in enumerate(lines) if _header(line)), None)
    if start is None:
        raise BadInput(f"{origin}: no line names the columns GPU0 GPU1 ...; give the output of nvidia-smi topo -m")
    columns = _header(lines[start])
    if len(columns) > MOST_NAMES:
        raise BadInput(f"{origin}: the header names more than {MOST_NAMES} devices and NICs; a host has fewer")
    rows = _rows(lines[start + 1 :], columns, origin)
    names = [name for name in columns if name.startswith("GPU")]
    oddities = list(_asymmetries(rows, columns, origin))
    products, partitions = _listed(lines)
    ports = _ports(rows, columns)
    devices = tuple(
        Device(
            n, origin, product=products.get(n, ""), partition=partitions.get(n, ""), numa=_numa(rows[n], columns),
            port=ports.get(n, ""), switched=n in ports,
        )
        for n in names
    )  # fmt: skip
    nics = tuple(_nics(rows, columns, names, _legend(lines), ports, origin))
    return Seen(origin, (HostSeen("", origin, devices, tuple(_wires(rows, columns, origin)), nics),),
                oddities=tuple(oddities))  # fmt: skip


def _header(line: str) -> list[str]:
    """The devices that a header names, in order; none where the line is no header."""
    tokens = line.split()
    if len(tokens) < 1 or tokens[0] != "GPU0" or (len(tokens) > 1 and _CELL.fullmatch(tokens[1])):
        return []
    names = tokens[: MOST_NAMES + 1]
    names = names[: names.index("CPU")] if "CPU" in names else names
    return names if all(map(_COLUMN.fullmatch, names)) else []


def _rows(lines: list[str], columns: list[str], origin: str) -> dict[str, list[str]]:
    """Cells and what follows them, by the row's name."""
    rows: dict[str, list[str]] = {}
    for line in lines:
        tokens = line.split()
        if not tokens or tokens[0] not in columns or tokens[0] in rows:
            continue
        cells = tokens[1 : len(columns) + 1]
        wrong = next((cell for cell in cells if _CELL.fullmatch(cell) is None), None)
        if wrong is not None or len(cells) < len(columns):
            found = f"the cell {wrong[:20]!r}" if wrong else f"{len(cells)} cells for {len(columns)} columns"
            raise BadInput(f"{origin}: row {tokens[0]} has {found}; was the text cut or wrapped?")
        more = [cell for cell in tokens[len(columns) + 1 :] if _LINK.fullmatch(cell)]
        if more:
            raise BadInput(
                f"{origin}: row {tokens[0]} has {len(more)} more cells than the header has columns, which end with "
                f"{columns[-1]}; do two names in the header stick together?"
            )
        rows[tokens[0]] = tokens[1:]
    missing = [name for name in columns if name not in rows and (name.startswith("GPU") or len(rows) == 0)]
    if missing:
        raise BadInput(f"{origin}: the matrix has no row {', '.join(missing[:4])}; was the text broken off?")
    if len(set(columns)) != len(columns):
        raise BadInput(f"{origin}: the header names a column twice; give the output of one host")
    return rows


def _numa(row: list[str], columns: list[str]) -> int | None:
    after = row[len(columns) :]
    match = re.fullmatch(r"([0-9]{1,4})(?:[,-][0-9,-]{1,200})?", after[1]) if len(after) > 1 else None
    return int(match[1]) if match else None


def _asymmetries(rows: dict[str, list[str]], columns: list[str], origin: str) -> Iterator[str]:
    for i, a in enumerate(columns):
        for j, b in enumerate(columns[:i]):
            if a in rows and b in rows and rows[a][j] != rows[b][i]:
                yield f"{origin}: {a} sees {b} by {rows[a][j]}, {b} sees {a} by {rows[b][i]}; the fewer links are taken"
    for k, name in enumerate(columns):
        if name in rows and rows[name][k] != "X":
            yield f"{origin}: {name} sees itself by {rows[name][k]}, not X"


def _links(cell: str) -> int:
    return int(cell[2:]) if cell.startswith("NV") else 0


def _wires(rows: dict[str, list[str]], columns: list[str], origin: str) -> Iterator[Wire]:
    for i, a in enumerate(columns):
        for j, b in enumerate(columns[:i]):
            if a.startswith("GPU") and b.startswith("GPU"):
                links = min(_links(rows[a][j]), _links(rows[b][i]))
                if links:
                    yield Wire((b, a), "NVLink", links, origin)


def _ports(rows: dict[str, list[str]], columns: list[str]) -> dict[str, str]:
    """The port of everything that shares a PCIe switch with something: the first name of those that do."""
    port = {name: name for name in columns}
    for a in (name for name in columns if name in rows):
        for k, b in enumerate(columns):
            if rows[a][k] in _SWITCHED and port[a] != port[b]:
                first, other = sorted((port[a], port[b]), key=columns.index)
                port = {name: first if at == other else at for name, at in port.items()}
    several = Counter(port.values())
    return {name: f"switch of {at}" for name, at in port.items() if several[at] > 1}


def _nics(
    rows: dict[str, list[str]],
    columns: list[str],
    devices: list[str],
    legend: dict[str, str],
    ports: dict[str, str],
    origin: str,
) -> Iterator[Nic]:
    for k, name in enumerate(columns):
        if not name.startswith("GPU"):
            near = any(rows[device][k] in _SWITCHED for device in devices)
            real_name = legend.get(name, name)
            kind = "efa" if real_name.startswith("rdmap") else ""
            yield Nic(real_name, origin, near=near, kind=kind, port=ports.get(name, ""))


def _legend(lines: list[str]) -> dict[str, str]:
    return {match[1]: match[2] for match in map(_LEGEND.fullmatch, lines) if match}


def _listed(lines: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Products and MIG partitions by device, as ``nvidia-smi -L`` lists them."""
    products, partitions, last = {}, {}, ""
    for line in lines:
        if match := _LISTED.fullmatch(line):
            numbers = [f"GPU{int(number)}" for number in match[1].split(",")]
            products |= dict.fromkeys(numbers, match[2])
            last = numbers[-1]
        elif last and (match := _MIG.fullmatch(line)):
            partitions[last] = f"MIG {match[1]}"
    return products, partitions
