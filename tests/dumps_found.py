"""Dumps that were found after the readers were written, written anew from the facts of public ones."""

from __future__ import annotations

from collections.abc import Callable

from tests.dumps_more import kubernetes_nodes, nccl_tests


def matrix(
    links: Callable[[int, int], str], near: Callable[[int, int], str], devices: int, nics: list[str], numa: list[str]
) -> str:
    """What ``nvidia-smi topo -m`` prints: ``near(device, NIC)``, and NUMA Affinity a device."""
    ports = [f"NIC{k}" for k in range(len(nics))]
    lines = ["        " + "    ".join([*(f"GPU{n}" for n in range(devices)), *ports, "CPU Affinity", "NUMA Affinity",
                                        "GPU NUMA ID"])]  # fmt: skip
    for n in range(devices):
        cells = ["X" if n == m else links(n, m) for m in range(devices)]
        cells += [near(n, k) for k in range(len(nics))]
        lines.append("    ".join([f"GPU{n}", *cells, "0-71", numa[n], "N/A"]))
    for k, port in enumerate(ports):
        cells = [near(n, k) for n in range(devices)] + ["X" if k == j else "SYS" for j in range(len(nics))]
        lines.append("    ".join([port, *cells]))
    return "\n".join(
        [*lines, "", "NIC Legend:", "", *(f"  {p}: {nic}" for p, nic in zip(ports, nics, strict=True)), ""]
    )


def collected(product: str, devices: int, text: str) -> str:
    """The lines of SGLang's check_env that name the devices, and the matrix below them."""
    numbers = ",".join(map(str, range(devices)))
    return (
        f"CUDA available: True\nGPU {numbers}: {product}\nGPU {numbers} Compute Capability: 10.0\n"
        f"NVIDIA Topology: \n{text}\nHypervisor vendor:: KVM\n"
    )


def gb200_tray() -> str:
    """Four GB200 of a tray: memory of devices is NUMA nodes too, no NIC is near one. sgl-project/sglang issue 11208."""
    numa = ["0,3-9,11-17"] * 2 + ["1,19-25,27-33"] * 2
    nics = [f"mlx5_{k}" for k in range(6)]
    text = matrix(lambda n, m: "NV18", lambda n, k: "SYS", 4, nics, numa)
    return collected("NVIDIA GB200", 4, text)


def b300() -> str:
    """Eight B300 and 24 NICs, two of them next to each device. vllm-project/vllm issue 39620: those of the first four
    devices are 4 and 5, 8 and 9, 10 and 11, 12 and 13; those of the others are dealt here.
    """
    mine = {0: (4, 5), 1: (8, 9), 2: (10, 11), 3: (12, 13), 4: (14, 15), 5: (16, 17), 6: (18, 19), 7: (20, 21)}
    far = lambda n, k: "NODE" if (n < 4) == (k < 14) else "SYS"  # noqa: E731
    text = matrix(
        lambda n, m: "NV18", lambda n, k: "PXB" if k in mine[n] else far(n, k), 8, [f"mlx5_{k}" for k in range(24)],
        ["0"] * 4 + ["1"] * 4,
    )  # fmt: skip
    return collected("NVIDIA B300 SXM6 AC", 8, text)


def oracle_h100() -> str:
    """Eight H100 with two NICs of 200 Gb/s each and two more. sgl-project/sglang issue 8538; Oracle BM.GPU.H100.8."""
    mine = {n: (2 * n + (n > 3), 2 * n + 1 + (n > 3)) for n in range(8)}
    text = matrix(
        lambda n, m: "NV18", lambda n, k: "PXB" if k in mine[n] else "NODE" if (n < 4) == (k < 9) else "SYS", 8,
        [f"mlx5_{k}" for k in range(18)], ["0"] * 4 + ["1"] * 4,
    )  # fmt: skip
    return collected("NVIDIA H100 80GB HBM3", 8, text)


def b200_without_a_link() -> str:
    """Eight B200 of which the third has no NVLink to the others. vllm-project/vllm issue 16336."""
    alone = lambda n, m: "NV18" if 2 not in (n, m) else "NODE" if max(n, m) < 4 else "SYS"  # noqa: E731
    text = matrix(
        alone, lambda n, k: "PXB" if n == k else "NODE" if (n < 4) == (k < 4) else "SYS", 8,
        [f"mlx5_{k}" for k in range(8)], ["0"] * 4 + ["1"] * 4,
    )  # fmt: skip
    return collected("NVIDIA B200", 8, text)


