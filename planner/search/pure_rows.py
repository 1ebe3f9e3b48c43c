"""A small space as integers and linear forms, for the formulation that leaves every choice to CP-SAT.

A stage is told by its features, for every kind ``k`` of layer:

    n_k  its layers      u_k  those recomputed in full      v_k  selectively      h_k  1 where its first layer is one

Given a row, all that a stage costs is linear in them: ticks, bytes, joules, and the tail as the greatest of four
linear forms (reducing and gathering each stick out of their window, or are one bucket). What no stage changes is
a row's floor, its own least objective, which only orders the rows and spares CP-SAT the hopeless ones:

    1F1B           step >= c S + hops hop + tail       whatever the split, ``S`` the work of one micro-batch
    interleaved    step >= every path of the schedule with nothing recomputed

``c`` is the best that equal shares of two families of paths through stage ``s`` give, coefficients of ``t_j``:

    [j < s] + m [j = s]                      the device, between the first fill and the last drain
    1 + (m - pp + s) [j = s] + [j > s]       m > pp: down, m - pp + s micro-batches there, down and up again

Rows are written down and priced as the verifier does (:mod:`planner.checks.rederive`); nothing comes from the search.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cost_models.critical_paths import seed_paths
from cost_models.price import Prices, price
from cost_models.rows import Rows
from planner.checks.rederive import Problem, all_rows, layer_counts
from planner.errors import BadInput

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
MOST_DEVICES, MOST_LAYERS, MOST_ROWS = 64, 32, 20_000
"""Within these every space that was tried took CP-SAT seconds; beyond, its model grows past use."""
SLACK = 1 - 1e-12


@dataclass(frozen=True)
class Points:
    """Interleaved plans but for their recompute: a row, virtual stages, and the layers of each; with their floors."""

    row: Ints
    virtual: Ints
    cuts: list[tuple[int, ...]]
    floor: Floats


@dataclass(frozen=True)
class Question:
    """Every row of a space with its prices, and its objective's weights: a tick, a joule, a joule under the cap."""

    it: Problem
    prices: Prices
    per_tick: Floats
    per_joule: Floats
    per_capped_joule: Floats
    floor: Floats
    points: Points

    @property
    def rows(self) -> Rows:
        """The rows themselves."""
        return self.prices.rows


def question_of(it: Problem) -> Question | None:
    """The space as numbers, ``None`` where it is empty. Raises ``BadInput`` naming the size that is beyond reach."""
    rows = _rows_within_reach(it)
    if rows is None:
        return None
    prices = price(it.model, it.cluster, it.workload, rows, it.fits, it.ticks)
    some, none = np.ones(len(rows)), np.zeros(len(rows))
    free = replace(it, options=it.options.model_copy(update={"power_cap_w": None}))
    question = Question(
        it, prices, free.values(rows, some, none), free.values(rows, none, some), it.values(rows, none, some),
        np.zeros(len(rows)), Points(np.array([], dtype=np.int64), np.array([], dtype=np.int64), [], np.array([])),
    )  # fmt: skip
    return replace(question, floor=_floors(question), points=_points(question))


def _rows_within_reach(it: Problem) -> Rows | None:
    sizes = {"devices": (it.cluster.devices, MOST_DEVICES), "layers": (it.model.layers, MOST_LAYERS)}
    over = [f"{size:,} {name} (at most {most})" for name, (size, most) in sizes.items() if size > most]
    if not over:
        parts, count = [], 0
        for rows in all_rows(it):
            parts.append(rows)
            count += len(rows)
            if count > MOST_ROWS:
                over.append(f"{count:,} rows or more (at most {MOST_ROWS:,})")
                break
    if over:
        raise BadInput(
            f"--solver pure-cpsat is for small spaces, and this one has {', '.join(over)}; "
            "pin axes (--pin tp=8,cp=1), take a smaller model or cluster, or leave --solver out"
        )
    return Rows.concat(parts) if count else None


@lru_cache(maxsize=4096)
def shares(pp: int, micro_batches: int) -> tuple[tuple[float, int], ...]:
    """``(c, hops)`` with ``step >= c S + hops hop`` for every split of a 1F1B schedule into ``pp`` stages."""
    m, stages = micro_batches, np.arange(pp)
    before, here = stages[None, :] < stages[:, None], np.eye(pp)
    families = [(before + m * here, 2 * stages)]
    if m > pp:
        again = 1 + (m - pp + stages)[:, None] * here + (stages[None, :] > stages[:, None])
        families.append((again, 2 * (pp - 1) + 2 * (pp - 1 - stages)))
    found = [(1.0, 2 * (pp - 1))]
    for times, hops in families:
        share = np.linalg.solve(times.T, np.ones(pp))
        if (share >= 0).all():
            share = share / share.sum()
            found.append((float((times.T @ share).min()) * SLACK, int(hops @ share)))
    return tuple(found)


