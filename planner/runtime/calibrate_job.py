"""One rank of a calibration: runs the benchmarks with all other ranks and, on rank 0, writes what was measured.

    torchrun ... -m planner.runtime.calibrate_job --record points.json --hosts 1

Groups are those that ranks of equal hosts can form: powers of two and all of a host, across hosts, and both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from planner.machine.die_with_parent import die_with_parent
from planner.runtime import probes, watts
from planner.runtime.mesh import leave
from planner.whole_files import replace_whole

SEED = 0
SHARES = {
    "launches": 0.02, "products": 0.17, "transfers": 0.06, "updates": 0.04, "attentions": 0.09, "layers": 0.18,
    "split layers": 0.1, "recomputed layers": 0.07, "collectives": 0.23, "sends": 0.04,
}  # fmt: skip
"""Part of the time that each kind of point may take."""


def groups_of(hosts: int, per_host: int) -> dict[tuple[int, ...], Any]:
    """This rank's process group for every kind of group, by factors a network level, inside out. All ranks make all."""
    found = {}
    for inside, across in _kinds(hosts, per_host):
        ranks = _members(inside, across, hosts, per_host)
        made = [(group, dist.new_group(group)) for group in ranks]
        mine = next((handle for group, handle in made if dist.get_rank() in group), None)
        if mine is not None:
            found[(inside, across) if hosts > 1 else (inside,)] = mine
    return found


def _kinds(hosts: int, per_host: int) -> list[tuple[int, int]]:
    insides = sorted({1, per_host, *(2**n for n in range(1, 8) if 2**n <= per_host)})
    acrosses = sorted({1, hosts, *(2**n for n in range(1, 8) if 2**n <= hosts)})
    pairs = [(i, a) for i in insides for a in acrosses if i * a > 1]
    return [pair for pair in pairs if 1 in pair or pair == (per_host, hosts)]


def _members(inside: int, across: int, hosts: int, per_host: int) -> list[list[int]]:
    """Ranks of every group of a kind; those that do not fill a last group are left out."""
    return [
        [host * per_host + device for host in range(h, h + across) for device in range(d, d + inside)]
        for h in range(0, hosts - across + 1, across)
        for d in range(0, per_host - inside + 1, inside)
    ]


def measure(device: torch.device, hosts: int, budget_s: float, say: Any) -> dict[str, Any]:
    """Every kind of point in turn, and what power it took where the device tells."""
    torch.manual_seed(SEED)
    world = dist.get_world_size()
    groups, dtypes = groups_of(hosts, world // hosts), _dtypes(device)
    meter, found = watts.Meter(device), {}
    idle_w = meter.watts(lambda: time.sleep(1.0)) if meter.tells else None
    tp = _pairs(device) if world % 2 == 0 and (world == hosts or world // hosts % 2 == 0) else None
    kinds = {
        "launches": lambda clock: probes.launches(clock),
        "products": lambda clock: (point for dtype in dtypes for point in probes.products(clock, dtype)),
        "transfers": probes.transfers,
        "updates": lambda clock: probes.updates(clock, init_device_mesh(device.type, (world,))),
        "attentions": lambda clock: probes.attentions(clock, dtypes[0]),
        "layers": lambda clock: probes.layers(clock, dtypes[0], None),
        "split layers": lambda clock: probes.layers(clock, dtypes[0], tp) if tp is not None else iter(()),
        "recomputed layers": lambda clock: probes.recomputed_layers(clock, dtypes[0]),
        "collectives": lambda clock: probes.collectives(clock, groups),
        "sends": lambda clock: probes.sends(clock, groups),
    }
    for name, kind in kinds.items():
        say(name)
        found[name] = list(kind(probes.Clock(device, time.monotonic() + budget_s * SHARES[name])))
    busy_w = meter.watts(lambda: _burn(device, dtypes[0])) if meter.tells else None
    told = idle_w is not None and busy_w is not None
    return {**found, "power": {"idle_w": idle_w, "busy_w": busy_w} if told else None}


def _pairs(device: torch.device) -> DeviceMesh:
    """Neighbouring ranks, of one host where it has several, as a mesh for tensor parallelism."""
    world = dist.get_world_size()
    return init_device_mesh(device.type, (world // 2, 2), mesh_dim_names=("others", "tp"))["tp"]


def _dtypes(device: torch.device) -> list[torch.dtype]:
    return [torch.float32] if device.type == "cpu" else [torch.bfloat16, torch.float32]


def _burn(device: torch.device, dtype: torch.dtype) -> None:
    """A second of products."""
    size = 1024 if device.type == "cpu" else 8192
    a, end = torch.randn(size, size, device=device).to(dtype), time.monotonic() + 1.0
    while time.monotonic() < end:
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()


def facts(device: torch.device) -> dict[str, Any]:
    """What there is to say of the machine beside what was measured."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    name = torch.cuda.get_device_name() if device.type == "cuda" else _processor()
    return {
        "device": name, "cores": len(cores), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "backend": dist.get_backend(), "device_type": device.type,
        "memory_bytes": torch.cuda.mem_get_info()[1] if device.type == "cuda" else _memory_bytes(),
    }  # fmt: skip


def _processor() -> str:
    """The processor's name as the kernel has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0][:120] if names else platform.processor()[:120] or "a processor"


def _memory_bytes() -> int:
    """Memory of this host, or of its control group where that is less."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return whole
    return min(whole, int(limit)) if limit.isdigit() else whole


def main() -> NoReturn:
    """Measure as told; exit 1 when a rank fails."""
    die_with_parent()
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(prog="python -m planner.runtime.calibrate_job", description=__doc__.split("\n")[0])
    parser.add_argument("--record", type=Path, required=True, help="JSON file for what was measured")
    parser.add_argument("--hosts", type=int, default=1, help="hosts of equally many ranks (1)")
    parser.add_argument("--budget-s", type=float, default=60.0, help="seconds for all points (60)")
    options = parser.parse_args()
    try:
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=120))
        device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        began = time.monotonic()
        found = measure(device, options.hosts, options.budget_s, _say)
        _write(options.record, found | {"facts": facts(device), "took_s": time.monotonic() - began,
                                        "hosts": options.hosts, "processes": dist.get_world_size()})  # fmt: skip
        dist.barrier()
    except Exception as error:
        print(f"rank {os.environ.get('RANK', '?')} failed: {error!r}\n{traceback.format_exc()}", file=sys.stderr)
        leave(1)
    leave(0)


def _say(text: str) -> None:
    """A line that whoever started the job reads to know where it is."""
    if dist.get_rank() == 0:
        print(f"measuring {text}", flush=True)


def _write(record: Path, found: dict[str, Any]) -> None:
    if dist.get_rank() == 0:
        replace_whole(record.parent, {record.name: json.dumps(found)})


if __name__ == "__main__":
    main()
