"""``meshwright detect``: tools that are faked on the path, and a /sys that is built in a folder."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests import dumps, dumps_more
from tests.command import meshwright
from topologies.readers import detect as module
from topologies.readers.detect import detect
from topologies.readers.drawn import Asked, draw
from topologies.readers.sysfs import read_sys


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A folder that is the whole path; call it with a tool's name and what it prints, and how it ends."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def add(name: str, *answers: str, code: int = 0, first: str = ""):
        for k, answer in enumerate(answers):
            (folder / f"{name}.{k}").write_text(answer and answer + "\n")
        cases = "\n".join(f'  *" {word} "*) n={k};;' for k, word in enumerate(first.split())) or "  *) n=0;;"
        script = folder / name
        script.write_text(
            f'#!/bin/sh\nn=0\ncase " $* " in\n{cases}\nesac\n'
            f'while IFS= read -r line; do printf "%s\\n" "$line"; done < {folder}/{name}.$n\nexit {code}\n'
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)

    return add


def empty_sys(tmp_path) -> Path:
    root = tmp_path / "sys"
    root.mkdir(exist_ok=True)
    return root


def function(root: Path, bus: str, parents: str, kind: str, vendor: str, device: str) -> Path:
    """A PCI function below its bridges, and its link in bus/pci/devices."""
    path = root / "devices" / "pci0000:16" / parents / bus
    path.mkdir(parents=True)
    for name, word in (("class", kind), ("vendor", vendor), ("device", device), ("numa_node", "0"),
                       ("max_link_speed", "32.0 GT/s PCIe"), ("max_link_width", "16")):  # fmt: skip
        (path / name).write_text(word + "\n")
    link = root / "bus/pci/devices" / bus
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(path)
    return path


def h100_sys(tmp_path) -> Path:
    """Two H100 and NICs behind PCIe switches, a third NIC at the root port of one; DRAM and a node without CPUs."""
    root = empty_sys(tmp_path)
    for n in range(2):
        bridge = f"0000:1{n}:01.0/0000:2{n}:00.0"
        function(root, f"0000:3{n}:00.0", bridge, "0x030200", "0x10de", "0x2330")
        port(root, f"mlx5_{n}", function(root, f"0000:4{n}:00.0", bridge, "0x020700", "0x15b3", "0x1021"), 400)
    port(root, "mlx5_2", function(root, "0000:50:00.0", "0000:10:01.0", "0x020700", "0x15b3", "0x1021"), 100)
    for node, (cpus, size) in enumerate((("0-15", 2**30), ("", 2**29))):
        path = root / f"devices/system/node/node{node}"
        path.mkdir(parents=True)
        (path / "meminfo").write_text(f"Node {node} MemTotal:       {size} kB\nNode {node} MemFree: 1 kB\n")
        (path / "cpulist").write_text(cpus + "\n")
    memory = root / "bus/cxl/devices/mem0/ram"
    memory.mkdir(parents=True)
    (memory / "size").write_text("0x4000000000\n")
    return root


def port(root: Path, name: str, device: Path, rate: int) -> None:
    folder = root / "class/infiniband" / name
    (folder / "ports/1").mkdir(parents=True)
    (folder / "ports/1/rate").write_text(f"{rate} Gb/sec (4X NDR)\n")
    (folder / "ports/1/link_layer").write_text("InfiniBand\n")
    (folder / "device").symlink_to(device)


def test_sys_alone(tmp_path):
    (host,) = read_sys(h100_sys(tmp_path)).hosts

    assert [(d.pci, d.numa, d.pcie_bytes_per_s) for d in host.devices] == [("10de:2330", 0, 64e9)] * 2
    assert [(n.name, n.bytes_per_s, n.kind, n.near) for n in host.nics] == [
        ("mlx5_0", 50e9, "infiniband", True),
        ("mlx5_1", 50e9, "infiniband", True),
        ("mlx5_2", 12.5e9, "infiniband", False),
    ]
    assert [(m.kind, m.capacity_bytes) for m in host.memories] == [
        ("DRAM", 2.0**40), ("memory without CPUs", 2.0**39), ("CXL-DRAM, as plugged in", 2.0**38),
    ]  # fmt: skip


def test_sys_makes_a_cluster(tmp_path):
    """Two devices and the two NICs next to them; the slow one further off is not counted."""
    shape = draw([read_sys(h100_sys(tmp_path))], Asked()).shape

    assert (shape.accelerator.value, shape.devices.value, shape.nics.value) == ("h100-sxm", 2, 2)
    assert shape.nic_bytes_per_s.value == 50e9


@pytest.mark.parametrize("vendor", ["QEMU", "Amazon EC2", "Google"])
def test_virtual_machines_are_said(tmp_path, vendor):
    path = empty_sys(tmp_path) / "class/dmi/id"
    path.mkdir(parents=True)
    (path / "sys_vendor").write_text(vendor)
    (path / "product_name").write_text("Google Compute Engine" if vendor == "Google" else "Standard PC")

    assert "a virtual machine" in read_sys(tmp_path / "sys").oddities[0]


def test_tools_and_sys_together(tools, tmp_path):
    """nvidia-smi has links and names of NICs, /sys the speeds of three: one is slower and not counted."""
    listed, matrix = dumps.h200_topo().split("\n\tGPU0", 1)
    tools("nvidia-smi", listed, "\tGPU0" + matrix, first="-L topo")
    tools("scontrol", dumps_more.SLURM_TREE)

    seen, answers = detect(h100_sys(tmp_path))
    shape = draw(seen, Asked(accelerator="h200-sxm")).shape

    assert [(a.tool, a.there) for a in answers] == [
        ("nvidia-smi", True), ("rocm-smi", False), ("amd-smi", False), ("lstopo", False), ("scontrol", True),
        ("/sys", True),
    ]  # fmt: skip
    assert (shape.devices.value, shape.nics.value, shape.nic_bytes_per_s.value) == (8, 7, 50e9)
    assert len(seen[1].groups) == 7


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [("", 0, "is empty"), ("No devices were found", 0, "no format that is read"), ("x", 9, "ended with code 9")],
)
def test_tools_that_fail_are_said(tools, tmp_path, answer, code, words):
    tools("lstopo-no-graphics", answer, code=code)
    seen, answers = detect(empty_sys(tmp_path))

    assert len(seen) == 1
    assert words in next(a.words for a in answers if a.tool == "lstopo")


def test_tools_that_wait_are_left(tools, tmp_path, monkeypatch):
    tools("scontrol", "")
    (tmp_path / "bin/scontrol").write_text("#!/bin/sh\nexec /bin/sleep 20\n")
    monkeypatch.setattr(module, "LIMIT_S", 0.2)

    assert "printed nothing for 0.2 s" in next(a.words for a in detect(empty_sys(tmp_path))[1] if a.tool == "scontrol")


def test_command_on_a_machine_without_accelerators(tmp_path):
    env = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "planner.cli", "detect"], capture_output=True, text=True, env=env)

    assert done.returncode == 0, done.stderr
    assert "nvidia-smi   no      not installed" in done.stdout
    assert "DRAM" in done.stdout
    assert "no accelerator here: plan this machine's CPUs with --cluster cpu-local" in done.stdout


def test_command_writes_no_file_without_accelerators(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = meshwright("detect", "--out", str(tmp_path / "mine.toml"))

    assert answer.code == 2 and "so nothing is written to --out" in answer.err
    assert not (tmp_path / "mine.toml").exists()
