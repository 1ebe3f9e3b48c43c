"""A calibration file from what was measured: kernels and collectives first, then the runtime's layers on top of them.

    layer = products + attention + pointwise x moved / bandwidth + operators x host        forward, backward
    split = the same over tp, host x (1 + scatter), and its collectives
    recomputed = measured whole layer + measured or priced repeats + operators x repeat

Every later fit takes what the earlier ones found as given, through the code that prices plans.
"""

from __future__ import annotations

import dataclasses
import tomllib
from typing import Any

import numpy as np

from cost_models.calibration import Calibration, Collective, calibrate
from cost_models.communication import collective_terms
from cost_models.compute import layer_compute
from cost_models.fitting import machine as fitting
from cost_models.fitting.machine import Fitted, Point, median_s
from cost_models.measured import OPERATIONS, Measured, in_seconds, read_measured, refuse_levels_in_a_domain
from cost_models.model_graph import ModelGraph
from cost_models.rows import Rows
from cost_models.stack import runtime_stack
from cost_models.strategy import ParallelDegrees, Strategy, TrainingSchedule
from cost_models.workload import Training
from planner.machine.points import Measurement, at_level
from planner.named import nested_placement
from planner.read_model import read_config
from topologies.cluster import Cluster
from topologies.readers.tables import cluster_of_text
from topologies.readers.toml_text import toml_text

ELEMENT_BYTES = {"float32": 4.0, "bfloat16": 2.0}
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
HOST: fitting.Spans = {"host_us": (50.0, 100.0, 0.0, 20000.0), "pointwise": (1.0, 1.0, 0.05, 20.0)}
SCATTER: fitting.Spans = {"host_scatter": (1.0, 3.0, 0.0, 60.0)}
REPEAT: fitting.Spans = {"repeat_us": (100.0, 1000.0, 0.0, 20000.0)}
UPDATE: fitting.Spans = {"tensor_us": (100.0, 300.0, 0.0, 50000.0)}


def calibration_text(found: Measurement, cluster_text: str) -> str:
    """The TOML text of the calibration file, every constant with spread, residual and source."""
    cluster = bare_cluster(cluster_text)
    tables = _header(found, cluster) | _kernels(found, cluster) | _network(found, cluster)
    measured = dataclasses.replace(cluster, calibration=_text(tables, found))
    tables["stack"] = _runtime(found, measured)
    text = _text(tables, found)
    read_measured(text)
    return text


def bare_cluster(text: str) -> Cluster:
    """The cluster of a file's text, without the calibration that it names."""
    tables = {key: value for key, value in tomllib.loads(text).items() if key != "calibration"}
    return cluster_of_text(toml_text(tables), "the measured cluster")


def summary(text: str) -> list[tuple[str, str, float, float, float]]:
    """Table, constant, value, spread and residual of every constant of a calibration file."""
    found = read_measured(text)
    lines = []
    for table in Measured.model_fields:
        rows = getattr(found, table)
        if table in ("sources", "machine"):
            continue
        flat = (
            {table: rows}
            if table in ("moving", "p2p", "stack", "power")
            else {f"{table}.{k}": v for k, v in rows.items()}
        )
        lines += [
            (name, key, it.value, it.spread, it.residual) for name, inner in flat.items() for key, it in inner.items()
        ]
    return lines


def _header(found: Measurement, cluster: Cluster) -> dict[str, Any]:
    return {
        "sources": {"here": found.source()},
        "machine": {
            "accelerator": cluster.accelerator.name, "processes": found.processes, "hosts": found.hosts,
            "backend": found.facts["backend"], "measured_on": found.measured_on, "took_s": round(found.took_s, 1),
            "rates": _rates(found, cluster),
        },
    }  # fmt: skip


def _rates(found: Measurement, cluster: Cluster) -> dict[str, float]:
    """What fractions are parts of. Raises ``BadInput`` where a scale-up domain has several levels."""
    refuse_levels_in_a_domain(cluster)
    peaks = {dtype: cluster.peak_flop_per_s(dtype) for name, dtype in DTYPES.items() if found.dtype_points(name)}
    links = {
        side: it.bandwidth_bytes_per_s for side, it in zip(("scale_up", "scale_out"), cluster.levels, strict=False)
    }
    return {**peaks, "memory": cluster.memory_bandwidth_bytes_per_s, **links}


