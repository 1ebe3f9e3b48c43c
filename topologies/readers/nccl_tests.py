"""Logs of nccl-tests and rccl-tests: seconds of a collective by size, on the ranks that the log lists.

    #  Rank  0 Group  0 Pid 1887 on worker-1 device  0 [0x8d] NVIDIA H100 80GB HBM3
    #       size         count      type   redop    root     time   algbw   busbw #wrong ...
      8589934592    2147483648     float     sum      -1  44911.2 ...

The out-of-place time is taken, in microseconds. A size is that of the whole buffer. Hosts have the devices of the
ranks, where no other file shows hosts.

Source: NVIDIA/nccl-tests src/common.cu and doc/PERFORMANCE.md.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from topologies.errors import BadInput
from topologies.readers.seen import Device, HostSeen, Measured, Seen

TITLE = "nccl-tests log"
MOST_RANKS = 65_536
LONGEST = 2000
Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
_OPERATIONS: dict[str, Operation] = {
    "all_reduce_perf": "all_reduce",
    "all_gather_perf": "all_gather",
    "reduce_scatter_perf": "reduce_scatter",
    "alltoall_perf": "all_to_all",
}
_NAME = re.compile(r"\b(all_reduce_perf|all_gather_perf|reduce_scatter_perf|alltoall_perf)")
_RANK = re.compile(r"#?\s*Rank\s+([0-9]{1,6})\s.{0,80}?\son\s+(\S{1,100})\s+device\s+[0-9]{1,4}\s(.{0,120})")
_PRODUCT = re.compile(r"\s*\[.{1,40}\]\s+(\S.{0,80}?)\s*")
_ROW = re.compile(
    r"\s*([0-9]{1,15})\s+([0-9]{1,15})\s+([a-z0-9_]{3,12})\s+(?:([a-z]{3,8})\s+)?(?:(-?[0-9]{1,5})\s+)?"
    r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s+([0-9]{1,9}(?:\.[0-9]{1,6})?)\s+([0-9]{1,9}(?:\.[0-9]{1,6})?)\s.{0,120}"
)
_HEADING = re.compile(r"#?\s*size\s+count\s.{0,200}busbw.{0,200}")


def recognises(text: str) -> bool:
    """Whether the text holds the table of an nccl-tests run."""
    return any(_HEADING.fullmatch(line) for line in _short(text[:400_000]))


def read(text: str, origin: str) -> Seen:
    """What was measured. Raises ``BadInput`` for a log that does not say which test, on which ranks, or has no row."""
    found = {_OPERATIONS[name] for name in _NAME.findall(text[:400_000])}
    if len(found) != 1:
        raise BadInput(
            f"{origin}: the log names {len(found)} tests of {', '.join(_OPERATIONS)}; give the output of one, its "
            "command line or '# Collective test starting' included"
        )
    ranks = _ranks(text, origin)
    hosts = len({rank.host for rank in ranks.values()})
    if len(ranks) % hosts:
        raise BadInput(f"{origin}: {len(ranks)} ranks on {hosts} hosts are not equally many each; run as many on each")
    rows = tuple(_rows(text, found.pop(), len(ranks), hosts, origin))
    if not rows:
        raise BadInput(f"{origin}: no row of sizes and times in the log; was it broken off?")
    odd = [] if len(ranks) > 1 else [f"{origin}: one rank alone sends nothing: not used"]
    return Seen(origin, tuple(_hosts(ranks, origin)), measured=rows if len(ranks) > 1 else (), oddities=tuple(odd))


@dataclass(frozen=True, slots=True)
class _Rank:
    host: str
    product: str


def _hosts(ranks: dict[int, _Rank], origin: str) -> Iterator[HostSeen]:
    """Every host with a device a rank: NCCL refuses two ranks on one, and each may call its own ``device 0``."""
    products: dict[str, list[str]] = defaultdict(list)
    for _, rank in sorted(ranks.items()):
        products[rank.host].append(rank.product)
    for host, names in products.items():
        found = tuple(Device(f"GPU{number}", origin, product=name) for number, name in enumerate(names))
        yield HostSeen(host, origin, found, used=True)


def _rank(match: re.Match[str]) -> _Rank:
    product = _PRODUCT.fullmatch(match[3])
    return _Rank(match[2], product[1] if product else "")


def _ranks(text: str, origin: str) -> dict[int, _Rank]:
    """Where every rank runs, and on what."""
    ranks = {int(match[1]): _rank(match) for match in map(_RANK.fullmatch, _short(text)) if match}
    if not ranks or sorted(ranks) != list(range(len(ranks))) or len(ranks) > MOST_RANKS:
        raise BadInput(
            f"{origin}: the log lists {len(ranks)} ranks, not 0 to N - 1 of at most {MOST_RANKS}; build nccl-tests "
            "with MPI=1, and give the whole output"
        )
    return ranks


def _short(text: str) -> list[str]:
    return [line for line in text.splitlines() if len(line) <= LONGEST]


def _rows(text: str, operation: Operation, ranks: int, hosts: int, origin: str) -> Iterator[Measured]:
    for line in _short(text):
        match = _ROW.fullmatch(line)
        if match and int(match[1]) and float(match[6]):
            yield Measured(operation, ranks, hosts, float(match[1]), float(match[6]) * 1e-6, origin)
