"""A mixed cluster: several regular clusters, each of one accelerator and host, joined by one link level.

    between parts    bandwidth = the slowest part's share of its NICs a device      latency = the slowest fabric's

Text ``"dgx-a100:4+dgx-h100:4"`` names the parts; a TOML file lists them and may give the link its own figures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError

from topologies.cluster import Cluster, Level
from topologies.errors import BadInput
from topologies.ready import MOST_DEVICES, read_cluster
from topologies.records import Record, validation_text
from topologies.shapes import nic_share_bytes_per_s
from topologies.tiers import with_tiers
from topologies.units import parse_quantity

MOST_PARTS = 8


@dataclass(frozen=True)
class MixedCluster:
    """``parts``, each regular by itself, and the level that joins any two of them.

    ``sources`` are names of parts and the names or paths that these were read from.
    """

    name: str
    parts: tuple[Cluster, ...]
    join: Level
    sources: tuple[tuple[str, str], ...] = ()

    def source(self, part: Cluster) -> str:
        """What reads ``part`` again: the name or path that it was read from, its name where it was made in Python."""
        return dict(self.sources).get(part.name, part.name)

    @property
    def devices(self) -> int:
        """Devices of all parts."""
        return sum(part.devices for part in self.parts)

    def with_parts(self, parts: tuple[Cluster, ...]) -> MixedCluster:
        """The cluster of other parts; what joins them follows from them, unless it was given."""
        given = self.join != _join(list(self.parts))
        return dataclasses.replace(self, parts=parts, join=self.join if given else _join(list(parts)))

    def with_part(self, k: int, part: Cluster) -> MixedCluster:
        """The cluster with ``part`` in place of the one at position ``k``; what joins the parts stays."""
        return dataclasses.replace(self, parts=(*self.parts[:k], part, *self.parts[k + 1 :]))

    def with_tiers(self, words: tuple[str, ...]) -> MixedCluster:
        """The cluster with the memory tiers that ``words`` name, and no others, as :func:`topologies.tiers.with_tiers`.

        A name that some parts have is theirs alone, ``all`` what each part has; others are added to every part's hosts,
        pools to every part by itself.
        """
        parts = tuple(with_tiers(part, self.tiers_of(part, words)) for part in self.parts)
        return dataclasses.replace(self, parts=parts)

    def tiers_of(self, part: Cluster, words: tuple[str, ...]) -> tuple[str, ...]:
        """Those of ``words`` that add a tier to ``part``: its own, and what no part has by itself."""
        there = {tier.name for each in self.parts for tier in each.present_tiers}
        own = {tier.name for tier in part.present_tiers}
        if words == ("all",):
            return words if own or not there else ()
        return tuple(word for word in words if word in own or word not in there)

    def with_wider_join(self, factor: float) -> MixedCluster:
        """The cluster with ``factor`` times the bandwidth between parts; latency and the parts' own NICs stay."""
        wider = dataclasses.replace(self.join, bandwidth_bytes_per_s=self.join.bandwidth_bytes_per_s * factor)
        return dataclasses.replace(self, join=wider)

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change when anything about a part or the link does."""
        content = [[part.digest for part in self.parts], dataclasses.asdict(self.join)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class MixedFile(Record):
    """What the file of a mixed cluster says. A part is a name, NAME:COUNT or a path; ``link_*`` replace what joins."""

    name: str
    title: str = ""
    parts: Annotated[tuple[str, ...], Field(min_length=2, max_length=MOST_PARTS)]
    link_bandwidth: Annotated[float, BeforeValidator(lambda text: parse_quantity(text, "B/s")), Field(gt=0)] | None = (
        None
    )
    link_latency: Annotated[float, BeforeValidator(lambda text: parse_quantity(text, "s")), Field(gt=0)] | None = None


def mixed_by_name(text: str) -> MixedCluster:
    """The cluster of ``"NAME:COUNT+NAME:COUNT"``.

    Raises ``BadInput`` for an empty part, two alike or of one name, and what ``read_cluster`` raises for each.
    """
    return _joined(text, text.split("+"))


def mixed_by_file(tables: dict, origin: str) -> MixedCluster:
    """The cluster of a file's tables. Raises ``BadInput`` naming the file and every field that is wrong."""
    try:
        file = MixedFile.model_validate(tables)
    except ValidationError as error:
        fields = ", ".join(MixedFile.model_fields)
        raise BadInput(f"{origin}: {validation_text(error)}; a mixed cluster's file holds: {fields}") from error
    mixed = _joined(file.name, list(file.parts))
    join = mixed.join
    if file.link_bandwidth is not None:
        join = dataclasses.replace(join, bandwidth_bytes_per_s=file.link_bandwidth)
    if file.link_latency is not None:
        join = dataclasses.replace(join, latency_s=file.link_latency)
    return dataclasses.replace(mixed, join=join)