def l40s_pairs() -> str:
    """Four L40S, two a socket, and a card of two ports on the second. warpem/miss-alignment issue 106."""
    pair = lambda n, m: "NODE" if n // 2 == m // 2 else "SYS"  # noqa: E731
    text = matrix(pair, lambda n, k: "NODE" if n > 1 else "SYS", 4, ["mlx5_0", "mlx5_1"], ["0", "0", "1", "1"])
    return collected("NVIDIA L40S", 4, text)


def dgx_spark() -> str:
    """A GB10 on a desk: a radio and a tunnel are all that NCCL finds. NVIDIA/nccl pull request 2202."""
    return (
        '<system version="1"><cpu host_hash="0xcb0355b3c0b2caa" numaid="-1" arch="arm64">'
        '<pci busid="0009:01:00.0" class="0x028000" vendor="0x14c3" device="0x7925" link_speed="5.0 GT/s PCIe" '
        'link_width="1"><nic><net name="wlP9s9" dev="0" latency="0" speed="10000" port="0" guid="0x0" gdr="0"/></nic>'
        '</pci><pci busid="000f:01:00.0" class="0x030000" vendor="0x10de" device="0x2e12" '
        'link_speed="2.5 GT/s PCIe" link_width="16"><gpu dev="0" sm="121" rank="0" gdr="0"><c2c bw="43125" count="8"/>'
        '</gpu></pci><nic><net name="tailscale0" dev="1" latency="0" speed="10000" port="0" guid="0x1" gdr="0"/></nic>'
        "</cpu></system>"
    )


