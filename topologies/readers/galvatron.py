"""Galvatron's measured bandwidths: ``allreduce_bandwidth_2nodes_8gpus_per_node.json``.

    "allreduce_size_8_consec_1": 155.658     GB/s of bus bandwidth in groups of 8 neighbours
    "allreduce_size_8_consec_0": 20.77       in groups of 8 that stride over the hosts

    seconds = 2 (n - 1) / n  V / bandwidth,  V = 256 MB, the largest size that Galvatron measures by default

Source: PKU-DAIR/Hetu-Galvatron galvatron/profile_hardware and its hardware_configs.
"""

from __future__ import annotations

import re

from topologies.errors import BadInput
from topologies.readers.bounded import json_root, real
from topologies.readers.seen import Measured, Seen

TITLE = "Galvatron bandwidths"
BUFFER_BYTES = 256e6
_KEY = re.compile(r"allreduce_size_([1-9][0-9]{0,5})_consec_([01])")
_FILE = re.compile(r"([1-9][0-9]{0,4})nodes_([1-9][0-9]{0,2})gpus_per_node")


def recognises(text: str) -> bool:
    """Whether the text is a JSON object with keys like Galvatron's."""
    return (
        text.lstrip().startswith("{") and re.search(r'"allreduce_size_[0-9]+_consec_[01]"', text[:20_000]) is not None
    )


def read(text: str, origin: str) -> Seen:
    """What was measured. Raises ``BadInput`` where the file's name does not tell hosts and devices."""
    root = json_root(text, origin)
    shape = _FILE.search(origin)
    if not isinstance(root, dict) or shape is None:
        raise BadInput(
            f"{origin}: hosts and devices stand in the name that Galvatron gives the file; call it "
            "allreduce_bandwidth_{N}nodes_{M}gpus_per_node.json"
        )
    hosts, per_host = int(shape[1]), int(shape[2])
    found, others = [], []
    for key, value in root.items():
        match = _KEY.fullmatch(key)
        if match is None:
            others.append(str(key)[:40])
            continue
        group, speed = int(match[1]), real(value, f"{key}", origin, 1e6) * 1e9
        if not speed or group < 2 or group > hosts * per_host:
            raise BadInput(f"{origin}: {key} = {value!r} is no bandwidth of a group of 2 to {hosts * per_host} devices")
        across = _hosts_of(group, match[2] == "1", hosts, per_host)
        if group % across == 0:
            seconds = 2 * (group - 1) / group * BUFFER_BYTES / speed
            found.append(Measured("all_reduce", group, across, BUFFER_BYTES, seconds, origin))
    if not found:
        raise BadInput(f"{origin}: no bandwidth of an all-reduce in it; give a file of Galvatron's hardware_configs")
    odd = (f"{origin}: {', '.join(others[:4])} is not read",) if others else ()
    return Seen(origin, measured=tuple(found), oddities=odd)


def _hosts_of(group: int, neighbours: bool, hosts: int, per_host: int) -> int:
    """Hosts that a group spans: as few as hold it, or all that a stride of world / group reaches."""
    if neighbours:
        return -(-group // per_host)
    stride = hosts * per_host // group
    return len({rank * stride // per_host for rank in range(group)})