def _joined(name: str, texts: list[str]) -> MixedCluster:
    _check_texts(name, texts)
    parts = [read_cluster(text.strip()) for text in texts]
    for part, text in zip(parts, texts, strict=True):
        if isinstance(part, MixedCluster):
            raise BadInput(f"a part of a mixed cluster is a regular cluster; {text[:80]!r} is mixed; list its parts")
        if part.domain_levels > 1:
            names = " and ".join(level.name for level in part.levels[: part.domain_levels])
            raise BadInput(
                f"a part of a mixed cluster has one level inside a scale-up domain, but {text[:80]!r} has {names}; "
                "leave its partition or torus out, or plan on it alone"
            )
        if part.irregular is not None:
            raise BadInput(
                f"a part of a mixed cluster is a regular cluster, but the hosts of {text[:80]!r} differ (exceptions, "
                "spare_hosts or host_names); leave these out of the part's file, or plan on it alone"
            )
    named = [part.name for part in parts]
    if alike := [part for part in named if named.count(part) > 1]:
        raise BadInput(f"{name[:80]!r} has two parts named {alike[0]!r}; give one of their files another name")
    devices = sum(part.devices for part in parts)
    if devices > MOST_DEVICES:
        raise BadInput(f"{name[:80]!r} has {devices} devices in all; the limit is {MOST_DEVICES}; take fewer hosts")
    return MixedCluster(name, tuple(parts), _join(parts), tuple(zip(named, map(str.strip, texts), strict=True)))


def _check_texts(name: str, texts: list[str]) -> None:
    """Raises ``BadInput`` for too many parts, an empty one, or one kind of host given twice."""
    if len(texts) > MOST_PARTS:
        raise BadInput(f"{name[:80]!r} has {len(texts)} parts; a mixed cluster has at most {MOST_PARTS}; merge some")
    kinds = [text.strip().rpartition(":")[0] or text.strip() for text in texts]
    for text, kind in zip(texts, kinds, strict=True):
        if not text.strip():
            raise BadInput(f"{name[:80]!r} has an empty part; write NAME:COUNT+NAME:COUNT, 'dgx-a100:4+dgx-h100:4'")
        if kinds.count(kind) > 1:
            raise BadInput(f"{name[:80]!r} has {kind[:80]!r} twice; give it once, with the sum of the counts")


def _outermost_bytes_per_s(part: Cluster) -> float:
    """Bytes a second of a device that leave the part: its NICs' share, or less where its switches send less up."""
    share = nic_share_bytes_per_s(part.host, part.fabric) / part.fabric.oversubscription * part.rate_scale
    return min([share, *(level.bandwidth_bytes_per_s for level in part.levels[part.domain_levels + 1 :])])


def _join(parts: list[Cluster]) -> Level:
    """The link between parts. Raises ``BadInput`` for a host without NICs."""
    for part in parts:
        if part.host.nics == 0:
            raise BadInput(f"host {part.host.name!r} has nics = 0 and cannot be joined to other parts; give it NICs")
    shares = [_outermost_bytes_per_s(part) for part in parts]
    return Level(
        name="between parts",
        fanout=len(parts),
        bandwidth_bytes_per_s=min(shares),
        latency_s=max(part.fabric.figures.latency.value / part.rate_scale for part in parts),
        link="+".join(dict.fromkeys(part.fabric.name for part in parts)),
    )
