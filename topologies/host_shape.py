"""Where a host ends among the network levels of its scale-up domain.

A domain is one level, or several: the partitions of a package and then the packages, the axes of a torus. A host is
a run of neighbouring devices in the order of ranks: ``members`` members of level ``level``, each with all that the
levels inside it hold.

    devices = members * prod_{k < level} F_k          hosts = ceil(u_level / members) * prod_{k > level} u_k

with ``F`` the members that there are and ``u`` those in use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class HostShape:
    """``members`` of level ``level`` are one host; ``inside`` are the fanouts of the levels below that one."""

    members: int
    level: int = 0
    inside: tuple[int, ...] = ()
    domain_levels: int = 1

    @staticmethod
    def of(devices: int, fanouts: tuple[int, ...], domain_levels: int) -> HostShape:
        """The shape of hosts of so many devices where the domain's levels have these fanouts."""
        level, held = 0, 1
        while level < domain_levels - 1 and held * fanouts[level] < devices:
            held *= fanouts[level]
            level += 1
        return HostShape(devices // held, level, fanouts[:level], domain_levels)

    def hosts(self, used: Ints) -> Ints:
        """Hosts on which these members of every level lie, ``[...]`` for ``used [..., levels]``."""
        return -(-used[..., self.level] // self.members) * used[..., self.level + 1 :].prod(axis=-1)

    def side_by_side(self, devices: Ints, levels: int) -> Ints:
        """Members in use, ``[..., levels]``, that put so many devices on the fewest hosts."""
        import numpy as np

        used = np.ones((*devices.shape, levels), dtype=np.int64)
        used[..., self.level] = -(-devices // math.prod(self.inside))
        return used

    def domain_hosts(self, used: Ints) -> Ints:
        """Hosts of each scale-up domain on which they lie, ``[...]``."""
        return self.hosts(used[..., : self.domain_levels])

    def devices_a_host(self, used: Ints) -> Ints:
        """Devices in use on each host, ``[...]``."""
        return used[..., : self.level].prod(axis=-1) * used[..., self.level].clip(max=self.members)

    def devices_a_domain(self, used: Ints) -> Ints:
        """Devices in use in each scale-up domain, ``[...]``."""
        return used[..., : self.domain_levels].prod(axis=-1)

    def broken_rule(self, used: Sequence[int]) -> str:
        """What makes hosts run unequally many ranks, or other devices than their first ones; "" where nothing does."""
        here = used[self.level]
        if here > self.members and here % self.members:
            held = self.members * math.prod(self.inside)
            ranks = here * math.prod(used[: self.level])
            return (
                f"{ranks} ranks in a scale-up domain leave hosts of {held} devices unequally used; "
                f"take at most {held}, or a multiple of it"
            )
        for k, room in enumerate(self.inside):
            if used[k] != room and math.prod(used[k + 1 : self.level + 1]) > 1:
                return (
                    f"{used[k]} of {room} members of level {k} are used where several of level {k + 1} are, and a host "
                    f"runs its ranks on its first devices; fill the inner level, or stay inside one of the outer"
                )
        return ""

    def whole(self, used: Sequence[int]) -> bool:
        """Whether every host runs equally many ranks, on its first devices."""
        return not self.broken_rule(used)
