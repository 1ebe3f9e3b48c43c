"""Options, pins and assignments: what is read, and how what is wrong is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import BadInput
from planner.options import PINNABLE, parse_assignments, pins_of, read_options, watts


def test_assignments_are_whole_numbers_or_words():
    read = parse_assignments(" tp=4, pp = 2,recompute=full,layers_per_stage=20-20 ")

    assert read == {"tp": 4, "pp": 2, "recompute": "full", "layers_per_stage": "20-20"}
    assert parse_assignments("") == parse_assignments(" , ,") == {}


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str):
    try:
        read = parse_assignments(text)
        read_options(pins=read)
    except BadInput as error:
        assert len(str(error)) < 600
    else:
        assert all(name in PINNABLE for name in read)


@given(st.dictionaries(st.sampled_from(PINNABLE), st.integers(1, 64), max_size=5))
def test_pins_survive_text(pins: dict[str, int]):
    text = ",".join(f"{name}={value}" for name, value in pins.items())

    assert parse_assignments(text) == pins
    assert pins_of(text) == pins_of(pins) == pins


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"headroom": math.nan}, "headroom=nan"), ({"headroom": 1.0}, "headroom=1.0: input should be less than 1"),
        ({"headroom": -0.1}, "headroom=-0.1"), ({"objective": "speed"}, "objective='speed'"),
        ({"time_limit_s": 0}, "time_limit_s=0"), ({"power_cap_w": -1.0}, "power_cap_w=-1.0"),
        ({"power_cap_w": math.inf}, "power_cap_w=inf"), ({"alternatives": 51}, "alternatives=51"),
        ({"pins": {"tp": True}}, "pins.tp"), ({"pins": {"tp": None}}, "pins.tp"), ({"pins": {"zero": -1}}, "from 0"),
        ({"pins": {"recompute": 1}}, "none, selective, full"), ({"colour": 1}, "colour"),
    ],
)  # fmt: skip
def test_an_option_that_is_wrong_is_named_with_its_value(fields: dict, says: str):
    with pytest.raises(BadInput, match=says.replace("(", r"\(")):
        read_options(**fields)


def test_pins_are_a_dictionary_or_text():
    with pytest.raises(BadInput, match="neither a dictionary nor text"):
        pins_of(4)
    assert pins_of(None) == {}


def test_watts_are_text_with_a_unit_or_a_number():
    assert watts("700 kW") == 700e3
    assert watts(5.0) == 5.0
    assert watts(None) is None
    with pytest.raises(BadInput, match="'700 kW'"):
        watts("700")
