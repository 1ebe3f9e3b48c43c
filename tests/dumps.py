"""Dumps of real machines, written anew from the facts of public ones: what was seen, where, in the tools' own form."""

from __future__ import annotations

NVSWITCHES = ("0000:05:00.0", "0000:06:00.0", "0000:07:00.0", "0000:08:00.0")


def nccl_xml(slots: list[dict], numa: tuple[int, ...] = (0, 1), host_hash: str = "0x16fe256e956b115c") -> str:
    """A topology of NCCL: one PCIe switch a slot (none where ``bridge`` is false), spread over the CPUs in order."""
    lines = ['<system version="1">']
    for k, number in enumerate(numa):
        lines.append(f'  <cpu host_hash="{host_hash}" numaid="{number}" affinity="ff" arch="x86_64" '
                     'vendor="GenuineIntel" familyid="6" modelid="207">')  # fmt: skip
        per = len(slots) // len(numa)
        for n in range(k * per, (k + 1) * per):
            lines += _slot(n, slots[n])
        lines.append("  </cpu>")
    return "\n".join([*lines, "</system>", ""])


def _slot(n: int, slot: dict) -> list[str]:
    speed = f'link_speed="{slot.get("speed", "32.0 GT/s PCIe")}" link_width="{slot.get("width", 16)}"'
    links = [f'<{slot.get("tag", "nvlink")} target="{t}" count="{c}" tclass="{slot.get("tclass", "0x068000")}"/>'
             for t, c in slot["links"]]  # fmt: skip
    extra = slot.get("gpu", 'sm="90"')
    gpu = [f'<pci busid="{slot["bus"]}" class="{slot.get("class", "0x030200")}" vendor="{slot["pci"][0]}" '
           f'device="{slot["pci"][1]}" {speed}>', f'<gpu dev="{n}" {extra} rank="{n}" gdr="1">', *links, "</gpu>",
           "</pci>"]  # fmt: skip
    nic = []
    for name, rate, kind in slot.get("nics", ()):
        nic += [f'<pci busid="0000:{0xa0 + n:02x}:01.0" class="{kind}" vendor="0x15b3" device="0x1021" {speed}><nic>',
                f'<net name="{name}" dev="{n}" speed="{rate}" port="1" latency="0.000000" guid="0x{n + 1:x}" '
                'maxconn="131072" gdr="1"/>', "</nic></pci>"]  # fmt: skip
    if not slot.get("bridge", True):
        return [*gpu, *nic]
    head = f'<pci busid="0000:{0x10 + n:02x}:00.0" class="0x060400" vendor="0x1000" device="0xc030" {speed}>'
    return [head, *gpu, *nic, "</pci>"]


def h200_metal() -> str:
    """8 H200 and 8 ConnectX-7 in Ethernet mode, seen on the metal. NVIDIA/nccl-tests issue 256."""
    buses, links = ("18", "2a", "3a", "5d", "9a", "ab", "ba", "db"), list(zip(NVSWITCHES, (4, 5, 5, 4), strict=True))
    return nccl_xml([
        {"bus": f"0000:{bus}:00.0", "pci": ("0x10de", "0x2335"), "links": links,
         "nics": [(f"mlx5_{n}", 400000, "0x020000")]}
        for n, bus in enumerate(buses)
    ])  # fmt: skip


def h200_vm() -> str:
    """The same machine seen in a virtual machine: NUMA -1, half the slot's speed, the switches hidden. Issue 256."""
    return nccl_xml([
        {"bus": f"0000:{n + 3:02x}:00.0", "pci": ("0x10de", "0x2335"), "links": [("fffffff:ffff:ff", 18)],
         "speed": "16.0 GT/s PCIe", "bridge": False, "nics": [(f"mlx5_{n}", 400000, "0x020000")]}
        for n in range(8)
    ], numa=(-1,))  # fmt: skip


def mi350x() -> str:
    """8 MI350X, each joined to the seven others, 8 Broadcom NICs. ROCm/rccl tools/topo_expl/models/topo_8p_950.xml."""
    buses = [f"0000:{bus}:00.0" for bus in ("08", "18", "68", "78", "88", "98", "e8", "f9")]
    return nccl_xml([
        {"bus": bus, "pci": ("0x1002", "0x75a0"), "class": "0x120000", "gpu": 'sm="256" gcn="gfx950" arch="38911"',
         "links": [(other, 1) for other in buses if other != bus], "tag": "xgmi", "tclass": "0x120000",
         "nics": [(f"bnxt_re{n}", 400000, "0x020000")]}
        for n, bus in enumerate(buses)
    ])  # fmt: skip