def p4de_template() -> str:
    """What Amazon gives NCCL for p4de: as for p4d, with ids of parts. aws/aws-ofi-nccl topology/p4de-24xl-topo.xml."""
    wide, cpus = 'link_speed="8 GT/s" link_width="16"', ["", ""]
    parts = (("1c", "0x030200", "10de", "20b2"), ("1d", "0x030200", "10de", "20b2"), ("1b", "0x020000", "1d0f", "efa0"))
    for k in range(4):
        below = "".join(
            f'<pci busid="0000:{k + 1}0:{slot}.0" class="{kind}" vendor="0x{vendor}" device="0x{device}" {wide}/>'
            for slot, kind, vendor, device in parts
        )
        cpus[k // 2] += f'<pci busid="ffff:ff:0{k + 1}.0" class="0x060400" vendor="0xffff" {wide}>{below}</pci>'
    inner = "".join(f'<cpu numaid="{n}" affinity="ff" arch="x86_64">{text}</cpu>' for n, text in enumerate(cpus))
    return f'<system version="1">{inner}</system>'


LEONARDO = """SwitchName=isw-L2-CELLG1 Level=1 LinkSpeed=1 Nodes=lrdn[0001-0032] Switches=isw1[0100,0102]
SwitchName=isw-L2-CELLG2 Level=1 LinkSpeed=1 Nodes=lrdn[0033-0064] Switches=isw2[0100,0102]
SwitchName=isw10100 Level=0 LinkSpeed=1 Nodes=lrdn[0001-0012,0017-0020]
SwitchName=isw10102 Level=0 LinkSpeed=1 Nodes=lrdn[0013-0016,0021-0032]
SwitchName=isw20100 Level=0 LinkSpeed=1 Nodes=lrdn[0033-0048]
SwitchName=isw20102 Level=0 LinkSpeed=1 Nodes=lrdn[0049-0064]
"""
"""``scontrol show topology`` as Leonardo prints it, two cells of it made even."""
GB300_BLOCKS = """BlockName=gb300_b0 BlockIndex=0 Nodes=10.140.71.103,10.140.88.115 BlockSize=2
BlockName=gb300_b1 BlockIndex=1 Nodes=10.140.79.152,10.140.93.120 BlockSize=2
BlockName=gb300_b2 BlockIndex=2 Nodes=10.140.71.104,10.140.88.116 BlockSize=2
BlockName=gb300_b3 BlockIndex=3 Nodes=10.140.79.153,10.140.93.121 BlockSize=2
AggregatedBlock=gb300_b[0-1] BlockIndex=4 Nodes=10.140.71.103,10.140.79.152,10.140.88.115,10.140.93.120 BlockSize=4
AggregatedBlock=gb300_b[2-3] BlockIndex=5 Nodes=10.140.71.104,10.140.79.153,10.140.88.116,10.140.93.121 BlockSize=4
"""
"""``scontrol show topology`` of four GB300 in Oracle's cloud, and of as many beside them."""
CONTINUED = """# rails meet on one leaf a unit
SwitchName=leaf1 Nodes=gpu[001-002],\\
gpu[003-004]   # the first unit
SwitchName=leaf2 \\
    Nodes=gpu[005-008]
SWITCHNAME=spine Switches=leaf[1-2] LinkSpeed=400
"""
DISCONNECTED = """SwitchName=spineA Switches=leafA1,leafA2
SwitchName=leafA1 Nodes=node[1-8]
SwitchName=leafA2 Nodes=node[9-16]
SwitchName=spineB Switches=leafB1,leafB2
SwitchName=leafB1 Nodes=node[17-24]
SwitchName=leafB2 Nodes=node[25-32]
SwitchName=leafC Nodes=node[33-40]
"""
"""Halls without a root above them, and a leaf alone. SchedMD/slurm testsuite, test_133_1, testcase6."""
OFF_THE_FABRIC = """#
# Topology file: generated on Fri Aug  8 06:33:24 2025
#
# Initiated from node b8e92403009ca838 port b8e92403009ca838

vendid=0x2c9
devid=0x1021
sysimgguid=0xb8e92403009ca838
caguid=0xb8e92403009ca838
Ca\t1 "H-b8e92403009ca838"\t\t# "dgx-gb200-n01-c1 HCA-1"
"""
"""``ibnetdiscover`` on a host whose port is down. NVIDIA/topograph tests/output/ibnetdiscover/example-bad.out."""


def oke_nodes() -> str:
    """Eight GB300 trays by the labels of Oracle's Kubernetes, two local blocks. A public log of four of them."""
    rdma = "oci.oraclecloud.com/rdma"
    return kubernetes_nodes(
        {
            f"10.140.71.{n}": {
                "nvidia.com/gpu.product": "NVIDIA-GB300", "nvidia.com/gpu.count": "4",
                "nvidia.com/gpu.clique": "a2221497-dbce-4964-8826-684c3694fd45.2478",
                f"{rdma}.hpc_island_id": "5xxb22p6ucq", f"{rdma}.network_block_id": f"e4c5ds4yav{n // 8}",
                f"{rdma}.local_block_id": f"3bf4jpavrb{n // 8}", f"{rdma}.host_id": f"h{n}",
            }
            for n in range(16)
        },
        {"memory": "944Gi", "nvidia.com/gpu": "4"},
    )  # fmt: skip


def nebius_nodes() -> str:
    """Eight hosts of 8 H200, four a leaf, by the labels of Nebius's Kubernetes. nebius/soperator, its documentation."""
    return kubernetes_nodes(
        {
            f"computeinstance-{n}": {
                "nvidia.com/gpu.product": "NVIDIA-H200", "nvidia.com/gpu.count": "8",
                "topology.nebius.com/tier-1": f"leaf-{n // 4}", "topology.nebius.com/tier-2": "spine-a",
                "topology.nebius.com/gpu-cluster-id": "gpu-cluster-a",
            }
            for n in range(8)
        },
        {"memory": "1600Gi", "nvidia.com/gpu": "8"},
    )  # fmt: skip


def ultraserver_nodes() -> str:
    """Two P6e-GB200 UltraServers of eighteen instances by the label that HyperPod gives them. AWS documentation."""
    return kubernetes_nodes(
        {
            f"hyperpod-{n:02}": {
                "nvidia.com/gpu.product": "NVIDIA-GB200", "nvidia.com/gpu.count": "4",
                "topology.k8s.aws/ultraserver-id": f"us-{n // 18}",
            }
            for n in range(36)
        },
        {"memory": "944Gi", "nvidia.com/gpu": "4"},
    )  # fmt: skip


def tpu7x_nodes() -> str:
    """A slice of 2x2x4 Ironwood chips over four nodes of GKE. Google Cloud, TPU node pools."""
    return kubernetes_nodes(
        {
            f"gke-tpu7x-{n}": {
                "cloud.google.com/gke-tpu-accelerator": "tpu7x", "cloud.google.com/gke-tpu-topology": "2x2x4",
                "cloud.google.com/gke-nodepool": "np-tpu7x",
            }
            for n in range(4)
        },
        {"google.com/tpu": "4"},
    )  # fmt: skip


def nvl72_log(hosts: int = 18) -> str:
    """All-reduce over the eighteen trays of an NVL72. coreweave/nccl-tests pull request 43."""
    rows = [
        (536870912, 1806.7),
        (1073741824, 3108.8),
        (2147483648, 5589.1),
        (4294967296, 10094.0),
        (8589934592, 20299.0),
    ]
    return nccl_tests("all_reduce_perf", [f"gb200-207-{k:03}" for k in range(hosts)], 4, "NVIDIA GB200", rows)
