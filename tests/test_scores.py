"""Every figure of the report on a few rows, reckoned by hand."""

from __future__ import annotations

import pytest
from measured import machine, make_case, model, predicted

from planner.published.baseline import OneConstant, model_flop
from planner.published.regret import choices, effects, noise_of, options
from planner.published.report import report, skill
from planner.published.scores import Errors, out_of_memory, repeats, same_job, score
from planner.published.targets import intervals, targets


def make_lines(*pairs: tuple[float, float | None], source: str = "mb", **fields):
    """Lines of step seconds, measured and predicted, of rows that differ in nothing else."""
    cases = [make_case(f"{source}-{k}", step_s=measured, **fields) for k, (measured, _) in enumerate(pairs)]
    return [predicted(case, value) for case, (_, value) in zip(cases, pairs, strict=True)]


def sweep(times: dict[tuple[int, int, int], tuple[float, float]], set_: str = "vt-s", layout="p"):
    """Lines of one problem: (tp, pp, micro-batch) to (measured, predicted)."""
    cases = [
        make_case(f"{set_}{layout}{k}", step_s=times[key][0], layout=layout, tp=key[0], pp=key[1], micro_batch=key[2],
                  dp_shard=8 // key[0] // key[1])
        for k, key in enumerate(times)
    ]  # fmt: skip
    return [predicted(case, value) for case, (_, value) in zip(cases, times.values(), strict=True)]


def target(found, set_: str, figure: str):
    """The one target of that name."""
    return next(one for one in found if (one.set, one.figure) == (set_, figure))


def test_errors_by_hand():
    """-10 %, +20 %, +30 % and a refused row: p90 is at 0.2 + 0.8 * 0.1 of three, 0.3 + 0.7 * 0.7 of four."""
    one = score(make_lines((10, 9), (10, 12), (10, 13), (10, None)))

    assert (one.rows, one.covered) == (4, 3)
    assert vars(one.errors) == pytest.approx({"mean": 0.2, "median": 0.2, "p90": 0.28, "worst": 0.3})
    assert vars(one.refused_as_one) == pytest.approx({"mean": 0.4, "median": 0.25, "p90": 0.79, "worst": 1.0})
    assert one.bias == pytest.approx((-0.1 + 0.2 + 0.3) / 3)


def test_nothing_predicted_has_no_errors_but_counts_as_all_wrong():
    one = score(make_lines((10, None), (20, None)))

    assert one.errors is None
    assert one.bias is None
    assert one.inside is None
    assert one.refused_as_one == Errors(1.0, 1.0, 1.0, 1.0)


def test_intervals_by_hand():
    """9 +- 0.9 does not reach 10; 9.5 +- 0.95 does; (high - low) / 2 / predicted is 0.1."""
    one = score(make_lines((10, 9), (10, 9.5)))

    assert one.inside == 0.5
    assert one.half_width == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("pairs", "inside", "met"),
    [
        ([(10, 9.5)] * 18 + [(10, 5), (10, 20)], 0.9, True),
        ([(10, 9.5)] * 20, 1.0, False),
        ([(10, 9.5)] * 8 + [(10, 5), (10, 20)], 0.8, False),
        ([(10, 9.6)] * 18 + [(10, 5), (10, 20)], 0.9, False),
    ],
    ids=["honest", "too many inside", "too few inside", "wider than twice the median error"],
)
def test_intervals_are_judged_by_what_they_hold_and_by_their_width(pairs, inside, met):
    """All are +- 10 %, which is twice a median error of 5 % and more than twice one of 4 %."""
    (one,) = intervals(make_lines(*pairs))

    assert one.inside == pytest.approx(inside)
    assert one.half_width == pytest.approx(0.1)
    assert one.met is met


def test_repeats_are_rows_that_differ_in_release_at_most():
    """9 and 11 in two releases lie 10 % from their mean; another micro-batch or type is other work."""
    cases = [
        make_case("mb-1", step_s=9, release="1"), make_case("mb-2", step_s=11, release="2"),
        make_case("mb-3", step_s=50, micro_batch=2), make_case("mb-4", step_s=60, precision="fp8"),
        make_case("tt-1", step_s=70),
    ]  # fmt: skip
    lines = [predicted(case, 1.0) for case in cases]
    found = repeats(lines)

    assert found.rows == 2
    assert found.mean == pytest.approx(0.1)
    assert repeats(lines, same_job) is None


