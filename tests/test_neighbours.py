"""Moves of layers between stages: better plans are found, and what is learned of the others bounds every split."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from oracle import best_of_all
from searching import options_of
from strategies import examples, instances

from cost_models.chain import Chain
from planner.search.bounds import objective_of
from planner.search.certificate import open_row, runs_of
from planner.search.incumbent import judge
from planner.search.neighbours import near


def opened(it, most=8):
    """At most so many 1F1B rows of an instance with several stages, each with all columns that fit at any clock."""
    answer = best_of_all(it)
    if answer.rows is None:
        return
    for r in np.flatnonzero((answer.rows.pp > 1) & (answer.rows.pp < it.model.layers))[:most]:
        prices = answer.prices.take(np.array([r]))
        objective = objective_of(prices.rows, it.cluster, options_of(it))
        size, pin = int(prices.rows.stage_size[0]), dict(it.pins).get("recompute")
        row = open_row(Chain(it.model, prices, 0), objective, size, 0.0, 1e30, it.limit_bytes, pin, [])
        if row is not None:
            yield row


def picks(row):
    """Columns of every split of the row's layers, one a stage."""
    columns, chain = row.columns, row.chain
    for inner in itertools.combinations(range(1, chain.layers), chain.pp - 1):
        cut, picked = (0, *inner, chain.layers), []
        for s, (i, j) in enumerate(itertools.pairwise(cut)):
            same = (columns.stage == s) & (columns.j - columns.i == j - i)
            same &= chain.places[columns.i] == chain.places[i]
            picked += np.flatnonzero(same)[:1].tolist()
        if len(picked) == chain.pp:
            yield picked


def layers(row, picked):
    """Layers of every stage."""
    return tuple((row.columns.j - row.columns.i)[picked].tolist())


def value(it, row, picked):
    found = judge(row.chain, runs_of(row.columns, picked), row.objective, row.stage_size, it.limit_bytes)
    return np.inf if found is None else found.value


@examples(22)
@given(instances(most_layers=7, most_devices=4))
def test_what_is_near_is_better_or_bounded(it):
    for row in opened(it):
        every = list(picks(row))
        if not every:
            continue
        values = [value(it, row, picked) for picked in every]
        worst = every[int(np.argmax(values))]
        found = near(row, worst, max(values))

        if found.picked is not None:
            assert value(it, row, found.picked) < max(values)
        at = row.columns
        for path, picked in itertools.product(found.paths, every):
            durations = (at.forward[picked], at.backward[picked], row.chain.hop, at.tail[picked])
            ticks = path.ticks(*durations) * row.chain.prices.ticks.second
            assert row.objective.value(np.array([ticks]), np.zeros(1))[0] <= value(it, row, picked) * (1 + 1e-9)


@examples(22)
@given(instances(most_layers=7, most_devices=4))
def test_no_plan_a_layer_away_is_better_than_where_it_ends(it):
    for row in opened(it):
        columns = {layers(row, picked): picked for picked in picks(row)}
        if not columns or row.objective.counts_joules:
            continue
        every = {split: value(it, row, picked) for split, picked in columns.items()}
        start = max(every, key=every.get)
        found = near(row, columns[start], every[start])
        end = start if found.picked is None else layers(row, found.picked)
        away = [other for other in every if sum(abs(a - b) for a, b in zip(other, end, strict=True)) == 2]
        assert all(every[other] >= every[end] for other in away)
