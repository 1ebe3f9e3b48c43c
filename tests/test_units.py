"""Quantities as text: units, prefixes, refusals, and the way back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from topologies.units import Bytes, BytesPerSecond, parse_quantity, quantity_text

READ = [
    ("3.35 TB/s", "B/s", 3.35e12),
    ("400 Gb/s", "B/s", 50e9),
    ("400 Gbit/s", "B/s", 50e9),
    ("80 GiB", "B", 80 * 2**30),
    ("80 GB", "B", 80e9),
    ("81559 MiB", "B", 81559 * 2**20),
    ("989.5 TFLOPS", "FLOP/s", 989.5e12),
    ("989.5 TFLOP/s", "FLOP/s", 989.5e12),
    ("1.9 us", "s", 1.9e-6),
    ("250 ns", "s", 250e-9),
    ("700 W", "W", 700.0),
    ("2.4kW", "W", 2400.0),
    ("1 kWh", "J", 3.6e6),
    ("0.127 USD/kWh", "USD/kWh", 0.127),
    ("2.95 USD/h", "USD/h", 2.95),
    ("1e3 B", "B", 1000.0),
    (".5 GB", "B", 5e8),
]

REFUSED = [
    (3.35e12, "B/s", "has no unit"),
    (80, "B", "has no unit"),
    ("80", "B", "is not a quantity"),
    ("", "B", "is not a quantity"),
    ("-3 GB", "B", "is not a quantity"),
    ("3 GB 4", "B", "is not a quantity"),
    ("80 GB", "B/s", "expected 'B/s'"),
    ("3 TB/s", "B", "is in 'B/s'"),
    ("700 V", "W", "is in 'V'"),
    ("9" * 70 + " GB", "B", "is not a quantity"),
    ("1e999 W", "W", "beyond any finite number"),
    ("9e307 kW", "W", "beyond any finite number"),
]


@pytest.mark.parametrize(("text", "unit", "value"), READ)
def test_text_is_read_in_si(text, unit, value):
    assert parse_quantity(text, unit) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(("text", "unit", "complaint"), REFUSED)
def test_refusals_say_why(text, unit, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_quantity(text, unit)


def test_a_decimal_and_a_binary_prefix_differ():
    assert parse_quantity("1 GiB", "B") / parse_quantity("1 GB", "B") == pytest.approx(1.073741824)


def test_a_record_field_takes_its_own_unit_only():
    assert TypeAdapter(Bytes).validate_python("1 kB") == 1000.0
    with pytest.raises(ValidationError, match="expected 'B/s'"):
        TypeAdapter(BytesPerSecond).validate_python("1 kB")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (3.35e12, "B/s", "3.35 TB/s"),
        (50e9, "B/s", "50.0 GB/s"),
        (700.0, "W", "700 W"),
        (1.9e-6, "s", "1.90 us"),
        (989e12, "FLOP/s", "989 TFLOP/s"),
    ],
)
def test_print_chooses_the_prefix(value, unit, text):
    assert quantity_text(value, unit) == text


@given(st.floats(1e-5, 9e17), st.sampled_from(["B/s", "W", "s"]))
def test_what_is_printed_reads_back(value, unit):
    """Six digits kept, so half a unit of the sixth is lost at most."""
    assert parse_quantity(quantity_text(value, unit, digits=6), unit) == pytest.approx(value, rel=5e-5)


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text):
    try:
        assert parse_quantity(text, "B") >= 0
    except ValueError as error:
        assert str(error)