def _text(tables: dict[str, Any], found: Measurement) -> str:
    """Constants as inline tables, a line each."""
    lines = ["# " + found.source(), "# spread: relative standard deviation; residual: mean absolute relative error", ""]
    for table, rows in tables.items():
        nested = {key: row for key, row in rows.items() if isinstance(row, dict) and "value" not in row}
        nested = {} if table == "machine" else nested
        for name, inner in nested.items() if nested else {"": rows}.items():
            body = toml_text({"figures": inner}).removeprefix("\n[figures]\n")
            lines += [f"[{table}.{name}]" if name else f"[{table}]", body]
    return "\n".join(lines)


def _kernels(found: Measurement, cluster: Cluster) -> dict[str, Any]:
    base, bandwidth = calibrate(cluster), cluster.memory_bandwidth_bytes_per_s
    gemm = {}
    for torch_name, dtype in DTYPES.items():
        if points := found.dtype_points(torch_name):
            fitted = fitting.fit_products(
                points, cluster.peak_flop_per_s(dtype), bandwidth, ELEMENT_BYTES[torch_name], base.gemm[dtype].units
            )
            gemm[dtype] = fitted.rows()
    first = next(iter(gemm))
    attention = fitting.fit_attentions(found.points["attentions"], cluster.peak_flop_per_s(first), base.flash.units)
    return {
        "gemm": gemm, "attention": {"fused": attention.rows()},
        "moving": fitting.fit_transfers(found.points["transfers"], bandwidth).rows(),
    }  # fmt: skip


def _network(found: Measurement, cluster: Cluster) -> dict[str, Any]:
    """Collectives of every level that has any, and messages over the outermost one."""
    points, tables = found.points["collectives"], {}
    fits: dict[tuple[str, str], Fitted] = {}
    for level, side in enumerate(("scale_up", "scale_out")[: len(points[0]["factors"])] if points else ()):
        for operation in OPERATIONS:
            some = [point for point in points if point["operation"] == operation]
            inner = fits.get(("scale_up", operation))
            mine = [it for it in some if it["factors"][level] > 1] if inner else at_level(some, level)
            if mine:
                known = (
                    None if inner is None or level == 0 else Collective(**in_seconds(inner.values, 1.0), residual=0.0)
                )
                fits[side, operation] = fitting.fit_collective(mine, _levels(cluster, level), known)
    for side, operation in fits:
        tables.setdefault(side, {})[operation] = fits[side, operation].rows()
    sends = found.points["sends"]
    outer = max((level for level in range(len(cluster.levels)) if at_level(sends, level)), default=None)
    if outer is not None:
        tables["p2p"] = fitting.fit_sends(at_level(sends, outer), cluster.levels[outer]).rows()
    return tables


def _levels(cluster: Cluster, level: int) -> tuple:
    return cluster.levels[: level + 1]


def _runtime(found: Measurement, cluster: Cluster) -> dict[str, Any]:
    """What the runtime's operators cost beside their kernels, what its DTensors add, what its optimiser does."""
    stack = runtime_stack(cluster.accelerator.family)
    fits = calibrate(cluster, stack)
    layers = _Layers(found.points["layers"], cluster, fits)
    host = fitting.fit(HOST, layers.predicted_s, layers.measured_s, starts=(1.0,))
    values = host.values
    rows, known = host.rows(), dataclasses.replace(fits, **in_seconds(values, 1.0))
    if split := found.points["split layers"]:
        halves = _Layers(split, cluster, known)
        rows |= fitting.fit(SCATTER, halves.predicted_s, halves.measured_s, starts=(1.0,)).rows()
    rows |= _repeats(found.points.get("recomputed layers", []), cluster, known)
    rows |= _updates(found.points["updates"], cluster, fits)
    hidden = {} if stack.dp_overlap else dict.fromkeys(("overlap_dp", "overlap_tp", "overlap_cp"), 0.0)
    still = {"value": 0.0, "spread": 0.0, "residual": 0.0, "source": "here"}
    return rows | dict.fromkeys(hidden, still)


def _repeats(points: list[Point], cluster: Cluster, fits: Calibration) -> dict[str, Any]:
    """Seconds of host that recompute takes for each operator of a layer, beside the operators that run again.

    What of a layer runs again is its measured forward pass, or under selective recompute the priced part of it.
    """
    rows = {}
    for kind in dict.fromkeys(point["recompute"] for point in points):
        layers = _Layers([point for point in points if point["recompute"] == kind], cluster, fits)
        known_s, operators = layers.repeated(kind)
        fitted = fitting.fit(REPEAT, lambda v, n=operators, s=known_s: s + n * v["repeat_us"] * 1e-6, layers.measured_s)
        rows[f"repeat_{kind}_us"] = fitted.rows()["repeat_us"]
    return rows


