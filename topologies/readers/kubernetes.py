"""``kubectl get nodes -o json`` (or yaml): nodes with accelerators, and the fabric as labels tell it.

Levels are read from the labels of Topograph, Google, AWS, Oracle, Nebius and CoreWeave, nearest switch first; NVLink
domains from ``nvidia.com/gpu.clique`` and its kin. A TPU slice is a domain: a node pool of GKE where its topology has
more chips than a node, else the node. Nodes without accelerators are left out.

Source: gpu-feature-discovery's labels; NVIDIA/topograph docs/reference/node-labels.md; Google Cloud, AWS, CoreWeave,
Oracle (oracle-quickstart/oci-hpc-oke) and Nebius (nebius/soperator) documentation of their node labels.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from topologies.errors import BadInput
from topologies.readers.bounded import json_root, yaml_root
from topologies.readers.seen import Device, Group, HostSeen, Memory, Nic, Seen
from topologies.records import validation_text

TITLE = "Kubernetes nodes"
MOST_NODES = 100_000
MOST_DEVICES = 1024
_TIERS = (
    tuple(f"fabric.topograph.run/tier-{n}" for n in range(8)),
    tuple(f"network.topology.nvidia.com/{what}" for what in ("leaf", "spine", "core")),
    tuple(f"network.topology.nvidia.com/{what}" for what in ("block", "datacenter")),
    tuple(f"cloud.google.com/gce-topology-{what}" for what in ("subblock", "block")),
    tuple(f"topology.k8s.aws/network-node-layer-{n}" for n in (3, 2, 1)),
    tuple(f"oci.oraclecloud.com/rdma.{what}_id" for what in ("local_block", "network_block", "hpc_island")),
    (*(f"topology.nebius.com/tier-{n}" for n in range(1, 4)), "topology.nebius.com/gpu-cluster-id"),
    ("backend.coreweave.cloud/leafgroup", "backend.coreweave.cloud/superpod", "backend.coreweave.cloud/fabric"),
)
"""Families of labels, each from the nearest switch outwards."""
_DOMAINS = ("nvidia.com/gpu.clique", "accelerator.topograph.run/domain", "network.topology.nvidia.com/accelerator",
            "ds.coreweave.com/nvlink.domain", "topology.k8s.aws/ultraserver-id",
            "topology.nebius.com/nvl-instance-group-id")  # fmt: skip
_PRODUCTS = ("nvidia.com/gpu.product", "amd.com/gpu.product-name", "cloud.google.com/gke-accelerator",
             "cloud.google.com/gke-tpu-accelerator",
             "gpu.nvidia.com/model")  # fmt: skip
_COUNTS = ("nvidia.com/gpu.count", "gpu.nvidia.com/count")
_RESOURCES = ("nvidia.com/gpu", "amd.com/gpu", "habana.ai/gaudi", "aws.amazon.com/neuron", "google.com/tpu")
_SLICE = "cloud.google.com/gke-tpu-topology"
_POOL = "cloud.google.com/gke-nodepool"
_PART = re.compile(r"-MIG-[0-9a-z.+]{1,24}|-SHARED")
_QUANTITY = re.compile(r"([0-9]{1,18})(Ki|Mi|Gi|Ti|k|M|G|T)?")
_UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
Text = Annotated[str, Field(max_length=4096)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)


class _Metadata(_Record):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    labels: dict[Text, Text] | None = None


class _Spec(_Record):
    unschedulable: bool = False


class _Status(_Record):
    capacity: dict[Text, Text] | None = None
    conditions: Any = None


class _Node(_Record):
    metadata: _Metadata
    spec: _Spec = _Spec()
    status: _Status = _Status()


class _Nodes(_Record):
    items: Annotated[list[_Node], Field(min_length=1, max_length=MOST_NODES)]


def recognises(text: str) -> bool:
    """Whether the text looks like objects of Kubernetes."""
    head = text[:200_000]
    return "apiVersion" in head and "metadata" in head and re.search(r"\bNode(List)?\b|\bList\b", head) is not None


def read(text: str, origin: str) -> Seen:
    """The nodes with accelerators, their domains and switches. Raises ``BadInput`` naming the field that is wrong."""
    root = json_root(text, origin) if text.lstrip().startswith("{") else yaml_root(text, origin)
    nodes = _nodes(root, origin)
    pairs = [(node, host) for node in nodes if (host := _host(node, origin)) is not None]
    hosts = [host for _, host in pairs]
    if not hosts:
        raise BadInput(
            f"{origin}: none of {len(nodes)} nodes has an accelerator by label ({', '.join(_PRODUCTS[:2])}) or by "
            f"capacity ({', '.join(_RESOURCES[:2])}); run the device plugin and feature discovery, then list them again"
        )
    odd = (*_out_of_use([node for node, _ in pairs], origin), *_broken_slices(pairs, origin))
    return Seen(origin, tuple(hosts), tuple(_groups(nodes, {h.name for h in hosts}, origin)), oddities=odd)


def _out_of_use(nodes: list[_Node], origin: str) -> Iterator[str]:
    """Nodes that run nothing new at the moment; they are counted, since jobs are planned for later."""
    cordoned = [node.metadata.name for node in nodes if node.spec.unschedulable]
    down = [node.metadata.name for node in nodes if _readiness(node) - {"True"}]
    for names, word in ((cordoned, "cordoned"), (down, "not ready")):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            be = "is" if len(names) == 1 else "are"
            yield f"{origin}: {', '.join(names[:4])}{more} {be} {word} and counted; leave hosts out with --only"


def _broken_slices(pairs: list[tuple[_Node, HostSeen]], origin: str) -> Iterator[str]:
    """Node pools of TPUs that do not have the chips of one slice."""
    chips: dict[str, int] = defaultdict(int)
    slices: dict[str, str] = {}
    for node, host in pairs:
        labels = node.metadata.labels or {}
        if _SLICE in labels and host.domain == labels.get(_POOL):
            chips[host.domain] += len(host.devices)
            slices[host.domain] = labels[_SLICE]
    for pool, topology in slices.items():
        if chips[pool] != math.prod(map(int, topology.split("x"))):
            yield f"{origin}: node pool {pool[:80]} has {chips[pool]} chips, but its slice is {topology}"


def _domain(node: _Node, count: int, place: str) -> str:
    """What names the scale-up domain of a node's ``count`` devices; empty where no label tells."""
    labels = node.metadata.labels or {}
    topology = labels.get(_SLICE)
    if topology is None:
        return next((labels[key] for key in _DOMAINS if labels.get(key)), "")
    if not re.fullmatch(r"[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}", topology):
        raise BadInput(f"{place}: {_SLICE} is chips an axis like 4x4 or 2x2x4; got {topology[:40]!r}")
    return labels.get(_POOL, "") if math.prod(map(int, topology.split("x"))) > count else node.metadata.name


