"""How well published runs are predicted, each with its whole (model, accelerator) group left out: may only improve.

``meshwright validate`` prints the same figures; a limit is what it printed last, rounded up (or down where more is
better) to a tenth of a per cent.

Two errors (fine-tuning, sweep over hosts) and a half-width were let go by 0.1 to 0.4 on 2026-11-27, when attention of
FSDP stacks and of NeMo's packed fine-tuning was mended and all constants were fitted again, and Megatron's mean error
and half-width by 0.01 on 2026-11-28, when flash attention 1 in CUDA and in Triton got rates of their own: over all rows
the mean error fell from 6.6 to 6.4, over groups of fine-tuning from 11.7 to 10.8 and of FSDP stacks from 8.8 to 7.7, in
the median of the small sources from 7.1 to 5.9. Shares inside moved towards the 90 that intervals are made for.

Later that day four figures and two half-widths were let go, when one local expert became one dense product. The
median of MoE by 0.7, in which the 40 rows of Grok-1 on H100 lie, while Grok-1 on GB200, which the fit does not see,
fell from 31 to about 16; the small sources' by 0.4, in which InternEvo has nearly half of the rows; the p90 of dense
rows by 0.2, whose mean fell; what prm's schedules gain is foreseen at 101 % of it, not 104; half-widths of Megatron's
rows by 0.1 and 0.2.

After that four more were let go. Dense rows by 0.1 in mean and p90: dgxc-benchmarking v25.02 ran the container of 2024
(its launch scripts say so), whose rate it now has. The median of MoE by 0.4, in which Grok-1 on H100, whose experts run
one by one in that software, lies 8.8 % too low when it is left out; the mean of MoE fell from 11.2 to 10.8. The small
sources' by 0.3. Over groups the mean fell from 8.3 to 8.1, of fine-tuning rows from 8.2 to 7.7, of FSDP stacks from
5.1 to 4.6. Half-widths are 1 to 20 % less in every set but the small sources', by 0.2 more, and shares inside lie
nearer to the 90 that intervals are made for: classes of runs tell full recompute apart.

Last, when stages of latent attention, Automodel's experts, predictions and pipeline, and what MLPerf's MI300X
recomputes were read from their configurations: MoE fell from 9.1 to 8.3 and FSDP stacks from 4.7 to 4.4. Dense p90 and
fine-tuning were let go by 0.2 (MI300X's 21 recomputed layers were hidden in a clock, which other runs of the board
share), the small sources by 0.1 and their half-width by 1.2 (Primus' one model with experts alone tells how CDNA's
grouped products run, so that left out it is 16 % off), node power by 0.3, other half-widths by 0.2 to 0.6.

When full recompute by PyTorch's checkpoints was told to stop early: FSDP stacks fell from 4.4 to 3.9 and their
half-width from 9.2 to 7.7 (llm-foundry's rows from 3.6 to 3.1, fms-fsdp's from 7.0 to 4.1). Automodel's eleven rows are
10.1 % off, from 9.7, and the small sources' half-width was let go by 0.1, both of one or two rows a model. The stacks'
own constants were fitted again, others stand where the last fit of all left them.

On 2026-11-29 all constants were fitted again, after experts in groups, attention that some software does not fuse,
graphs of one domain, tokenizers of benchmarks, recompute of Paxml and torchtitan, and memory of several stacks: over
all rows 6.0 to 5.5, MoE 8.3 to 5.8, dense 4.9 to 4.4. BigScience's time was let go by 0.2 and its interval by 0.3 (12
stages of 78 layers are 11 of 7 and one of 1, as DeepSpeed filled them: memory of two such rows fell from 7 to 3 %, ten
steps grew by 1 %), the sweep's by 0.01 and 0.3, and of metered fine-tuning runs 54 of 60 are inside, not 55. What
prm's schedules gain is foreseen at 102.7 % of it, not 103.
"""

from __future__ import annotations

import pytest

from planner.published.command import complete
from planner.published.predict import left_out, predict
from planner.published.refit import carried
from planner.published.targets import intervals, targets