def test_out_of_memory_by_hand():
    """Two of three caught (one was refused); one false alarm among two that ran and were answered."""
    cases = [make_case(f"bs-{k}", fits=0) for k in range(3)]
    cases += [make_case("bs-3", step_s=1), make_case("bs-4", fits=1), make_case("bs-5", mem=1.0)]
    answers = [0, 0, None, 0, 1, None]
    found = out_of_memory([predicted(case, answer, "fits") for case, answer in zip(cases, answers, strict=True)])

    assert vars(found) == {"out_of_memory": 3, "caught": 2, "ran": 2, "false_alarms": 1}


def test_constant_leaves_the_own_group_out():
    """A is priced by B and C: their rates are 1 and 3 times A's, so the median is twice A's and the time half."""
    cases = [
        make_case("mb-1", step_s=1.0, title="A"), make_case("mb-2", step_s=1.0, title="B"),
        make_case("mb-3", step_s=1 / 3, title="C"),
    ]  # fmt: skip

    assert OneConstant(cases).step_s(cases[0]) == pytest.approx(0.5)


def test_constant_counts_three_forward_passes_on_all_devices():
    own = make_case("mb-1", step_s=1.0, tp=2)
    other = make_case("mb-2", step_s=1.0, title="other", tp=8)

    assert model_flop(own.job) == pytest.approx(3 * model().forward_flop_per_token(128) * 128 * 8)
    assert OneConstant([own, other]).step_s(own) == pytest.approx(4.0)


def test_constant_falls_back_to_the_part_of_peak_of_the_accelerator_then_of_all():
    """No other fp8 group: the same part of a higher peak; no other H100 group: the A100's part of peak."""
    fp8 = make_case("mb-1", step_s=9.0, title="A", precision="fp8")
    bf16 = make_case("mb-2", step_s=1.0, title="B")
    a100 = make_case("mb-3", step_s=4.0, title="B", accelerator="A100", cluster="dgx-a100")
    h100, peaks = machine(), (machine().peak_flop_per_s("bf16"), machine("dgx-a100").peak_flop_per_s("bf16"))

    by_part = OneConstant([fp8, bf16]).step_s(fp8)
    assert by_part == pytest.approx(peaks[0] / h100.peak_flop_per_s("fp8"))
    assert OneConstant([bf16, a100]).step_s(bf16) == pytest.approx(4.0 * peaks[1] / peaks[0])
    assert OneConstant([bf16]).step_s(bf16) is None


def test_constant_prefers_rows_of_its_kind_and_family():
    """Of three other groups the MoE and the FSDP one are not asked while there is a dense Megatron one."""
    own = make_case("mb-1", step_s=1.0, title="A")
    moe = make_case("mb-2", step_s=5.0, title="B", kind="moe")
    fsdp = make_case("tt-1", step_s=3.0, title="C")
    near = make_case("dgxc-1", step_s=2.0, title="D")

    assert OneConstant([own, moe, fsdp, near]).step_s(own) == pytest.approx(2.0)
    assert OneConstant([own, moe, fsdp]).step_s(own) == pytest.approx(3.0)
    assert OneConstant([own, moe]).step_s(own) == pytest.approx(5.0)


def test_skill_is_over_rows_that_both_predict():
    lines = make_lines((10, 11), (10, 12), (10, 90))
    simple = [predicted(line.case, value) for line, value in zip(lines, (16, 16, None), strict=True)]

    assert skill(lines, simple) == pytest.approx(1 - 0.15 / 0.6)


REGRET = {
    (1, 1, 1): (1.10, 1.0), (2, 1, 1): (1.00, 1.2), (4, 1, 1): (1.01, 1.3), (8, 1, 1): (2.00, 1.25),
}  # fmt: skip