def _floors(question: Question) -> Floats:
    """The least objective of every row as 1F1B; infinite where even the mean stage does not fit."""
    prices, counts = question.prices, layer_counts(question.it.model)
    rows, hop = prices.rows, prices.hop
    forward, backward = prices.forward @ counts, prices.backward @ counts
    ticks = np.zeros(len(rows))
    keys, inverse = np.unique(np.stack([rows.pp, rows.micro_batches], axis=1), axis=0, return_inverse=True)
    for k, (pp, m) in enumerate(keys.tolist()):
        mine = inverse.ravel() == k
        for c, hops in shares(pp, m):
            ticks[mine] = np.maximum(ticks[mine], c * (forward + backward)[mine] + hops * hop[mine])
    floor = _objective(question, ticks + _least_tail(prices, counts, forward, backward), _least_joules(prices, counts))
    kind = question.it.options.pins.get("recompute", "full")
    held = (prices.state_bytes + prices.saved[kind]) @ counts + rows.pp * prices.fixed_bytes
    return np.where(held <= rows.pp * question.it.limit_bytes, floor, np.inf)


def _least_tail(prices: Prices, counts: Ints, forward: Ints, backward: Ints) -> Floats:
    """What the first stage's end of step lasts at least; all of it where there is one stage."""
    several = prices.update[:, -2] + prices.update[:, :-2].min(axis=1) + prices.reduce[:, -2] + prices.gather[:, -2]
    reduce = np.maximum(prices.reduce @ counts - prices.overlap * backward, prices.reduce[:, -2])
    gather = np.maximum(prices.gather @ counts - prices.overlap * forward, prices.gather[:, -2])
    return np.where(prices.rows.pp == 1, reduce + gather + prices.update @ counts, several)


def _least_joules(prices: Prices, counts: Ints) -> Floats:
    each = prices.rows.micro_batches * (prices.joules_pass @ counts) + prices.joules_step @ counts
    return each * prices.rows.stage_size


def _objective(question: Question, ticks: Floats, joules: Floats) -> Floats:
    return question.it.values(question.rows, ticks * SLACK, joules * SLACK) * SLACK