def _nodes(root: Any, origin: str) -> list[_Node]:
    if not isinstance(root, dict):
        raise BadInput(f"{origin}: nodes of Kubernetes are an object with items; got a {type(root).__name__}")
    items = root.get("items", [root] if root.get("kind") == "Node" else None)
    try:
        return _Nodes.model_validate({"items": items}).items
    except ValidationError as error:
        raise BadInput(f"{origin}: {validation_text(error)[:400]}; give kubectl get nodes -o json") from error


def _host(node: _Node, origin: str) -> HostSeen | None:
    labels, capacity = node.metadata.labels or {}, node.status.capacity or {}
    place = f"{origin}, node {node.metadata.name}"
    product = next((labels[key] for key in _PRODUCTS if key in labels), "")
    counts = [labels[key] for key in _COUNTS if key in labels] + [
        capacity[key] for key in _RESOURCES if key in capacity
    ]
    count = _count(counts[0], place) if counts else 0
    if not count:
        return None
    partition = _partition(labels, product)
    name = _PART.sub("", product)
    devices = tuple(Device(f"GPU{k}", origin, product=name, partition=partition) for k in range(count))
    adapters = _count(capacity.get("vpc.amazonaws.com/efa", "0"), place)
    return HostSeen(
        node.metadata.name,
        origin,
        devices,
        nics=tuple(Nic(f"efa{k}", origin, kind="efa") for k in range(adapters)) or None,
        memories=tuple(_memories(capacity, origin)),
        machine=labels.get("node.kubernetes.io/instance-type", labels.get("nvidia.com/gpu.machine", "")),
        domain=_domain(node, count, place),
    )


def _count(text: str, place: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) > MOST_DEVICES:
        raise BadInput(f"{place}: a count of devices is a whole number to {MOST_DEVICES}; got {text[:40]!r}")
    return int(text)


def _readiness(node: _Node) -> set[str]:
    """What a node's conditions say of its being ready; what is no condition says nothing, as it makes a note alone."""
    told = node.status.conditions if isinstance(node.status.conditions, list) else ()
    ready = (it.get("status") for it in told if isinstance(it, dict) and it.get("type") == "Ready")
    return {str(status) for status in ready if status is not None}


def _partition(labels: dict[str, str], product: str) -> str:
    """What part of a device a node hands out: a MIG instance, or a turn."""
    shared = labels.get("nvidia.com/gpu.replicas", "1")
    if match := _PART.search(product):
        return "time slicing" if match[0] == "-SHARED" else match[0].strip("-").replace("MIG-", "MIG ")
    slices = sorted(key.removeprefix("nvidia.com/mig-").removesuffix(".count") for key, value in labels.items()
                    if key.startswith("nvidia.com/mig-") and key.endswith(".count") and value != "0")  # fmt: skip
    if slices:
        return f"MIG {', '.join(slices)}"
    return "time slicing" if shared not in ("0", "1", "") else ""


def _memories(capacity: dict[str, str], origin: str) -> Iterator[Memory]:
    match = _QUANTITY.fullmatch(capacity.get("memory", ""))
    if match and int(match[1]):
        yield Memory("DRAM", int(match[1]) * _UNITS[match[2] or ""], origin)


def _groups(nodes: list[_Node], hosts: set[str], origin: str) -> Iterator[Group]:
    """A group for every value of the labels of one family, the first that any node carries."""
    labels = {node.metadata.name: node.metadata.labels or {} for node in nodes if node.metadata.name in hosts}
    family = next((keys for keys in _TIERS if any(key in each for each in labels.values() for key in keys)), ())
    for level, key in enumerate(family, start=1):
        members: dict[str, list[str]] = defaultdict(list)
        for name, each in labels.items():
            if each.get(key):
                members[each[key]].append(name)
        for value, names in members.items():
            yield Group(value, key.split("/")[-1], level, tuple(names), origin)
