"""More dumps written anew from the facts of public ones: AMD's tables, hwloc, fabrics, schedulers, measurements.

Long because it is texts, one function a dump.
"""

from __future__ import annotations

import json

GCDS = {0: (1, 2, 6), 1: (0, 3, 5), 2: (0, 3, 4), 3: (1, 2, 7), 4: (2, 5, 6), 5: (1, 4, 7), 6: (0, 4, 7), 7: (3, 5, 6)}
"""Direct neighbours of the eight GCDs of four MI250X."""


def rocm_topo(weights: list[list[int]], types: list[list[str]], numa: list[int], facts: dict[str, list[str]]) -> str:
    """The tables of rocm-smi --showtopo, with other facts a device before them."""
    size = len(weights)
    head = "       " + "".join(f"{f'GPU{n}':13}" for n in range(size))
    hops = [[0 if a == b else 1 if types[a][b] == "XGMI" else 3 for b in range(size)] for a in range(size)]
    lines = ["======================= ROCm System Management Interface ======================="]
    for what, values in facts.items():
        lines += [f"GPU[{n}]\t\t: {what}: \t\t{value}" for n, value in enumerate(values)]
    for title, table in (("Weight", weights), ("Hops", hops), ("Link Type", types)):
        lines += ["", f"============ {title} between two GPUs ============", head]
        lines += [f"GPU{n}   " + "".join(f"{cell!s:13}" for cell in row) for n, row in enumerate(table)]
    lines += ["", "============ Numa Nodes ============"]
    for n, node in enumerate(numa):
        lines += [f"GPU[{n}]\t\t: (Topology) Numa Node: {node}", f"GPU[{n}]\t\t: (Topology) Numa Affinity: {node}"]
    return "\n".join([*lines, "============ End of ROCm SMI Log ============", ""])


def frontier_rocm() -> str:
    """Eight GCDs of MI250X, three neighbours each. openmm/openmm issue 3940; the neighbours: rccl topo_8p_90a.xml."""
    near = [[0 if a == b else 15 if b in GCDS[a] else 30 for b in range(8)] for a in range(8)]
    kinds = [["0" if a == b else "XGMI" for b in range(8)] for a in range(8)]
    return rocm_topo(near, kinds, [3, 3, 1, 1, 0, 0, 2, 2], {"Card Series": ["AMD Instinct MI250X"] * 8})


def pcie_rocm() -> str:
    """Four devices that reach each other over PCIe and the sockets alone. ROCm/rocm_smi_lib issue 108."""
    weights = [[0 if a == b else 52 for b in range(4)] for a in range(4)]
    return rocm_topo(weights, [["0" if a == b else "PCIE" for b in range(4)] for a in range(4)], [0, 1, 3, 2], {})