def _points(question: Question) -> Points:
    """Every row with virtual stages and every even cut of it."""
    rows, it = question.rows, question.it
    found: list[tuple[Ints, int, tuple[int, ...], Floats]] = []
    for pp in np.unique(rows.pp[rows.pp > 1]).tolist():
        for virtual in range(2, it.model.layers // pp + 1):
            mine = np.flatnonzero((rows.pp == pp) & (rows.micro_batches % pp == 0))
            if it.pinned("virtual_stages", virtual) and len(mine):
                found += [(mine, virtual, cut, _point_floor(question, mine, virtual, cut))
                          for cut in even_cuts(it.model.layers, pp * virtual)]  # fmt: skip
    if not found:
        return question.points
    return Points(
        np.concatenate([mine for mine, *_ in found]),
        np.concatenate([np.full(len(mine), virtual) for mine, virtual, *_ in found]),
        [cut for mine, _, cut, _ in found for _ in mine],
        np.concatenate([floor for *_, floor in found]),
    )


def even_cuts(layers: int, chunks: int) -> list[tuple[int, ...]]:
    """Sizes of ``chunks`` equal virtual stages, where embedding, head, both or neither count as a layer."""
    found = []
    for first, last in ((0, 0), (0, 1), (1, 0), (1, 1)):
        size, rest = divmod(layers + first + last, chunks)
        if rest == 0 and size > max(first, last):
            found.append((size - first, *[size] * (chunks - 2), size - last))
    return found


def _point_floor(question: Question, mine: Ints, virtual: int, cut: tuple[int, ...]) -> Floats:
    """The objective of every row under one cut with nothing recomputed, by the schedule's known paths."""
    prices, order = question.prices.take(mine), np.array(question.it.model.order)
    at, kinds = np.concatenate([[0], np.cumsum(cut)]), prices.forward.shape[1]
    held = np.stack([np.bincount(order[i:j], minlength=kinds) for i, j in itertools.pairwise(at.tolist())])
    held[0, -2] += 1
    held[-1, -1] += 1
    forward, backward, pp = held @ prices.forward.T, held @ prices.backward.T, int(prices.rows.pp[0])
    first = np.concatenate([[kinds - 2], order[at[1:pp]]])
    tail = held.reshape(virtual, pp, kinds).sum(axis=0) @ prices.update.T + (prices.reduce + prices.gather)[:, first].T
    ticks = np.zeros(len(mine))
    for m in np.unique(prices.rows.micro_batches).tolist():
        these = prices.rows.micro_batches == m
        for path in seed_paths(pp, virtual, m):
            length = path.forward @ forward + path.backward @ backward + path.hops * prices.hop + tail[path.device]
            ticks[these] = np.maximum(ticks, length)[these]
    values = _objective(replace(question, prices=prices), ticks, _least_joules(prices, layer_counts(question.it.model)))
    return np.where(np.isfinite(question.floor[mine]), values, np.inf)


class RowForms:
    """One row's quantities as linear forms over the features ``(n, u, v, h)`` of a stage, the constant last."""

    def __init__(self, question: Question, row: int) -> None:
        self.prices, self.model, self.row = question.prices, question.it.model, row
        rows = question.rows
        self.pp, self.m = int(rows.pp[row]), int(rows.micro_batches[row])
        self.stage_size, self.hop = int(rows.stage_size[row]), int(question.prices.hop[row])

    def _form(self, n=None, u=None, v=None, h=None, const: float = 0) -> NDArray:
        kinds = len(self.model.kinds)
        blocks = [np.zeros(kinds) if block is None else block[:kinds] for block in (n, u, v, h)]
        return np.concatenate([*blocks, [const]]).astype(object)

    def _ends(self, table: NDArray, stage: int) -> float:
        """What embedding and head add on that stage."""
        one = table[self.row]
        return (one[-2] if stage == 0 else 0) + (one[-1] if stage == self.pp - 1 else 0)

    def _copy(self, stage: int) -> bool:
        """Whether the stage holds a tied head's copy of the embedding."""
        return stage == self.pp - 1 and stage > 0 and int(self.prices.tied_bytes[self.row]) > 0

    def forward(self, stage: int) -> NDArray:
        """Ticks of one micro-batch forward."""
        table = self.prices.forward
        return self._form(n=_whole(table[self.row]), const=int(self._ends(table, stage)))

    def backward(self, stage: int) -> NDArray:
        """Ticks of one micro-batch backward, recompute included."""
        prices, r = self.prices, self.row
        return self._form(
            _whole(prices.backward[r]), _whole(prices.extra["full"][r]), _whole(prices.extra["selective"][r]),
            const=int(self._ends(prices.backward, stage)),
        )  # fmt: skip

    def need(self, stage: int) -> NDArray:
        """Bytes at the stage's fullest moment."""
        prices, r, flight = self.prices, self.row, min(self.m, self.pp - stage)
        none, full, selective = (_whole(prices.saved[kind][r]) for kind in ("none", "full", "selective"))
        states = _whole(prices.state_bytes[r])
        const = int(prices.fixed_bytes[r]) + int(self._ends(prices.state_bytes, stage))
        const += flight * int(self._ends(prices.saved["none"], stage))
        if stage == self.pp - 1:
            const += int(prices.logits[r]) + (int(prices.tied_bytes[r]) if stage else 0)
        return self._form(states + flight * none, flight * (full - none), flight * (selective - none), const=const)

    def joules(self, stage: int) -> NDArray:
        """Joules above idle of all the stage's devices in a step."""
        prices, r, m = self.prices, self.row, self.m
        extra = prices.joules_extra
        const = m * self._ends(prices.joules_pass, stage) + self._ends(prices.joules_step, stage)
        form = self._form(
            m * prices.joules_pass[r] + prices.joules_step[r], m * extra["full"][r], m * extra["selective"][r],
            const=const,
        )  # fmt: skip
        return form * self.stage_size

    def tails(self, stage: int) -> list[NDArray]:
        """Forms whose greatest is the stage's end of step, to a tick or two above."""
        prices = self.prices
        totals = {name: self._step_total(getattr(prices, name), stage) for name in ("reduce", "update", "gather")}
        always = totals["update"] + prices.interference * (totals["reduce"] + totals["gather"])
        exposed = {
            "reduce": totals["reduce"] - prices.overlap * self.backward(stage),
            "gather": totals["gather"] - prices.overlap * self.forward(stage),
        }
        bucket = {name: self._bucket(getattr(prices, name), stage) for name in ("reduce", "gather")}
        pairs = [(a, b) for a in (exposed, bucket) for b in (exposed, bucket)]
        return [always + a["reduce"] + b["gather"] for a, b in pairs]

    def _step_total(self, table: NDArray, stage: int) -> NDArray:
        copy = int(table[self.row, -2]) if self._copy(stage) else 0
        return self._form(n=_whole(table[self.row]), const=int(self._ends(table, stage)) + copy)

    def _bucket(self, table: NDArray, stage: int) -> NDArray:
        one = _whole(table[self.row])
        return self._form(const=one[-2]) if stage == 0 else self._form(h=one)


def _whole(values: NDArray) -> NDArray:
    """Python integers, which do not overflow."""
    return np.array([int(value) for value in values], dtype=object)