def test_regret_by_hand():
    """The first is predicted fastest and costs 10 % more than the best. Of six pairs one (1.00, 1.01) is noise;
    of the other five (a, b) and (a, c) are wrong, (a, d) and (b, d) right, (c, d) wrong."""
    (found,), (problem,) = choices(sweep(REGRET))

    assert (found.source, found.groups, found.large) == ("vt-s", 1, 1)
    assert found.mean == found.worst == pytest.approx(0.1)
    assert problem.pairs == 5
    assert found.in_order == pytest.approx(2 / 5)


def test_simple_rule_takes_least_tp_times_pp_then_the_largest_micro_batch_then_least_tp():
    """By the rule 1.3, 1.2, 1.5, 1.0, 9.0 s: six of ten pairs rise."""
    times = {(2, 2, 4): 1.0, (1, 2, 1): 1.5, (2, 1, 2): 1.2, (1, 2, 2): 1.3, (1, 8, 1): 9.0}
    (found,), _ = choices(sweep({key: (measured, measured) for key, measured in times.items()}))

    assert found.mean == 0.0
    assert found.simple_mean == pytest.approx(0.3)
    assert found.simple_in_order == pytest.approx(6 / 10)


def test_groups_of_three_count_for_pairs_only():
    lines = sweep(dict(list(REGRET.items())[:3]))
    (found,), _ = choices(lines)

    assert (found.groups, found.large, found.mean, found.worst) == (1, 0, None, None)
    assert found.pairs == 2


def test_layouts_of_other_problems_or_without_prediction_are_not_compared():
    lines = [*sweep(dict([*REGRET.items()][:1]), layout="p"), *sweep(dict([*REGRET.items()][1:2]), layout="q")]
    refused = predicted(make_case("vt-s9", step_s=1.0, layout="p", tp=2), None)

    assert options([*lines, refused]) == {}


def test_rows_of_one_job_are_one_layout_and_tell_the_noise():
    """0.8 and 1.2 of one job are one layout of 1.0 s, and lie 20 % from their mean."""
    cases = [
        make_case(f"bs-{k}", step_s=s, layout="p", tp=tp) for k, (s, tp) in enumerate([(0.8, 1), (1.2, 1), (1.5, 2)])
    ]
    lines = [predicted(case, 1.0) for case in cases]
    (group,) = options(lines).values()

    assert sorted(one.measured_s for one in group) == pytest.approx([1.0, 1.5])
    assert noise_of(lines, "bs") == pytest.approx(0.2)
    assert noise_of(lines[2:], "bs") == 0.05
    assert noise_of([], "ie") == 0.02


def test_layouts_predicted_equal_share_the_regret_and_half_the_pairs():
    (found,), _ = choices(sweep({key: (measured, 1.0) for key, (measured, _) in REGRET.items()}))

    assert found.mean == pytest.approx((1.10 + 1.00 + 1.01 + 2.00) / 4 / 1.00 - 1)
    assert found.in_order == 0.5


def test_effect_of_the_sharding_group():
    """A group of 2 instead of 8 saves 10 %; half of the logarithm is predicted. Another tp or dp is another effect."""
    cases = [
        make_case("ie-1", step_s=1.0, layout="p", dp_shard=8),
        make_case("ie-2", step_s=0.9, layout="p", dp_shard=2, dp_replicate=4),
        make_case("ie-3", step_s=3.0, layout="p", dp_shard=4, tp=2),
        make_case("ie-4", step_s=5.0, layout="p", dp_shard=4),
    ]
    lines = [predicted(case, value) for case, value in zip(cases, (1.0, 0.9**0.5, 9.0, 9.0), strict=True)]
    (found,) = effects(lines)

    assert (found.source, found.pairs, found.right_sign) == ("ie", 1, 1)
    assert found.size == pytest.approx(0.5)


def test_effect_of_the_schedule_with_the_wrong_sign_is_negative():
    cases = [
        make_case("prm-1", step_s=1.0, layout="p", pp=8),
        make_case("prm-2", step_s=0.9, layout="p", pp=8, schedule="interleaved"),
    ]
    (found,) = effects([predicted(cases[0], 0.9), predicted(cases[1], 1.0)])

    assert found.right_sign == 0
    assert found.size == pytest.approx(-1.0)