def _updates(points: list[Point], cluster: Cluster, fits: Calibration) -> dict[str, Any]:
    """Seconds of the optimiser's step a tensor, plain and one of a mesh's, beside the bytes that it moves."""
    rows = {}
    rate = fits.moving.memory_fraction * cluster.memory_bandwidth_bytes_per_s
    for split, name in ((False, "tensor_us"), (True, "split_tensor_us")):
        some = [point for point in points if point["split"] == split]
        tensors, elements = (np.array([point[key] for point in some], dtype=float) for key in ("tensors", "elements"))
        moved_s = 28.0 * elements / rate
        measured = np.array([median_s(point) for point in some])
        fitted = fitting.fit(UPDATE, lambda v, n=tensors, s=moved_s: n * v["tensor_us"] * 1e-6 + s, measured)
        rows[name] = fitted.rows()["tensor_us"]
    return rows


class _Layers:
    """Whole layers: what was measured, and what the cost models say with other constants of the host."""

    def __init__(self, points: list[Point], cluster: Cluster, fits: Calibration):
        self.points, self.cluster, self.fits = points, cluster, fits
        self.measured_s = np.array([median_s(point) for point in points])
        self.graphs: dict[int, ModelGraph] = {}

    def predicted_s(self, values: dict[str, float]) -> np.ndarray:
        """Seconds of every point."""
        fits = dataclasses.replace(self.fits, **in_seconds(values, 1.0))
        both = {_shape(point): self._both(point, fits) for point in self.points}
        return np.array([both[_shape(point)][point["pass"]] for point in self.points])

    def repeated(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of both passes and of what ``kind`` runs again, as measured; operators of every point."""
        known, operators = [], []
        for point in self.points:
            graph = self._graph(point["hidden"])
            compute = layer_compute(graph.kinds[0], self._rows(point), self.cluster, self._work(point), self.fits)
            again_s = point["forward_s"] if kind == "full" else float(compute.selective.seconds[0])
            known.append(point["whole_s"] + again_s)
            operators.append(len(graph.kinds[0].operators))
        return np.array(known), np.array(operators, dtype=float)

    def _both(self, point: Point, fits: Calibration) -> dict[str, float]:
        """Seconds of the layer's forward and backward pass."""
        graph, rows, work = self._graph(point["hidden"]), self._rows(point), self._work(point)
        compute, talk = (
            layer_compute(graph.kinds[0], rows, self.cluster, work, fits),
            self._talk_s(point, rows, work, fits),
        )
        return {
            "forward": float(compute.forward.seconds[0]) + talk, "backward": float(compute.backward.seconds[0]) + talk,
        }  # fmt: skip

    def _talk_s(self, point: Point, rows: Rows, work: Training, fits: Calibration) -> float:
        if point["tp"] == 1:
            return 0.0
        volume = point["tokens"] * point["hidden"] * work.recipe.activation_bytes
        each = sum(
            float(collective_terms(name, rows.factors["tp"], self.cluster.levels, fits).seconds(volume)[0])
            for name in ("all_gather", "reduce_scatter")
        )
        return 2.0 * each

    def _graph(self, hidden: int) -> ModelGraph:
        if hidden not in self.graphs:
            self.graphs[hidden] = read_config(layer_config(hidden), f"layer-{hidden}")
        return self.graphs[hidden]

    def _rows(self, point: Point) -> Rows:
        degrees = ParallelDegrees(1, 1, 1, point["tp"], 1)
        schedule = TrainingSchedule("1f1b", 1, point["tokens"] // point["width"], 1)
        return Rows.of(Strategy(degrees, 0, schedule, (), nested_placement(self.cluster, degrees)))

    def _work(self, point: Point) -> Training:
        stack = runtime_stack(self.cluster.accelerator.family)
        precision = "fp32" if self.cluster.accelerator.family == "cpu" else "bf16"
        batch = point["tokens"] // point["width"]
        return Training(seq_len=point["width"], global_batch=batch, precision=precision, stack=stack)


def _shape(point: Point) -> tuple[int, ...]:
    return point["hidden"], point["tokens"], point["width"], point["tp"]


def layer_config(hidden: int) -> dict[str, Any]:
    """The decoder whose layer is timed: heads of 64, a network 8/3 as wide, a few words."""
    return {
        "model_type": "llama", "vocab_size": 64, "hidden_size": hidden, "intermediate_size": hidden * 8 // 3 // 32 * 32,
        "num_hidden_layers": 1, "num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64,
        "max_position_embeddings": 2048, "tie_word_embeddings": False,
    }  # fmt: skip