def ncv4() -> str:
    """4 A100 PCIe bridged in pairs, in a virtual machine without slots. NVIDIA/nccl src/test/ncv4/topo.xml."""
    text = nccl_xml([
        {"bus": f"000{n + 1}:00:00.0", "pci": ("0x10de", "0x20b5"), "gpu": 'sm="80"', "speed": "", "width": 0,
         "links": [(f"000{(n ^ 1) + 1}:00:00.0", 12)], "tclass": "0x030200", "bridge": False}
        for n in range(4)
    ], numa=(0, 1, 2, 3))  # fmt: skip
    nic = (
        '<nic><net name="eth0" dev="0" speed="100000" port="0" latency="0.0" guid="0x0" maxconn="65536" gdr="0"/></nic>'
    )
    return text.replace("  </cpu>", nic + "\n  </cpu>", 1)


def ndv5_template() -> str:
    """What Azure gives NCCL for ND H100 v5: slots and bridges, no GPU, no speeds of NICs. NVIDIA/nccl src/test/ndv5."""
    speed = 'link_speed="32.0 GT/s PCIe" link_width="16"'
    cpus = []
    for numa in (0, 1):
        slots = [
            f'<pci busid="ffff:ff:0{n + 1}.0" class="0x060400" {speed} vendor="0x0000" device="0x0000">'
            f'<pci busid="00{n + 1:02x}:00:00.0" class="0x030200" {speed}/>'
            f'<pci busid="01{n + 1:02x}:00:00.0" class="0x020700" {speed}/></pci>'
            for n in range(4 * numa, 4 * numa + 4)
        ]
        cpus.append(f'<cpu numaid="{numa}" affinity="ff" arch="x86_64" vendor="GenuineIntel" familyid="6" '
                    f'modelid="143">{"".join(slots)}</cpu>')  # fmt: skip
    return f'<system version="1">{"".join(cpus)}</system>'


def p5() -> str:
    """8 H100 with four NICs each below a switch whose port is of PCIe 4. aws/aws-ofi-nccl topology/p5.48xl-topo.xml."""
    wide, lines = 'link_width="16"', []
    for n in range(8):
        nets = [
            f'<pci busid="0000:{0x50 + 16 * n + k:02x}:00.0" class="0x020000" link_speed="16.0 GT/s PCIe" '
            'link_width="8">'
            f'<nic><net name="rdmap{4 * n + k}s0" dev="{4 * n + k}" speed="100000" port="1" latency="0.0" guid="{k}" '
            'maxconn="1024" gdr="1"/></nic></pci>'
            for k in range(4)
        ]
        lines.append(
            f'<pci busid="0000:{n:02x}:00.0" class="0x060400" link_speed="16.0 GT/s PCIe" {wide}>'
            f'<pci busid="0000:{0x4F + 16 * n:02x}:00.0" class="0x030200" link_speed="32.0 GT/s PCIe" {wide}>'
            f'<gpu dev="{n}" sm="90" rank="{n}" gdr="1"/></pci>{"".join(nets)}</pci>'
        )
    return f'<system version="1"><cpu numaid="0" affinity="ff" arch="x86_64">{"".join(lines)}</cpu></system>'


