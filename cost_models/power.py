"""Watts and joules of a step: devices, hosts, network, cooling.

    E_IT = T (N_d P_idle + H P_host + ports P_port) + sum over devices of dynamic joules
    E    = PUE * E_IT

``N_d`` counts every device of the ``H`` hosts in use, the idle ones too. Dynamic joules are those above
idle while a device computes, moves memory or communicates. A power cap on the whole is met by waiting:
the step lasts at least as long as its energy needs at the cap.

    T >= PUE * E_dynamic / (cap - P_static)        with P_static the constant part above, times PUE

Source of the form: hosts' share and idle draw from the parts' catalogue files; fractions of board power by
activity from ``calibration/power.toml``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.rows import Rows
from topologies.cluster import Cluster

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StaticPower:
    """Watts that are drawn whatever the step does, by consumer, PUE not included; arrays ``[rows]``."""

    devices: Floats
    hosts: Floats
    network: Floats
    pue: float

    @property
    def facility_w(self) -> Floats:
        """All of it at the facility's meter."""
        return self.pue * (self.devices + self.hosts + self.network)


def hosts_used(rows: Rows, cluster: Cluster) -> NDArray[np.int64]:
    """Hosts that a row occupies, ``[rows]``: whole hosts, counted once when partly used."""
    return cluster.host_shape.hosts(rows.used())


def static_power(rows: Rows, cluster: Cluster) -> StaticPower:
    """Idle draw of the hosts in use."""
    return host_power(hosts_used(rows, cluster).astype(float), cluster)


def host_power(hosts: Floats, cluster: Cluster, ports: int | None = None) -> StaticPower:
    """Idle draw of so many hosts, ``[rows]``, with ``ports`` of the network each, or as many as the cluster uses."""
    figures, ports = cluster.accelerator.figures, cluster.ports if ports is None else ports
    return StaticPower(
        devices=hosts * cluster.devices_per_host * figures.idle_power.value,
        hosts=hosts * cluster.host_power_w,
        network=hosts * ports * cluster.fabric.figures.power_per_port.value,
        pue=cluster.facility.figures.pue.value,
    )


def capped_step_s(dynamic_joules: float, static: StaticPower, cap_w: float, row: int = 0) -> float:
    """Least seconds a step lasts under a facility cap; infinite when the cap is below what idling draws."""
    spare_w = cap_w - float(static.facility_w[row])
    return np.inf if spare_w <= 0 else static.pue * dynamic_joules / spare_w
