"""That CP-SAT's "infeasible" is true: a model on which presolve of ortools 9.15, left as it is, loses the solution."""

from __future__ import annotations

import time

from cost_models.calibration import calibrate
from cost_models.chain import Chain
from cost_models.ticks import Ticks
from planner.candidates import legal_space
from planner.defaults import default_workload
from planner.options import Options
from planner.read_model import read_model
from planner.search.bounds import objective_of
from planner.search.budget import Budget
from planner.search.certificate import Certificate, certify, open_row
from planner.search.engine import Search
from topologies.ready import read_cluster

PINS = {"tp": 2, "cp": 2, "pp": 32, "dp": 16, "ep": 8, "etp": 1, "zero": 1, "dp_replicate": 1, "micro_batch": 1,
        "virtual_stages": 1}  # fmt: skip


def deepseek() -> Search:
    """The search for one layout of DeepSeek-V3 on 2,048 devices."""
    model, cluster = read_model("deepseek-v3"), read_cluster("dgx-h100:256")
    workload, _ = default_workload(model, cluster, seq_len=None, global_batch=None, precision=None, optimizer="adam")
    space = legal_space(model, cluster, workload, PINS)
    fits = calibrate(cluster, workload.stack)
    return Search(space, Options(pins=PINS), fits, Ticks.of(model, cluster, workload))


def test_a_known_plan_is_found_again_below_a_slightly_worse_incumbent():
    """32 stages of DeepSeek-V3, dense layers first: with the rules of issue 5293 it was proved that there is none."""
    search = deepseek()
    found = search.run()
    best, rows = found.best, found.best.prices.rows
    objective = objective_of(rows, search.cluster, search.options)
    for worse in (1.001, 1.003, 1.01):
        beat = best.found.value * worse
        chain = Chain(search.model, best.prices, 0)
        row = open_row(chain, objective, int(rows.stage_size[0]), best.bound, beat, search.limit, None, [])
        answer = Certificate(None, row.bound, False)
        certify(row, beat, search.limit, answer, budget=Budget(time.monotonic() + 60))
        assert answer.proved
        assert answer.best is not None
        assert answer.best.value <= best.found.value
