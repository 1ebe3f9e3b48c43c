"""Pipeline schedules of published runs: by their names, virtual stages, what is refused."""

import pytest

from cost_models.estimate import estimate
from planner.published.training import training_case
from tests.published_rows import job, training_row


def test_interleaving():
    found = job(pp="4", vpp="4", global_batch="32").strategy

    assert (found.schedule.kind, found.schedule.virtual_stages, len(found.stages)) == ("interleaved", 4, 16)


@pytest.mark.parametrize("cells", [{"pp": "1", "vpp": "4"}, {"pp": "4", "vpp": "4", "global_batch": "6"}, {"pp": "4"}])
def test_interleaving_where_it_is_not_legal(cells):
    assert job(**cells).strategy.schedule.kind == "1f1b"


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("DualPipe; no TP", "dualpipe"), ("zero-bubble PP", "zb-h1"), ("no AC; interleaved 1F1B", "interleaved"),
        ("no DualPipe", "1f1b"), ("non-interleaved 1F1B", "1f1b"), ("interleaved local attention", "1f1b"),
    ],
)  # fmt: skip
def test_schedules_named_among_the_flags(flags, kind):
    assert job(pp="4", n_gpus="8", global_batch="32", other_flags=flags).strategy.schedule.kind == kind


def test_ends_count_as_layers():
    """32 layers with embedding and head fill 34 chunks of 2 stages; 40 are cut to 17 a device."""
    assert job(pp="2", vpp="17").strategy.schedule.virtual_stages == 17
    assert job(pp="2", vpp="20").strategy.schedule.virtual_stages == 17


def test_schedule_names_are_kept():
    found = job(pp="4", other_flags="schedule=Interleaved 1F1B; GA=4")

    assert found.switches["schedule"] == "interleaved 1f1b"
    assert found.strategy.schedule.virtual_stages == 2
    assert job(pp="4", vpp="1", other_flags="schedule=Interleaved 1F1B").strategy.schedule.kind == "1f1b"


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("DualPipeV", "dualpipev"), ("DualPipe (DeepSeek)", "dualpipe"), ("Zero Bubble", "zb-h1"), ("V_Half", "v-half"),
        ("ZBVZeroBubble", "zbv"),
        ("non-interleaved 1F1B", "1f1b"), ("1F1B", "1f1b"), ("Interleaved1F1B", "interleaved"),
    ],
)  # fmt: skip
def test_schedules_by_their_names(words, kind):
    found = job(pp="4", n_gpus="8", global_batch="32", other_flags=f"schedule={words}")

    assert found.strategy.schedule.kind == kind
    assert estimate(found.model, found.cluster, found.workload, found.strategy).step_s > 0


@pytest.mark.parametrize(
    ("words", "batch", "reason"),
    [
        ("nonsense", "32", "'nonsense' is not understood; write one of 1f1b"),
        ("eager-1f1b", "32", "not understood"),
        ("InterleavedZeroBubble", "32", "not understood"),
        ("dualpipe", "8", "'dualpipe' cannot run 4 micro-batches of 32 layers in pp=4"),
        ("dualpipev", "8", "'dualpipev' cannot run 4 micro-batches"),
    ],
)
def test_schedules_that_are_not_priced_are_refused(words, batch, reason):
    """Where there are stages: without, every order is the same."""
    cells = {"global_batch": batch, "other_flags": f"schedule={words}"}

    assert reason in training_case(training_row(pp="4", **cells)).missing
    assert training_case(training_row(pp="1", **cells)).job is not None
