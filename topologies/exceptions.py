"""Exceptions of a cluster file: what is worse on some hosts than on the rest, as a person writes it.

    hosts_per_leaf = 8                                   # leaves are runs of neighbouring hosts; or a list, one each
    spare_hosts = 2                                      # so many stay idle, the planner says which
    host_names = "node[01-64]"                           # for launch files; or a list, one a host
    exceptions = [
        { hosts = 17, nic_bandwidth = "25 GB/s" },       # of every card of that host
        { hosts = "3", devices = 7 },
        { hosts = "5,9-10", dead = true },
        { leaves = 4, oversubscription = 4 },            # or hosts = "32-39": one switch above them
    ]

Hosts and leaves are numbered from 0. An exception only takes away: what is better than the rest is another cluster.
So are hosts with other memory beside their devices: parts of a mixed cluster have tiers of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from topologies.catalogue import Fabric, Host
from topologies.errors import BadInput
from topologies.records import Record
from topologies.units import reader

if TYPE_CHECKING:
    from topologies.irregular import Irregular

BytesPerSecond = Annotated[float, reader("B/s"), Field(gt=0)]
Numbers = int | str | list[int]
MEMORY = (
    "tiers", "dram", "nvme", "memory_capacity", "memory_bandwidth", "device_link", "nvme_capacity", "nvme_bandwidth",
    "nvme_write_bandwidth", "memory_energy", "device_link_energy", "figures",
)  # fmt: skip
"""What of a host is no exception to be made, since memory tiers are those of all hosts of a cluster."""


class HostException(Record):
    """What holds for some ``hosts``, or for those of some ``leaves``, instead of what the cluster's host says.

    ``nic_bandwidth`` is that of each card and ``nics`` how many work; ``oversubscription`` is of the switch above
    the hosts (of every leaf named: each has its own) and replaces the fabric's.
    """

    hosts: Numbers | None = None
    leaves: Numbers | None = None
    dead: bool = False
    devices: Annotated[int, Field(strict=True, ge=0)] | None = None
    nics: Annotated[int, Field(strict=True, ge=1)] | None = None
    nic_bandwidth: BytesPerSecond | None = None
    oversubscription: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    note: str = ""

    @model_validator(mode="before")
    @classmethod
    def _all_hosts_have_the_same_memory(cls, given: Any) -> Any:
        for field in [name for name in MEMORY if isinstance(given, dict) and name in given]:
            which = next((f"{kind} {given[kind]}" for kind in ("hosts", "leaves") if kind in given), "these hosts")
            raise ValueError(
                f"all hosts of a cluster have the same memory tiers, but {which[:40]!r} give {field} = "
                f"{str(given[field])[:40]!r}; write these hosts as a cluster file of their own, with its figures and "
                'tiers, the rest as another, and plan on both: parts = ["these.toml", "rest.toml"] of a mixed cluster'
            )
        return given


@dataclass(frozen=True, slots=True)
class Exceptions:
    """The fields of a cluster file that make its hosts differ."""

    listed: list[HostException]
    hosts_per_leaf: int | list[int] | None
    spare_hosts: int
    host_names: str | list[str]

    def __bool__(self) -> bool:
        return bool(self.listed or self.spare_hosts or self.host_names)

    def among(self, hosts: int, host: Host, fabric: Fabric, said_by: str, *, switches: bool) -> Irregular | None:
        """What differs among so many hosts, ``None`` where nothing does; numpy is loaded for such files only.

        Raises ``BadInput``, its text after ``said_by``, for what is wrong, and beside ``switches`` of alike hosts.
        """
        if not self:
            return None
        if switches:
            raise BadInput(
                f"{said_by}switches describe hosts that are alike, but exceptions, spare_hosts or host_names are given "
                "too; name the narrow ones among the switches as exceptions of leaves, and leave switches out"
            )
        from topologies.host_table import irregular

        try:
            return irregular(self, hosts, host, fabric)
        except BadInput as error:
            raise BadInput(f"{said_by}{error}") from error
