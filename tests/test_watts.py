"""Power of a host's packages from energy counters that wrap and may be closed to us."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from planner.runtime.watts import Meter

CPU = SimpleNamespace(type="cpu")


@pytest.fixture
def counters(tmp_path, monkeypatch):
    """Two packages at 900 and 100 uJ of 1000, on a clock that goes on by 1 us a look."""
    for name, value in (("0", "900"), ("1", "100")):
        (tmp_path / f"intel-rapl:{name}").mkdir()
        (tmp_path / f"intel-rapl:{name}" / "energy_uj").write_text(value)
        (tmp_path / f"intel-rapl:{name}" / "max_energy_range_uj").write_text("1000")
    ticks = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks) * 1e-6)
    return tmp_path


def test_a_counter_that_wraps_went_on(counters):
    """100 uJ to the end and 50 beyond it, and 25 of the other package, in a microsecond."""

    def work():
        (counters / "intel-rapl:0" / "energy_uj").write_text("50")
        (counters / "intel-rapl:1" / "energy_uj").write_text("125")

    meter = Meter(CPU, counters)
    assert meter.tells
    assert meter.watts(work) == pytest.approx(150 + 25)


@pytest.mark.parametrize("gone", ["max_energy_range_uj", "energy_uj"])
def test_what_cannot_be_read_is_left_out(counters, gone):
    def work():
        (counters / "intel-rapl:0" / "energy_uj").write_text("50")
        (counters / "intel-rapl:0" / gone).unlink()
        (counters / "intel-rapl:0" / gone).mkdir()

    assert Meter(CPU, counters).watts(work) is None


def test_no_counters_tell_nothing(tmp_path):
    assert not Meter(CPU, tmp_path).tells
