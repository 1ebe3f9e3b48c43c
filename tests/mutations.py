"""Broken copies of dumps, and what becomes of them: a cluster, or an error in words; never a traceback, never a wait.

``python -m tests.mutations 10000`` tries so many of every dump and says how they ended; ``--seed N`` others.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable

from tests import dumps, dumps_found, dumps_more
from topologies.cluster import Cluster
from topologies.errors import PlannerError
from topologies.readers import FORMATS, read_seen
from topologies.readers.drawn import Asked, draw
from topologies.readers.tables import cluster_of

GALVATRON = "allreduce_bandwidth_2nodes_8gpus_per_node.json"
DUMPS: dict[str, tuple[Callable[[], str], ...]] = {
    "nccl-xml": (
        *(dumps.h200_metal, dumps.mi350x, dumps.ncv4, dumps.ndv5_template, dumps.p5),
        *(dumps_found.dgx_spark, dumps_found.p4de_template),
    ),
    "nvidia-topo": (dumps.h200_topo, dumps.dgx2_topo, dumps_found.gb200_tray, dumps_found.b300),
    "rocm-topo": (dumps_more.frontier_rocm, dumps_more.pcie_rocm, lambda: dumps_more.cpx_rocm(2)),
    "amd-smi": (
        lambda: dumps_more.amd_smi_list("SPX/NPS1", 8) + dumps_more.amd_smi_topology(8),
        lambda: dumps_more.amd_smi_list("DPX/NPS1", 8, 2),
    ),
    "lstopo": (dumps_more.tiers_lstopo, dumps_more.qemu_lstopo, dumps_more.dgx2_lstopo),
    "slurm-conf": (
        *(lambda: dumps_more.SLURM_TREE, dumps_more.slinky_blocks, dumps_more.slinky_tree),
        *(lambda: dumps_found.LEONARDO, lambda: dumps_found.GB300_BLOCKS, lambda: dumps_found.CONTINUED),
    ),
    "slurm-yaml": (lambda: dumps_more.SLURM_YAML, lambda: dumps_more.SLURM_YAML_BLOCKS),
    "ibnetdiscover": (dumps_more.tapered_ib, dumps_more.v100_ib),
    "kubernetes": (
        *(dumps_more.xe9680_nodes, dumps_more.p5_nodes, dumps_more.gke_nodes, dumps_more.nvl72_nodes),
        *(dumps_found.oke_nodes, dumps_found.nebius_nodes, dumps_found.tpu7x_nodes),
    ),
    "infragraph": (dumps_more.clos_graph, dumps_more.dgx_a100_graph),
    "nccl-tests": (dumps_more.hdr_log, dumps_more.nebius_log, dumps_found.nvl72_log),
    "galvatron": (lambda: dumps_more.GALVATRON_TWO_HOSTS, lambda: dumps_more.GALVATRON_ONE_HOST),
}
ASKED = {"rocm-topo": Asked(accelerator="mi300x"), "infragraph": Asked(accelerator="h100-sxm")}
NASTY = (
    *("", "0", "-1", "1", "nan", "1e999", "9" * 25, "0x", "NV99", "N/A", "\x00", "\x1b[4m", "💥", "]", "[0-999999999]"),
    *("{", "&x;", "<a>" * 200, "- " * 200, "*a", "x" * 3000),
)
SLOW_S = 2.0


def mutated(text: str, chance: random.Random) -> str:
    """A copy with one to three faults: cut, doubled, swapped or deleted pieces, numbers and words that are wrong."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        text = chance.choice(FAULTS)(text, chance)
    return text


def _cut(text: str, chance: random.Random) -> str:
    return text[: chance.randrange(len(text) + 1)]


def _delete(text: str, chance: random.Random) -> str:
    a = chance.randrange(len(text) + 1)
    return text[:a] + text[a + chance.choice((1, 2, 10, 100, 1000)) :]


def _insert(text: str, chance: random.Random) -> str:
    a = chance.randrange(len(text) + 1)
    return text[:a] + chance.choice(NASTY) + text[a:]


def _number(text: str, chance: random.Random) -> str:
    spans = [match.span() for match in re.finditer(r"\d+", text)]
    if not spans:
        return text
    a, b = chance.choice(spans)
    near = (str(int(text[a:b][:15]) + chance.choice((-1, 1))), str(chance.randrange(100)))
    return text[:a] + chance.choice(NASTY + near * 5) + text[b:]


def _word(text: str, chance: random.Random) -> str:
    spans = [match.span() for match in re.finditer(r"[A-Za-z0-9_]+", text)]
    if not spans:
        return text
    (a, b), (c, d) = chance.choice(spans), chance.choice(spans)
    return text[:a] + text[c:d] + text[b:]


def _lines(text: str, chance: random.Random) -> str:
    lines = text.splitlines(keepends=True) or [text]
    a, b = chance.randrange(len(lines)), chance.randrange(len(lines))
    kind = chance.randrange(4)
    if kind == 0:
        lines[a], lines[b] = lines[b], lines[a]
    elif kind == 1:
        del lines[a]
    elif kind == 2:
        lines.insert(b, lines[a])
    else:
        lines[a:a] = lines[min(a, b) : max(a, b) + 1] * chance.choice((1, 3))
    return "".join(lines)


FAULTS = (_cut, _delete, _insert, _number, _number, _word, _word, _lines, _lines)


def outcome(text: str, name: str, chance: random.Random) -> str:
    """What reading the text ends in, in a word. Raises what no reader may raise."""
    begun = time.perf_counter()
    try:
        seen = read_seen(text, GALVATRON) if chance.random() < 0.3 else FORMATS[name].read(text, GALVATRON)
        asked = ASKED.get(name, Asked(like="dgx-h100"))
        found = cluster_of(draw([seen], asked), asked)
        word = "cluster" if isinstance(found, Cluster) else "nothing"
    except PlannerError as error:
        word = "error" if 0 < len(str(error)) < 2000 else f"error of {len(str(error))} letters"
    return word if time.perf_counter() - begun < SLOW_S else "slow"


def outcomes(name: str, count: int, seed: int) -> Counter[str]:
    """How ``count`` mutated copies of every dump of a format end."""
    chance = random.Random(f"{name} {seed}")
    texts = [make() for make in DUMPS[name]]
    return Counter(outcome(mutated(chance.choice(texts), chance), name, chance) for _ in range(count))


def main() -> None:
    """Try many, print how they ended, and end with code 1 where any ended otherwise than in a cluster or an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    bad = False
    for name in DUMPS:
        begun = time.perf_counter()
        found = outcomes(name, asked.count, asked.seed)
        bad |= set(found) > {"cluster", "error"}
        print(f"{name:14} {dict(found)} in {time.perf_counter() - begun:.1f} s", flush=True)
    sys.exit(bad)


if __name__ == "__main__":
    main()