def test_targets_judge_the_left_out_figure():
    plain = make_lines((10, 10.1), (10, 10.1))
    out = make_lines((10, 10.6), (10, 10.8))
    one = target(targets(plain, out), "Megatron family, dense", "time, mean error")

    assert (one.sense, one.limit, one.rows) == ("most", 0.05, 2)
    assert one.plain == pytest.approx(0.01)
    assert one.left_out == pytest.approx(0.07)
    assert one.met is False
    assert target(targets(plain, None), "Megatron family, dense", "time, mean error").met is True


def test_each_set_takes_its_rows():
    lines = [
        *make_lines((10, 11)), *make_lines((10, 12), kind="moe"), *make_lines((10, 13), kind="fine-tuning"),
        *make_lines((10, 14), source="bs"), *make_lines((10, 15), source="tt"), *make_lines((10, 16), source="ie"),
        *sweep({(1, 1, 1): (10, 17)}), *sweep({(1, 1, 1): (10, 18)}, set_="vt-m"),
    ]  # fmt: skip
    found = targets(lines, None)

    for set_, figure, value in (
        ("Megatron family, dense", "mean", 0.1), ("Megatron family, MoE", "median", 0.2),
        ("fine-tuning", "median", 0.3), ("bs", "mean", 0.4), ("FSDP stacks", "mean", 0.5),
        ("ie nano jax lit tune prm mbs", "median", 0.6), ("sweep, single-host", "mean", 0.7),
        ("sweep, multi-host", "mean", 0.8),
    ):  # fmt: skip
        one = target(found, set_, f"time, {figure} error")
        assert (one.rows, one.plain) == (1, pytest.approx(value)), set_


def test_power_counts_runs_over_600_s():
    cases = [
        make_case("pow-1", node_w=7000, switches={"measured_s": 1800.0}),
        make_case("pow-2", node_w=5000, switches={"measured_s": 120.0}),
    ]
    one = target(
        targets([predicted(case, 7700, "node_w") for case in cases], None),
        "node power, over 600 s", "power, mean error",
    )  # fmt: skip

    assert (one.rows, one.plain) == (1, pytest.approx(0.1))


def test_covered_counts_rows_that_state_their_sizes_once():
    """Of three that state all sizes one is whole, one lacks its memory, one everything; the fourth does not count."""
    cases = [
        make_case("mb-1", step_s=1, mem=1), make_case("mb-2", step_s=1, mem=1),
        make_case("mb-3", step_s=1, job=None, missing="no vocab"), make_case("mb-4", step_s=1, stated=False),
    ]  # fmt: skip
    lines = [
        predicted(cases[0], 1.0), predicted(cases[0], 1.0, "peak_mem_gib"), predicted(cases[1], 1.0),
        predicted(cases[1], None, "peak_mem_gib"), predicted(cases[2], None), predicted(cases[3], None),
    ]  # fmt: skip
    one = target(targets(lines, None), "rows that state all sizes", "covered")

    assert (one.rows, one.plain, one.met) == (3, pytest.approx(1 / 3), False)


def test_report_groups_by_source_accelerator_and_kind_and_adds_all():
    """The refused row has no job, and stands with the other rows of its accelerator."""
    cases = [
        make_case("mb-1", step_s=1.0, title="A"), make_case("mb-2", step_s=1.0, title="B"),
        make_case("mb-3", step_s=1.0, job=None, missing="no layers"),
        make_case("mb-4", step_s=1.0, title="C", kind="moe"),
    ]  # fmt: skip
    lines = [predicted(case, None if case.job is None else 1.1) for case in cases]
    found = report(cases, lines, None)
    dense, moe, every = found.groups

    assert (dense.source, dense.accelerator, dense.kind) == ("mb", "h100-sxm", "dense")
    assert (dense.plain.rows, dense.plain.covered, moe.plain.rows, every.plain.rows) == (3, 2, 1, 4)
    assert dense.constant.mean == pytest.approx(0.0)
    assert dense.skill is None
    assert found.refused == {"no layers": 1}


def test_worst_rows_come_first_and_are_the_left_out_ones():
    plain, out = make_lines((10, 10), (10, 10)), make_lines((10, 11), (10, 5))
    found = report([line.case for line in plain], plain, out, worst=1)

    (worst,) = found.worst
    assert worst["id"] == "mb-1"
    assert worst["error"] == pytest.approx(-0.5)