LIMITS = {
    ("Megatron family, dense", "time, mean error"): 4.4,
    ("Megatron family, dense", "time, p90 error"): 9.5,
    ("Megatron family, dense", "memory, median error"): 0.2,
    ("Megatron family, MoE", "time, median error"): 5.8,
    ("fine-tuning", "time, median error"): 5.9,
    ("fine-tuning", "memory, median error"): 0.6,
    ("sweep, multi-host", "time, mean error"): 5.0,
    ("sweep, multi-host", "worst regret"): 0.7,
    ("sweep, single-host", "time, mean error"): 4.9,
    ("sweep, single-host", "mean regret"): 0.8,
    ("sweep, single-host", "worst regret"): 8.2,
    ("bs", "time, mean error"): 4.9,
    ("bs", "memory, median error"): 3.2,
    ("bs", "pairs beyond noise in order"): 95.5,
    ("FSDP stacks", "time, mean error"): 3.8,
    ("FSDP stacks", "memory, median error"): 1.6,
    ("ie nano jax lit tune prm mbs", "time, median error"): 6.1,
    ("ie nano jax lit tune prm mbs", "memory, median error"): 2.6,
    ("ie nano jax lit tune prm mbs", "part of ie's sharding group effect"): 79.3,
    ("ie nano jax lit tune prm mbs", "part of prm's schedule effect"): 102.7,
    ("node power, over 600 s", "power, mean error"): 0.7,
    ("out of memory", "caught (11 of 13)"): 85.7,
    ("out of memory", "false alarms"): 1.9,
    ("rows that state all sizes", "covered"): 100.0,
}
INSIDE = {
    ("Megatron family, dense", "step_s"): 91.8,
    ("Megatron family, dense", "peak_mem_gib"): 100.0,
    ("Megatron family, MoE", "step_s"): 91.7,
    ("fine-tuning", "step_s"): 93.9,
    ("fine-tuning", "peak_mem_gib"): 93.4,
    ("fine-tuning", "node_w"): 90.0,
    ("sweep, multi-host", "step_s"): 93.6,
    ("sweep, single-host", "step_s"): 90.5,
    ("bs", "step_s"): 89.6,
    ("bs", "peak_mem_gib"): 90.7,
    ("FSDP stacks", "step_s"): 93.4,
    ("FSDP stacks", "peak_mem_gib"): 95.0,
    ("ie nano jax lit tune prm mbs", "step_s"): 93.6,
    ("ie nano jax lit tune prm mbs", "peak_mem_gib"): 89.6,
    ("node power, over 600 s", "node_w"): 100.0,
}
"""Least share of rows inside their 90 % interval.

Of fine-tuning's memory 95.6 until 2026-11-28: intervals of 2.7 % to a side, not 3.7 %, hold 43 of 46 rows, not 44."""
HALF_WIDTH = {
    ("Megatron family, dense", "step_s"): 9.0,
    ("Megatron family, MoE", "step_s"): 18.0,
    ("fine-tuning", "step_s"): 11.3,
    ("fine-tuning", "peak_mem_gib"): 2.6,
    ("sweep, multi-host", "step_s"): 7.8,
    ("sweep, single-host", "step_s"): 9.4,
    ("bs", "step_s"): 8.5,
    ("bs", "peak_mem_gib"): 8.1,
    ("FSDP stacks", "step_s"): 7.5,
    ("FSDP stacks", "peak_mem_gib"): 7.6,
    ("ie nano jax lit tune prm mbs", "step_s"): 20.8,
    ("ie nano jax lit tune prm mbs", "peak_mem_gib"): 5.9,
}
"""Most half-widths of these intervals, in per cent of what is predicted."""


@pytest.fixture(scope="module")
def predictions():
    """Lines in sample and left out, of every row that the project carries."""
    cases = carried()
    plain = predict(cases)
    return complete(cases, plain), complete(cases, left_out(cases, plain))


@pytest.fixture(scope="module")
def figures(predictions):
    return {(it.set, it.figure): it for it in targets(*predictions)}


def test_every_figure_has_a_limit(figures):
    assert figures.keys() == LIMITS.keys()


@pytest.mark.parametrize("key", LIMITS, ids=" ".join)
def test_a_figure_is_no_worse_than_it_was(figures, key):
    it = figures[key]
    value = 100 * (it.plain if it.left_out is None else it.left_out)

    assert value <= LIMITS[key] if it.sense == "most" else value >= LIMITS[key]


@pytest.mark.parametrize("key", INSIDE, ids=" ".join)
def test_intervals_hold_what_they_say(predictions, key):
    found = {(it.set, it.quantity): 100 * it.inside for it in intervals(predictions[1])}

    assert found[key] >= INSIDE[key]


def test_intervals_are_no_wider_than_they_were(predictions):
    found = {(it.set, it.quantity): 100 * it.half_width for it in intervals(predictions[1])}

    assert {key: found[key] for key in HALF_WIDTH if found[key] > HALF_WIDTH[key]} == {}
