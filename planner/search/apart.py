"""Packings that keep replicas apart (:mod:`planner.apart`), of hosts alike but for their numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cost_models.rows import Rows
from planner.apart import Domain
from planner.search.packing import Option, Packing, Shape
from topologies.irregular import Irregular

Ints = NDArray[np.int64]


class ApartPacking(Packing):
    """The packings of a cluster whose replicas stand one after the other, each begun where domains have room."""

    def __init__(self, irregular: Irregular, domains: tuple[Domain, ...]) -> None:
        super().__init__(irregular)
        self.domains = domains
        self._places = [np.array(irregular.numbers) // domain.hosts for domain in domains]
        self._arranged: dict[Shape, Ints | None] = {}

    def columns(self, rows: Rows) -> list[Ints]:
        """Replicas over hosts and inside one, ``[rows]`` each."""
        split = rows.factors["dp_replicate"]
        return [np.prod(split[:, 1:], axis=1, dtype=np.int64), split[:, 0]]

    def options(self, shape: Shape) -> tuple[Option, ...]:
        """The packing of hosts that are alike, where the replicas can be kept apart."""
        return super().options(shape) if self.arranged(shape) is not None else ()

    def hosts(self, shape: Shape, option: Option, levels: tuple[int, ...]) -> tuple[int, ...]:
        """Positions of hosts, group after group; in a group replica after replica, as its coordinates turn."""
        arranged = self.arranged(shape)
        if arranged is None:
            return ()
        return tuple(arranged.reshape(shape.replicas, shape.groups, -1).transpose(1, 0, 2).ravel().tolist())

    def arranged(self, shape: Shape) -> Ints | None:
        """Positions of every replica's hosts, ``[replicas, hosts]``; ``None`` where there is no room."""
        if shape not in self._arranged:
            self._arranged[shape] = self._dealt(shape)
        return self._arranged[shape]

    def _dealt(self, shape: Shape) -> Ints | None:
        able = np.flatnonzero(np.array(self.irregular.devices) >= shape.devices)
        each, at, found = shape.hosts * shape.groups // shape.replicas, 0, []
        held = [np.zeros(int(place.max()) + 1, dtype=np.int64) for place in self._places]
        if len(able) < each * shape.replicas or any(shape.inside > domain.most for domain in self.domains):
            return None
        for _ in range(shape.replicas):
            at = self._first_with_room(able, at, held, shape.inside)
            mine = able[at : at + each]
            if len(mine) < each:
                return None
            for count, place in zip(held, self._places, strict=True):
                count[np.unique(place[mine])] += shape.inside
            found.append(mine)
            at += each
        return np.stack(found)

    def _first_with_room(self, able: Ints, at: int, held: list[Ints], more: int) -> int:
        """The first able host from ``at`` on whose domains all have room for so many replicas more."""
        rest = able[at:]
        room = np.ones(len(rest), dtype=bool)
        for count, place, domain in zip(held, self._places, self.domains, strict=True):
            room &= count[place[rest]] + more <= domain.most
        return at + (int(np.argmax(room)) if room.any() else len(rest))
