"""Quantities as text with a unit, and back: the only prefix arithmetic in the project."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import BeforeValidator

_TEXT = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([kMGTPE]i?|[munp](?![a-zA-Z/]*in))?([A-Za-z$/%]+)\s*")
_PREFIX = {
    None: 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2.0**10, "ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50,
    "m": 1e-3, "u": 1e-6, "n": 1e-9, "p": 1e-12,
}  # fmt: skip
# Spellings that mean the same unit: (unit, factor).
_SAME_UNIT = {
    "FLOPS": ("FLOP/s", 1.0),
    "b/s": ("B/s", 1 / 8),
    "bit/s": ("B/s", 1 / 8),
    "Wh": ("J", 3600.0),
    "min": ("s", 60.0),
    "h": ("s", 3600.0),
    "d": ("s", 86400.0),
}

_LONG = ((365.25 * 86400, "years"), (86400, "d"), (3600, "h"), (60, "min"))


def parse_quantity(text: str | float, unit: str) -> float:
    """Read ``"3.35 TB/s"`` as ``3.35e12`` when ``unit`` is ``"B/s"``.

    A bare number is refused: every figure in a data file says its own unit, so a
    datasheet's decimal TB cannot turn into a binary TiB on the way in.

    Raises ``ValueError`` naming the text, the unit wanted and the unit found, or that the number is infinite.
    """
    if not isinstance(text, str):
        raise ValueError(f"{text!r} has no unit; write it as text, for example '{text} {unit}'")
    match = _TEXT.fullmatch(text) if len(text) < 64 else None
    if match is None:
        raise ValueError(f"{text[:64]!r} is not a quantity; expected a number and a unit like {unit!r}")
    number, prefix, found = match.groups()
    base, factor = _SAME_UNIT.get(found, (found, 1.0))
    if base != unit:
        raise ValueError(f"{text!r} is in {found!r}; expected {unit!r} with an SI or binary prefix")
    value = float(number) * _PREFIX[prefix] * factor
    if math.isinf(value):
        raise ValueError(f"{text!r} is beyond any finite number; expected a quantity below 1.8e308 {unit}")
    return value


def reader(unit: str) -> BeforeValidator:
    """A pydantic validator that reads text in ``unit`` (``"B/s"``, ``"W"``, ...) as an SI float."""
    return BeforeValidator(lambda text: parse_quantity(text, unit))


Bytes = Annotated[float, reader("B")]
BytesPerSecond = Annotated[float, reader("B/s")]
FlopPerSecond = Annotated[float, reader("FLOP/s")]
Seconds = Annotated[float, reader("s")]
Watts = Annotated[float, reader("W")]
JoulesPerBit = Annotated[float, reader("J/b")]
UsdPerHour = Annotated[float, reader("USD/h")]
UsdPerKilowattHour = Annotated[float, reader("USD/kWh")]


def quantity_text(value: float, unit: str, digits: int = 3) -> str:
    """``3.35e12`` and ``"B/s"`` as ``"3.35 TB/s"``: the inverse of :func:`parse_quantity`, for print only."""
    prefixes = [("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0), ("m", 1e-3), ("u", 1e-6)]
    if unit == "B":
        prefixes = prefixes[:6]
    size = abs(value)
    prefix, factor = next(((p, f) for p, f in prefixes if size >= f), prefixes[-1] if size else ("", 1.0))
    scaled = value / factor
    decimals = max(0, digits - len(str(int(abs(scaled))))) if abs(scaled) >= 1 else digits - 1
    return f"{scaled:.{decimals}f} {prefix}{unit}"


def duration_text(seconds: float) -> str:
    """Seconds in the unit that a person would use: ``6.8 ms``, ``10.1 min``, ``3.09 h``, ``12.5 d``, ``4.2 years``."""
    for unit_s, name in _LONG:
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:,.3g} {name}"
    return quantity_text(seconds, "s")
