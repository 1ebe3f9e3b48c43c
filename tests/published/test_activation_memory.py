"""Activation memory against Korthikanti et al., arXiv:2205.05198, Figure 1 (first pipeline stage).

The paper counts 34 s b h bytes a layer without attention scores (selective recompute, sequence parallelism
over t ranks), so s b h 34 / t on each. Of these 34, two are dropout masks of one byte an element (after
attention's projection and after the feed-forward network), which our layers do not have; a flash-attention
kernel keeps a log-sum-exp instead of the scores, 4 bytes a head and token. So ours is

    s b h (32 + 4 a / h) / t

which must be what the operator table of the reader adds up to.
"""

from __future__ import annotations

import numpy as np
import pytest

from cost_models.calibration import calibrate
from cost_models.memory import saved_bytes
from cost_models.pipeline import in_flight
from cost_models.rows import COLUMNS, Rows
from cost_models.workload import Training
from planner.read_model import read_model
from topologies.ready import read_cluster

GIB = 2.0**30
# model, layers, hidden, heads, micro-batch, pp, interleave, GiB with sequence parallelism + selective recompute
ROWS = [
    ("22B", 48, 6144, 64, 4, 1, 1, 9.5625),
    ("175B", 96, 12288, 96, 1, 8, 3, 12.3515625),
    ("530B", 105, 20480, 128, 1, 35, 3, 23.076171875),
    ("1T", 128, 25600, 160, 1, 64, 1, 26.5625),
]


def row_of(tp: int, pp: int, micro_batch: int) -> Rows:
    degrees = {"tp": tp, "pp": pp, "micro_batch": micro_batch}
    return Rows(**{name: np.array([degrees.get(name, 1)]) for name in COLUMNS}, factors={})


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_figure_1(row):
    _, layers, hidden, heads, micro_batch, pp, interleave, published_gib = row
    model = read_model({
        "model_type": "gpt2", "vocab_size": 51200, "n_embd": hidden, "n_layer": layers, "n_head": heads,
    })  # fmt: skip
    work, fits = Training(seq_len=2048, global_batch=1024), calibrate(read_cluster("dgx-a100"))
    saved = saved_bytes(model.kinds[0], hidden, row_of(8, pp, micro_batch), work, fits)["none"][0]
    held = max(sum(moment) for moment in in_flight(pp, interleave, 8 * pp, device=0)) * layers / (pp * interleave)

    ours = 34 / (32 + 4 * heads / hidden) * saved * held / GIB

    # Exact up to the figures' own rounding: both are the same formula.
    assert ours == pytest.approx(published_gib, rel=1e-9)
