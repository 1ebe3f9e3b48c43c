"""Clusters read from what machines say of themselves: one module a format, each a function from a text to a Seen.

drawn, cluster = read_files(["node.xml", "leaves=topology.conf"], Asked(hosts=4))
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from topologies.cluster import Cluster
from topologies.errors import BadInput
from topologies.readers import (
    amd_smi,
    galvatron,
    ibnetdiscover,
    infragraph,
    kubernetes,
    lstopo,
    nccl_tests,
    nccl_xml,
    nvidia_topo,
    rocm_topo,
    slurm_conf,
    slurm_yaml,
)
from topologies.readers.bounded import read_text
from topologies.readers.drawn import Asked, Drawn, draw
from topologies.readers.seen import Seen
from topologies.readers.tables import cluster_of
from topologies.ready import cluster_names

FORMATS: dict[str, ModuleType] = {
    "nccl-xml": nccl_xml,
    "rocm-topo": rocm_topo,
    "amd-smi": amd_smi,
    "nvidia-topo": nvidia_topo,
    "ibnetdiscover": ibnetdiscover,
    "slurm-conf": slurm_conf,
    "slurm-yaml": slurm_yaml,
    "lstopo": lstopo,
    "kubernetes": kubernetes,
    "galvatron": galvatron,
    "infragraph": infragraph,
    "nccl-tests": nccl_tests,
}
"""The formats, in the order in which a text is tried; each has TITLE, recognises(text) and read(text, origin)."""
MOST_FILES = 4096
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,62})=(.+)", re.DOTALL)


def read_seen(text: str, origin: str) -> Seen:
    """What one text shows, its format told by itself. Raises ``BadInput`` for one that no reader knows."""
    for module in FORMATS.values():
        if module.recognises(text):
            return module.read(text, f"{origin} ({module.TITLE})")
    titles = "; ".join(module.TITLE for module in FORMATS.values())
    raise BadInput(f"{origin} is of no format that is read here ({titles}); it begins {text.lstrip()[:40]!r}")


def read_drawn(paths: Sequence[str | Path], asked: Asked | None = None) -> Drawn:
    """What files show together. ``HOST=FILE`` says which host a file without names describes.

    Raises ``BadInput`` naming the file, what is wrong and the option or file that would help.
    """
    if not 0 < len(paths) <= MOST_FILES:
        raise BadInput(f"a cluster is read from 1 to {MOST_FILES} files; got {len(paths)}")
    return draw([_seen(str(path)) for path in paths], asked or Asked())


def read_files(paths: Sequence[str | Path], asked: Asked | None = None) -> tuple[Drawn, Cluster]:
    """The cluster that files show together, as they claim it: measurements in them are not applied.

    Raises what :func:`read_drawn` raises, and ``BadInput`` where the catalogue lacks what the files do not tell.
    """
    drawn = read_drawn(paths, asked)
    return drawn, cluster_of(drawn, asked or Asked())


def is_cluster_name(text: str) -> bool:
    """Whether the text means a ready cluster or a cluster's TOML file, with or without a count, and not a dump."""
    base = text.rpartition(":")[0] or text
    return any(each.endswith(".toml") or each in cluster_names() for each in (text, base))


def _seen(path: str) -> Seen:
    match = None if Path(path).exists() else _NAMED.fullmatch(path)
    if match is None:
        return read_seen(read_text(path), Path(path).name)
    seen = read_seen(read_text(match[2]), Path(match[2]).name)
    named = [replace(host, name=match[1]) if not host.name else host for host in seen.hosts]
    if len(seen.hosts) > 1:
        raise BadInput(f"{path[:80]} names one host, but the file shows {len(seen.hosts)}; give the file alone")
    return replace(seen, hosts=tuple(named))