def xgmi_rocm() -> str:
    """Eight devices with a link to every other, as MI300X and its successors are; no tool names them."""
    weights, kinds = ([[0 if a == b else each for b in range(8)] for a in range(8)] for each in (15, "XGMI"))
    kinds = [[str(kind) for kind in row] for row in kinds]
    return rocm_topo(weights, kinds, [a // 4 for a in range(8)], {})


def cpx_rocm(packages: int = 8) -> str:
    """Eight MI300X in CPX/NPS4: 64 devices, of which a package's first alone tells its mode and id.

    ROCm/amdsmi issues 99 and 100, legacy-rocm-build issue 4759; weights: ROCm/rccl pull request 1290, in whose order
    they are dealt here. 8 packages in 2 sockets.
    """
    size = 8 * packages
    weights = [[0 if a == b else 13 if a // 8 == b // 8 else 41 for b in range(size)] for a in range(size)]
    kinds = [["0" if a == b else "XGMI" for b in range(size)] for a in range(size)]
    first = [n % 8 == 0 for n in range(size)]
    facts = {
        "Device Name": ["AMD Instinct MI300X"] * size,
        "Device ID": ["0x74a1" if it else "N/A" for it in first],
        "Compute Partition": ["CPX" if it else "N/A" for it in first],
        "Memory Partition": ["NPS4" if it else "N/A" for it in first],
    }
    return rocm_topo(weights, kinds, [n * 2 // size for n in range(size)], facts)


def amd_smi_topology(packages: int, parts: int = 1) -> str:
    """What amd-smi topology prints of fully meshed packages: the form of public dumps of eight MI300X."""
    starts = ("0c", "22", "38", "5c", "9f", "af", "bf", "df")[:packages]
    buses = [f"0000:{start}:00.{part}" for start in starts for part in range(parts)]
    head = " " * 13 + " ".join(buses)
    lines = []
    for title, itself, other in (
        ("ACCESS", "ENABLED", "ENABLED"), ("WEIGHT", "0", "15"), ("HOPS", "0", "1"), ("LINK TYPE", "SELF", "XGMI"),
        ("NUMA BW", "N/A", "50000-50000"),
    ):  # fmt: skip
        lines += [f"{title} TABLE:", head]
        lines += [f"{a} " + " ".join(f"{itself if a == b else other:12}" for b in buses) for a in buses]
    return "\n".join([*lines, "", "Legend:", "  SELF = Current GPU", ""])


def amd_smi_list(mode: str, packages: int, parts: int = 1) -> str:
    """The table that amd-smi prints by itself: MI300X in DPX/NPS1 as ROCm/amdsmi issue 132 shows them."""
    rule, lines = "|" + "-" * 37 + "+" + "-" * 40 + "|", []
    for n, start in enumerate(("0c", "22", "38", "5c", "9f", "af", "bf", "df")[:packages]):
        for part in range(parts):
            k, told = n * parts + part, mode if part == 0 else "N/A"
            oam = str(7 - n) if part == 0 else "N/A"
            lines += [
                f"| 0000:{start}:00.{part}    AMD Instinct MI300X | 0 %      40 C    0           142/750 W |",
                f"| {k:3} {k:7} {oam:>7} {told:>15} | 0 %        N/A           283/196592 MB |", rule,
            ]  # fmt: skip
    head = "| AMD-SMI 26.0.2+39589fda      amdgpu version: Linuxver ROCm version: 7.0.2    |"
    return "\n".join(
        [head, "| BDF                        GPU-Name | Mem-Uti   Temp   UEC       Power-Usage |", *lines, ""]
    )


def cpx_rccl() -> str:
    """Eight MI300X in CPX as RCCL sees them: 64 devices of 38 of 304 units, functions 0 to 7 of eight buses."""
    lines = []
    for n in range(64):
        lines.append(
            f'<pci busid="0000:{n // 8 + 1:02x}:00.{n % 8}" class="0x120000" vendor="0x1002" device="0x74a1" '
            f'link_speed="32.0 GT/s PCIe" link_width="16">'
            f'<gpu dev="{n}" sm="38" gcn="gfx942" rank="{n}" gdr="1"/></pci>'
        )
    for n in range(8):
        lines.append(
            f'<pci busid="0000:{n + 0xA1:02x}:00.0" class="0x020000" vendor="0x14e4" device="0x1760"><nic>'
            f'<net name="bnxt_re{n}" dev="{n}" speed="400000" port="1" latency="0.0" guid="0x{n + 1:x}" gdr="1"/>'
            "</nic></pci>"
        )
    return f'<system version="1"><cpu numaid="0" affinity="ff" arch="x86_64">{"".join(lines)}</cpu></system>'


def dgx2_lstopo() -> str:
    """A DGX-2H as hwloc sees it: 16 V100, four below each root port, two ports a socket; twelve NVSwitches of which
    six join a half. open-mpi/hwloc nvidiaDGX2.xml.
    """
    gpus = [
        f'<object type="PCIDev" gp_index="{100 + n}" pci_busid="0000:{n + 0x30:02x}:00.0" '
        'pci_type="0302 [10de:1db8] [10de:131d] a1 00" pci_link_speed="15.753846">'
        f'<object type="OSDev" gp_index="{200 + n}" name="nvml{n}" osdev_type="12"><info name="Backend" value="NVML"/>'
        '<info name="GPUModel" value="Tesla V100-SXM3-32GB-H"/></object></object>'
        for n in range(16)
    ]
    switches = [
        f'<object type="PCIDev" gp_index="{300 + k}" subtype="NVSwitch" pci_busid="0000:{k + 0x60:02x}:00.0" '
        'pci_type="0680 [10de:1ac2] [0000:0000] a1 00"/>'
        for k in range(12)
    ]
    roots = [root_port(k, gpus[4 * k : 4 * k + 4]) for k in range(4)]
    sockets = [
        f'<object type="Package" os_index="{s}" gp_index="{4 + s}" nodeset="0x0000000{s + 1}">'
        f"{''.join(roots[2 * s : 2 * s + 2])}</object>"
        for s in range(2)
    ]
    ends = [f"OSDev:{200 + n}" for n in range(16)] + [f"PCIDev:{300 + k}" for k in range(12)]
    joined = [[25000 if a < 16 <= b and (b - 16) // 6 == a // 8 else 0 for b in range(28)] for a in range(28)]
    for a in range(16):
        for b in range(16, 28):
            joined[b][a] = joined[a][b]
    for k in range(6):
        joined[16 + k][22 + k] = joined[22 + k][16 + k] = 200000
    values = "".join(f'<u64values length="1">{" ".join(map(str, row))}</u64values>' for row in joined)
    return lstopo(
        "NVIDIA DGX-2H", "NVIDIA", "Intel(R) Xeon(R) Platinum 8174 CPU @ 3.10GHz",
        [("", 810234351616, ""), ("", 811737923584, "")], "".join(sockets + switches),
        f'<distances2hetero nbobjs="28" kind="25" name="NVLinkBandwidth"><indexes length="1">{" ".join(ends)}</indexes>'
        f"{values}</distances2hetero>",
    )  # fmt: skip


def root_port(number: int, below: list[str]) -> str:
    """A host bridge, its root port of 16 lanes of PCIe 3, a switch, and what is below."""
    bridge = 'bridge_type="1-1" pci_link_speed="15.753846"'
    return (
        f'<object type="Bridge" gp_index="{600 + number}" bridge_type="0-1" depth="0">'
        f'<object type="Bridge" gp_index="{610 + number}" {bridge} depth="1">'
        f'<object type="Bridge" gp_index="{620 + number}" {bridge} depth="2">{"".join(below)}</object>'
        "</object></object>"
    )


def lstopo(product: str, vendor: str, cpu: str, nodes: list[tuple[str, int, str]], io: str, after: str) -> str:
    """A topology of hwloc, version 3: NUMA nodes as (subtype, bytes, tier), PCI objects, and what follows them."""
    numa = [
        f'<object type="NUMANode" os_index="{k}" gp_index="{k + 10}" subtype="{subtype}" local_memory="{size}">'
        + (f'<info name="MemoryTier" value="{tier}"/>' if tier else "") + "</object>"
        for k, (subtype, size, tier) in enumerate(nodes)
    ]  # fmt: skip
    infos = f'<info name="DMIProductName" value="{product}"/><info name="DMISysVendor" value="{vendor}"/>'
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE topology SYSTEM "hwloc2.dtd">\n<topology version="3.0">\n'
        f'<object type="Machine" os_index="0" gp_index="1">{infos}\n<object type="Package" os_index="0" gp_index="3">'
        f'<info name="CPUModel" value="{cpu}"/>{"".join(numa)}</object>\n{io}\n</object>\n{after}\n</topology>\n'
    )


def tiers_lstopo() -> str:
    """DRAM with a CXL node behind it and HBM before it, with the speeds that firmware tells.

    Subtypes and tiers as hwloc 2.10 and later name them; bandwidths of open-mpi/hwloc 64intel64-heteromem.xml.
    """
    nodes = [("DRAM", 68719476736, "1"), ("HBM", 17179869184, "0"), ("CXL-DRAM", 137438953472, "2")]
    values = "".join(
        f'<memattr_value target_obj_gp_index="{10 + k}" target_obj_type="NUMANode" value="{speed}"/>'
        for k, speed in enumerate((22500, 90000, 15000))
    )
    return lstopo(
        "X13", "Supermicro", "Intel(R) Xeon(R) CPU Max 9460", nodes, "",
        f'<memattr name="Bandwidth" flags="5">{values}</memattr>',
    )  # fmt: skip


def qemu_lstopo() -> str:
    """A QEMU machine with CXL memory plugged in that is no NUMA node. open-mpi/hwloc cxlmem+dax.v3.xml."""
    memory = "".join(
        f'<object type="PCIDev" gp_index="{40 + k}" pci_busid="0000:{0x11 + k}:00.0" '
        f'pci_type="0502 [8086:0d93] [1af4:1100] 01 10"><object type="OSDev" gp_index="{50 + k}" name="mem{k}" '
        'subtype="CXLMem" osdev_type="2"><info name="CXLRAMSize" value="262144KiB"/></object></object>'
        for k in range(2)
    )
    nodes = [("", 3061719040, "")]
    return lstopo("Standard PC (Q35 + ICH9, 2009)", "QEMU", "QEMU Virtual CPU version 2.5+", nodes, memory, "")


SLURM_TREE = """# topology.conf(5): two layers of switches
SwitchName=s0 Nodes=tux[0-3]
SwitchName=s1 Nodes=tux[4-7]
SwitchName=s2 Nodes=tux[8-11]
SwitchName=s3 Nodes=tux[12-15] LinkSpeed=900
SwitchName=s4 Switches=s[0-1]
SwitchName=s5 Switches=s[2-3]
SwitchName=s6 Switches=s[4-5]
"""
SLURM_BLOCKS = """BlockName=block1 Nodes=node[01-18]
BlockName=block2 Nodes=node[19-36]
BlockName=block3 Nodes=node[37-54]
BlockName=block4 Nodes=node[55-72]
BlockSizes=18,36
"""
SLURM_YAML = """---
- topology: topo1
  cluster_default: false
  flat: true
- topology: topo2
  cluster_default: true
  tree:
    switches:
      - switch: sw_root
        children: s[1-2]
      - switch: s1
        nodes: node[01-02]
      - switch: s2
        nodes: node[03-04]
"""
SLURM_YAML_BLOCKS = """- topology: topo-blocks
  cluster_default: true
  block:
    block_sizes: [4, 16]
    blocks:
      - block: b1
        nodes: node[01-04]
      - block: b2
        nodes: node[05-08]
      - block: b3
        nodes: node[09-12]
      - block: b4
        nodes: node[13-16]
"""


RACKS = [f"{unit}{rack}" for unit in range(1, 7) for rack in (1, 2)]


def slinky_blocks() -> str:
    """Twelve racks of eight, joined to 16 and 32. NVIDIA/topograph tests/ci/expected.slinky-dra-block.conf."""
    lines = [
        f"# rack{rack}=nvl-{rack[0]}-{rack[1]}\nBlockName=rack{rack} Nodes=srv[{rack}01-{rack}08]" for rack in RACKS
    ]
    return "\n".join([*lines, "BlockSizes=8,16,32", ""])


def slinky_tree() -> str:
    """The same under leaves, spines of two and a core. NVIDIA/topograph tests/ci/expected.slinky-oci-sim-tree.conf."""
    spines = [f"SwitchName=switch.2.{k} Switches=switch.1.[{2 * k - 1}-{2 * k}]" for k in range(1, 7)]
    leaves = [f"SwitchName=switch.1.{k} Nodes=srv[{rack}01-{rack}08]" for k, rack in enumerate(RACKS, start=1)]
    return "\n".join(["# switch.3.1=core", "SwitchName=switch.3.1 Switches=switch.2.[1-6]", *spines, *leaves, ""])


def ibnetdiscover(leaves: dict[str, list[tuple[str, str]]], spines: list[str], links: int, speed: str) -> str:
    """A fabric: adapters (host, name) of every leaf, and ``links`` cables from every leaf to every spine."""
    guid = {name: f"{0x2C5EAB0300B80000 + 64 * k:016x}" for k, name in enumerate([*leaves, *spines])}
    text = "#\n# Topology file: generated on Wed Aug  6 16:11:23 2025\n#\n"
    for leaf, adapters in leaves.items():
        text += f'\nSwitch\t65 "S-{guid[leaf]}"\t\t# "MF0;{leaf}:MQM9701/U1" enhanced port 0 lid 73 lmc 0\n'
        for k, (host, port) in enumerate(adapters):
            text += f'[{k + 1}]\t"H-{_guid(host, port)}"[1]({_guid(host, port)}) \t\t# "{host} {port}" lid 64 {speed}\n'
        for k, spine in enumerate(spine for spine in spines for _ in range(links)):
            text += f'[{k + 33}]\t"S-{guid[spine]}"[{k + 1}]\t\t# "MF0;{spine}:MQM9701/U1" lid 236 {speed}\n'
        text += f'[65]\t"H-{guid[leaf]}ff"[1](ab) \t\t# "Mellanox Technologies Aggregation Node" lid 193 {speed}\n'
    for spine in spines:
        text += f'\nSwitch\t65 "S-{guid[spine]}"\t\t# "MF0;{spine}:MQM9701/U1" enhanced port 0 lid 73 lmc 0\n'
        for k, leaf in enumerate(leaf for leaf in leaves for _ in range(links)):
            text += f'[{k + 1}]\t"S-{guid[leaf]}"[33]\t\t# "MF0;{leaf}:MQM9701/U1" lid 12 {speed}\n'
    for leaf, adapters in leaves.items():
        text += f'\nCa\t1 "H-{guid[leaf]}ff"\t\t# "Mellanox Technologies Aggregation Node"\n'
        text += f'[1](ab) \t"S-{guid[leaf]}"[65]\t\t# lid 193 lmc 0 "MF0;{leaf}:MQM9701/U1" lid 73 {speed}\n'
        for k, (host, port) in enumerate(adapters):
            text += f'\nCa\t1 "H-{_guid(host, port)}"\t\t# "{host} {port}"\n[1](ab) \t"S-{guid[leaf]}"[{k + 1}]'
            text += f'\t\t# lid 647 lmc 0 "MF0;{leaf}:MQM9701/U1" lid 73 {speed}\n'
    return text


def _guid(host: str, port: str) -> str:
    return f"{abs(hash_of(host + port)):016x}"


def hash_of(text: str) -> int:
    """The same number for the same text in every run."""
    value = 0xE09D
    for letter in text:
        value = (value * 131 + ord(letter)) % 2**60
    return value


def dgx_ib() -> str:
    """Units of DGX with four rails, a leaf a rail and unit, spines over all. NVIDIA/topograph tests, example.out.

    There 8 units of 11 to 18 hosts, 32 leaves and 9 spines; here 2 of 4, as many cables up as down.
    """
    leaves = {
        f"A{unit:02}-P1-IBLEAF-{rail:02}": [(f"a{unit:02}-p1-dgx-c{n:02}", f"mlx5_{rail}") for n in range(4)]
        for unit in (6, 8)
        for rail in range(4)
    }
    return ibnetdiscover(leaves, ["A10-P1-IBSPINE-01", "A10-P1-IBSPINE-02"], 2, "4xNDR")


def tapered_ib() -> str:
    """The same hosts on one rail, four down and one up on every leaf, and a login host with a port of its own."""
    leaves = {f"leaf{k}": [(f"gpu{4 * k + n}", "HCA-1") for n in range(4)] for k in range(2)}
    return ibnetdiscover(leaves, ["spine0"], 1, "4xHDR")


def v100_ib() -> str:
    """Four V100 hosts with one EDR adapter each on one HDR switch. NVIDIA/nccl-tests issue 71."""
    return ibnetdiscover({"ibswitch254": [(f"gpu-v100-{n}", "HCA-1") for n in range(4)]}, [], 0, "4xEDR")


def kubernetes_nodes(nodes: dict[str, dict[str, str]], capacity: dict[str, str]) -> str:
    """``kubectl get nodes -o json`` of nodes with these labels, and one control plane."""
    control = {"metadata": {"name": "cp-0", "labels": {"arch": "amd64"}}, "status": {"capacity": {"cpu": "8"}}}
    workers = [
        {"metadata": {"name": name, "labels": labels}, "spec": {}, "status": {"capacity": {"cpu": "192", **capacity}}}
        for name, labels in nodes.items()
    ]
    items = [{"apiVersion": "v1", "kind": "Node", **item} for item in (control, *workers)]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1)


def xe9680_nodes() -> str:
    """Four Dell XE9680 of 8 H100, two a leaf. NVIDIA/k8s-device-plugin issue 1501; NVIDIA/topograph's labels."""
    return kubernetes_nodes(
        {
            f"worker-{n}": {
                "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.count": "8",
                "nvidia.com/gpu.machine": "PowerEdge-XE9680", "nvidia.com/gpu.memory": "81559",
                "nvidia.com/gpu.replicas": "1", "nvidia.com/mig.capable": "true",
                "fabric.topograph.run/tier-0": f"leaf-{n // 2}", "fabric.topograph.run/tier-1": "spine-0",
            }
            for n in range(4)
        },
        {"memory": "2113411308Ki", "nvidia.com/gpu": "8"},
    )  # fmt: skip


def nvl72_nodes() -> str:
    """Two racks of eighteen GB200 trays by their cliques. gpu-feature-discovery's labels, NVIDIA/topograph nvl72."""
    return kubernetes_nodes(
        {
            f"tray-{n:02}": {
                "nvidia.com/gpu.product": "NVIDIA-GB200", "nvidia.com/gpu.count": "4",
                "nvidia.com/gpu.clique": f"cluster-uuid.{n // 18}",
            }
            for n in range(36)
        },
        {"memory": "944Gi", "nvidia.com/gpu": "4"},
    )  # fmt: skip


def p5_nodes() -> str:
    """Four p5.48xlarge on EKS: 32 EFA adapters, network node layers. AWS, EKS and EC2 instance topology."""
    return kubernetes_nodes(
        {
            f"ip-10-1-{n}-7.ec2.internal": {
                "node.kubernetes.io/instance-type": "p5.48xlarge", "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
                "topology.k8s.aws/network-node-layer-1": "nn-1", "topology.k8s.aws/network-node-layer-2": "nn-2",
                "topology.k8s.aws/network-node-layer-3": f"nn-3{n // 2}",
            }
            for n in range(4)
        },
        {"memory": "2097152Mi", "nvidia.com/gpu": "8", "vpc.amazonaws.com/efa": "32"},
    )  # fmt: skip


def gke_nodes() -> str:
    """Eight a3-megagpu-8g by the labels that GKE gives, two sub-blocks of a block. Google Cloud, cluster topology."""
    return kubernetes_nodes(
        {
            f"gke-a3-{n}": {
                "cloud.google.com/gke-accelerator": "nvidia-h100-mega-80gb",
                "node.kubernetes.io/instance-type": "a3-megagpu-8g",
                "cloud.google.com/gce-topology-block": "b0", "cloud.google.com/gce-topology-subblock": f"s{n // 4}",
                "cloud.google.com/gce-topology-host": f"h{n}",
            }
            for n in range(8)
        },
        {"memory": "1872Gi", "nvidia.com/gpu": "8"},
    )  # fmt: skip


def dgx_a100_graph() -> str:
    """A DGX A100 by its components and connections. Keysight/infragraph docs/src/examples/dgxa100.yaml."""
    kinds = {"cpu": "cpu", "xpu": "xpu", "pciesw": "custom", "nvlsw": "custom", "nic": "nic"}
    up = [f"        - xpu.{n}.nvlink.nvlsw.{k}" for k in range(6) for n in range(8)]
    nics = [f"        - pciesw.{n // 2}.pcie.nic.{n}" for n in range(8)]
    lines = ["infrastructure:", "  devices:", "    - name: dgx-a100", "      components:"]
    lines += [f"        - {{name: {name}, type: {kind}}}" for name, kind in kinds.items()]
    lines += ["      links:", "        - name: pcie", "        - name: nvlink", "      connections:"]
    return "\n".join([*lines, *up, *nics, ""])


CLOS_DEVICES = """name: clos
devices:
- name: server
  components:
  - {name: xpu, count: 4, choice: xpu}
  - {name: nic, count: 4, choice: nic}
  - {name: nvsw, count: 1, choice: switch}
  links:
  - {name: pcie}
  - {name: nv, physical: {bandwidth: {choice: gigabytes_per_second, gigabytes_per_second: 150}}}
  edges:
  - {ep1: {component: 'xpu[0:4]'}, ep2: {component: 'nic[0:4]'}, scheme: one2one, link: pcie}
  - {ep1: {component: 'xpu[0:4]'}, ep2: {component: 'nvsw[0]'}, scheme: many2many, link: nv}
- name: switch
  components: [{name: port, count: 16, choice: port}]
links:
- {name: eth1, physical: {bandwidth: {choice: gigabits_per_second, gigabits_per_second: 100}}}
instances:
- {name: server, device: server, count: 8}
- {name: leaf, device: switch, count: 4}
- {name: spine, device: switch, count: 2}
edges:
"""


def clos_graph() -> str:
    """Servers of 4 xpus and NICs on four leaves under two spines. After Keysight/infragraph, two-tier-clos-fabric."""
    down = [_edge(f"server[{k}]", "nic[0:4]", f"leaf[{k // 2}]", "port[0:4]") for k in range(8)]
    up = [_edge(f"leaf[{k}]", "port[8:10]", f"spine[{s}]", "port[0:2]") for k in range(4) for s in range(2)]
    return CLOS_DEVICES + "\n".join([*down, *up, ""])


def _edge(instance: str, component: str, other: str, its: str) -> str:
    ends = (
        f"ep1: {{instance: '{instance}', component: '{component}'}}, ep2: {{instance: '{other}', component: '{its}'}}"
    )
    return f"- {{{ends}, scheme: one2one, link: eth1}}"


def nccl_tests(test: str, hosts: list[str], per_host: int, product: str, rows: list[tuple[int, float]]) -> str:
    """A log of nccl-tests with ranks and rows (bytes, out-of-place microseconds)."""
    ranks = [(host, device) for host in hosts for device in range(per_host)]
    lines = [f"# Collective test starting: {test}", "# nThread 1 nGpus 1 minBytes 8", "#", "# Using devices"]
    for k, (host, device) in enumerate(ranks):
        lines.append(f"#  Rank {k:2} Group  0 Pid   {1885 + k} on   {host} device {device:2} [0x8d] {product}")
    times = "     time   algbw   busbw #wrong"
    lines += ["#", f"#       size         count      type   redop    root{times}{times}"]
    for size, time in rows:
        speed = size / time / 1e3
        part = f" {time:8.2f} {speed:7.2f} {2 * speed:7.2f}      0"
        lines.append(f"{size:12} {size // 4:13}     float     sum      -1{part}{part}")
    return "\n".join([*lines, "# Out of bounds values : 0 OK", "# Avg bus bandwidth    : 300.1", ""])


def nebius_log() -> str:
    """All-reduce on two hosts of H100, 8 NDR ports. drmysore/nebius-h100-16gpu-benchmark; nebius/soperator PR 428."""
    rows = [(1_000_000, 88.0), (10_000_000, 157.0), (100_000_000, 647.0), (1_000_000_000, 4520.0)]
    return nccl_tests("all_reduce_perf", ["worker-1", "worker-0"], 8, "NVIDIA H100 80GB HBM3", rows)


def hdr_log() -> str:
    """All-reduce on three hosts of A100 with 4 HDR ports, half of what its ports claim. NVIDIA/nccl-tests issue 119."""
    rows = [(127_926_280, 2560.7), (133_169_160, 2666.0)]
    return nccl_tests("all_reduce_perf", ["n0", "n1", "n2"], 8, "NVIDIA A100-SXM4-80GB", rows)


GALVATRON_TWO_HOSTS = json.dumps({
    "allreduce_size_16_consec_1": 44.682, "allreduce_size_8_consec_1": 155.658, "allreduce_size_8_consec_0": 20.7724,
    "allreduce_size_4_consec_1": 157.984, "allreduce_size_4_consec_0": 16.22, "allreduce_size_2_consec_1": 149.666,
    "allreduce_size_2_consec_0": 8.13007,
})  # fmt: skip
"""PKU-DAIR/Hetu-Galvatron hardware_configs/allreduce_bandwidth_2nodes_8gpus_per_node.json."""
GALVATRON_ONE_HOST = json.dumps({
    "allreduce_size_8_consec_1": 154.203, "allreduce_size_4_consec_1": 159.119, "allreduce_size_4_consec_0": 155.815,
    "allreduce_size_2_consec_1": 138.156, "allreduce_size_2_consec_0": 151.344,
})  # fmt: skip
"""PKU-DAIR/Hetu-Galvatron hardware_configs/allreduce_bandwidth_1nodes_8gpus_per_node.json."""
