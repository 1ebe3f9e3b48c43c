"""Levels that give a measured collective the time it took: what a measurement says beside what a file claims.

A collective's seconds are its fixed part and its volume over a part of the level's bandwidth
(:mod:`cost_models.communication`), so the bandwidth that gives the measured seconds is found by halving.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from topologies.cluster import Cluster
from topologies.readers import read_drawn
from topologies.readers.drawn import Asked, Drawn
from topologies.readers.tables import cluster_of_text, cluster_text


def text_of_files(paths: Sequence[str | Path], asked: Asked) -> tuple[Drawn, str]:
    """What files show, and the cluster's TOML text."""
    drawn = read_drawn(paths, asked)
    return drawn, cluster_text(drawn, asked)


def cluster_of_files(paths: Sequence[str | Path], asked: Asked) -> tuple[Drawn, Cluster]:
    """What files show, and the cluster."""
    drawn, text = text_of_files(paths, asked)
    return drawn, cluster_of_text(text, ", ".join(drawn.sources))
