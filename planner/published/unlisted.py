"""How far predictions lie from what a source measured that is in no table: what sources of the fit show of it.

Each source in turn is taken for one that nobody fitted: the constants are those that the others leave (one Newton step,
:mod:`planner.published.fitting`), and its rows are read as a stranger's, by the stack that their words name, at the
release that they tell and with the settings that are commonest there. Errors of one source are alike, so what is known
is as many draws as there are sources; of them :func:`next_of` makes the range of one more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from planner.published.csv_rows import Row, read_table
from planner.published.fitting import Fit, Observation, left_out_values
from planner.published.predict import predict, prepared
from planner.published.records import Case
from planner.published.rows import CARRIED
from planner.published.sources import source_prefix
from planner.published.spreads import HELD
from planner.published.training import training_case

Floats = NDArray[np.float64]
NOBODY = "unlisted-"
"""Before an id it makes a source that no table has."""


def next_of(sources: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    """The range that holds :data:`HELD` of the logs of one more source, and 0: the prediction interval

        mu -+ t V^(1/2) ((S + 1) / (S - 1))^(1/2)      mu = mean_s mean_i x_si,  V = mean_s mean_i (x_si - mu)^2

    of the next of ``S`` normal draws, each a row of a source of its own, with ``t`` of ``S - 1`` degrees of freedom.
    Of so few sources the shortest range that holds nine of ten would be nearly all of them.

    Raises ``ValueError`` for fewer than two sources. Source: Higgins, Thompson and Spiegelhalter, "A re-evaluation of
    random-effects meta-analysis", J. R. Stat. Soc. A 172 (2009), section 4, with rows' spread beside that of sources.
    """
    from scipy.stats import t

    count = len(sources)
    if count < 2:
        raise ValueError(f"{count} sources show no spread between sources; at least 2 are needed")
    middle = float(np.mean([np.mean(logs) for logs in sources.values()]))
    variance = float(np.mean([np.mean((np.asarray(logs) - middle) ** 2) for logs in sources.values()]))
    reach = float(t.ppf((1 + HELD) / 2, count - 1)) * math.sqrt(variance * (count + 1) / (count - 1))
    return min(middle - reach, 0.0), max(middle + reach, 0.0)


def time_errors(
    fit: Fit, at: Floats, residuals: Floats, jacobian: Floats, rows: Sequence[Observation]
) -> dict[str, list[float]]:
    """``log(measured / predicted)`` of strangers' steps by source, under the constants that the other sources leave."""
    without = left_out_values(fit, at, residuals, jacobian, source_of)
    paths, found = [constant.path for constant in fit.parameters], {}
    for source, values in without.items():
        own = [row for row in rows if source_of(row) == source]
        if own:
            seconds = fit.predict(own, dict(zip(paths, values.tolist(), strict=True)))
            found[source] = np.log(np.array([row.step_s for row in own]) / seconds).tolist()
    return found


def memory_errors(cases: Iterable[Case]) -> dict[str, list[float]]:
    """``log(measured / predicted)`` of memory by source, each row read as a stranger's; no constant of it is fitted."""
    told, found = _told(), {}
    known = [case for case in cases if case.id in told and case.job is not None]
    metered = [case for case in known if any(one.quantity == "peak_mem_gib" for one in case.measured)]
    for line in predict(stranger(case, told[case.id]) for case in metered):
        if line.quantity == "peak_mem_gib" and line.measured is not None and line.predicted is not None:
            source = source_prefix(line.case.id.removeprefix(NOBODY))
            found.setdefault(source, []).append(math.log(line.measured / line.predicted))
    return found


def source_of(row: Observation) -> str:
    """The source of a fitted row or of a stranger's that was made of one."""
    return source_prefix(row.case.id.removeprefix(NOBODY))


def strangers(rows: Iterable[Observation]) -> list[Observation]:
    """Fitted rows read as a stranger's, with the steps that they took; without those that cannot be read so.

    Rows in another schema than that of training runs tell their source by it and are as they are.
    """
    told, found = _told(), []
    for row in rows:
        case = stranger(row.case, told[row.case.id]) if row.case.id in told else row.case
        if case.job is not None:
            found.append(row if case is row.case else Observation(case, prepared(case.job), row.step_s))
    return found


def stranger(case: Case, row: Row) -> Case:
    """A carried row with a job as if its source were in no table.

    Sizes that its source's table fills in are said, as a stranger says them.
    """
    degrees, work = case.job.strategy.degrees, case.job.workload
    sizes = {"seq_len": work.seq_len, "global_batch": work.global_batch, "n_gpus": degrees.world_size}
    sizes |= {"tp": degrees.tp, "pp": degrees.pp}
    said = {name: str(size) for name, size in sizes.items() if not row.get(name, "").strip()}
    return training_case(row | said | {"id": NOBODY + case.id})


def _told() -> dict[str, Row]:
    return {row["id"]: row for row in read_table(CARRIED[0]).rows}