def p4d() -> str:
    """Two devices and a NIC behind each of four switches. aws/aws-ofi-nccl topology/p4d-24xl-topo.xml."""
    wide, cpus = 'link_speed="8 GT/s" link_width="16"', ["", ""]
    for k in range(4):
        slots = (("1c", "0x030200"), ("1d", "0x030200"), ("1b", "0x020000"))
        below = "".join(f'<pci busid="0000:{k + 1}0:{s}.0" class="{kind}" {wide}/>' for s, kind in slots)
        cpus[k // 2] += f'<pci busid="ffff:ff:0{k + 1}.0" class="0x060400" {wide}>{below}</pci>'
    inner = "".join(f'<cpu numaid="{n}" affinity="ff" arch="x86_64">{text}</cpu>' for n, text in enumerate(cpus))
    return f'<system version="1">{inner}</system>'


def topo_m(
    devices: int, link: str, nics: list[str], near: dict[int, str], *, product: str = "", far: str = "SYS"
) -> str:
    """A matrix of nvidia-smi: ``link`` between any two devices, ``near[n]`` the one NIC that device n is next to."""
    names = [f"GPU{n}" for n in range(devices)]
    ports = [f"NIC{k}" for k in range(len(nics))]
    lines = [f"GPU {n}: {product} (UUID: GPU-{n:08x})" for n in range(devices)] if product else []
    lines.append("\t" + "\t".join([*names, *ports, "CPU Affinity", "NUMA Affinity", "GPU NUMA ID"]))
    for n, name in enumerate(names):
        cells = ["X" if n == m else link for m in range(devices)]
        cells += ["PIX" if near.get(n) == nic else far for nic in nics]
        lines.append("\t".join([name, *cells, "0-23,96-119", str(n * 2 // devices), "N/A"]))
    for k, port in enumerate(ports):
        lines.append("\t".join([port, *[lines_cell(near, n, nics[k], far) for n in range(devices)],
                                *["X" if k == j else far for j in range(len(ports))]]))  # fmt: skip
    legend = [f"  {port}: {nic}" for port, nic in zip(ports, nics, strict=True)]
    return "\n".join([*lines, "", "Legend:", "", "  X    = Self", "", "NIC Legend:", "", *legend, ""])


def lines_cell(near: dict[int, str], device: int, nic: str, far: str) -> str:
    """The cell of a NIC's row for a device."""
    return "PIX" if near.get(device) == nic else far


def h200_topo() -> str:
    """8 H200 with 8 NICs of their own and a ninth for the rest. sgl-project/sglang issue 13973."""
    nics = [f"mlx5_{k}" for k in range(9)]
    return topo_m(8, "NV18", nics, {n: nics[n] for n in range(8)}, product="NVIDIA H200", far="NODE")


def a800_topo() -> str:
    """8 A800 of eight links each, 9 NICs. NVIDIA/nccl issue 933."""
    nics = [f"mlx5_{k}" for k in range(9)]
    near = {0: 2, 1: 4, 2: 6, 3: 8, 4: 1, 5: 3, 6: 5, 7: 7}
    return topo_m(8, "NV8", nics, {n: nics[k] for n, k in near.items()})


def dgx2_topo() -> str:
    """16 V100 on NVSwitch, NICs as columns of their own names, as older drivers print. NVIDIA/nccl-tests issue 78."""
    nics = [f"mlx5_{k}" for k in range(10)]
    text = topo_m(16, "NV6", nics, {n: nics[n // 2] for n in range(16)}, product="Tesla V100-SXM3-32GB")
    for k, nic in enumerate(nics):
        text = text.replace(f"NIC{k}\t", f"{nic}\t")
    return text.split("NIC Legend")[0]


def no_links_topo() -> str:
    """8 H100 that see each other over PCIe alone, ten NICs. deepseek-ai/DeepEP issue 128."""
    nics = [f"mlx5_{k}" for k in range(10)]
    return topo_m(8, "SYS", nics, {n: nics[n] for n in range(8)}, product="NVIDIA H100 80GB HBM3")


def nccl_h100() -> str:
    """8 H100 and 8 ConnectX-7 on InfiniBand. aliyun/SimAI issue 128."""
    buses, links = ("1b", "43", "52", "61", "9d", "b8", "d1", "d9"), list(zip(NVSWITCHES, (4, 5, 5, 4), strict=True))
    return nccl_xml([
        {"bus": f"0000:{bus}:00.0", "pci": ("0x10de", "0x2330"), "links": links,
         "nics": [(f"mlx5_{n}", 400000, "0x020700")]}
        for n, bus in enumerate(buses)
    ])  # fmt: skip


def dgx_a100() -> str:
    """8 A100 and 8 HDR NICs on PCIe switches, and a storage card as fast on the CPU. NVIDIA/nccl issue 1505."""
    links = [(f"0000:c{k}:00.0", 2) for k in range(4, 10)]
    text = nccl_xml([
        {"bus": f"0000:{7 + 16 * n:02x}:00.0", "pci": ("0x10de", "0x20b0"), "links": links, "gpu": 'sm="80"',
         "speed": "16.0 GT/s PCIe", "nics": [(f"mlx5_{n}", 200000, "0x020700")]}
        for n in range(8)
    ])  # fmt: skip
    ports = "".join(
        f'<net name="mlx5_{8 + k}" dev="{8 + k}" speed="{speed}" port="{k + 1}" latency="0.0" guid="0x9" gdr="1"/>'
        for k, speed in enumerate((200000, 100000))
    )
    card = '<pci busid="0000:61:00.0" class="0x020700" vendor="0x15b3" device="0x101b" link_speed="16.0 GT/s PCIe" '
    return text.replace("  </cpu>", f'{card}link_width="16"><nic>{ports}</nic></pci>\n  </cpu>', 1)
