"""A cluster with constants that were measured on such machines, from the file that ``meshwright calibrate`` wrote."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from topologies.cluster import Cluster
from topologies.errors import BadInput
from topologies.mixed import MixedCluster
from topologies.toml_file import file_text


def calibrated(cluster: Cluster | MixedCluster, path: str | Path | None) -> Cluster | MixedCluster:
    """``cluster`` with the calibration of that file in place of its own; itself for ``None``.

    Raises ``BadInput`` for a file that cannot be read and for a mixed cluster, whose parts differ.
    """
    if path is None:
        return cluster
    if isinstance(cluster, MixedCluster):
        raise BadInput(
            f"one calibration does not hold for the several kinds of {cluster.name!r}; plan each, or without"
        )
    return dataclasses.replace(cluster, calibration=file_text(Path(path)))
