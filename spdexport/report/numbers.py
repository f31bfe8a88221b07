"""Numbers and lists as people read them. Pure text; nothing is printed here."""

from __future__ import annotations

import math

_UNITS = ("", " k", " M", " G", " T", " P")


def short(number: float) -> str:
    """Three significant digits and a unit of thousands: 640, 36.9 k, 295 k, 4.1 G."""
    if not math.isfinite(number):
        return str(number)
    for power, unit in enumerate(_UNITS):
        scaled = number / 1000**power
        # 999.6 k rounds to a thousand of them: that is the next unit's 1 M.
        if abs(scaled) < 999.5 or unit == _UNITS[-1]:
            break
    digits = f"{scaled:.0f}" if not power or abs(scaled) >= 99.95 else f"{scaled:.3g}"
    return digits + unit


def size(count: int) -> str:
    """Bytes in decimal units: 640 B, 208 kB, 97.8 MB."""
    number, _, unit = short(count).partition(" ")
    return f"{number} {unit}B"


def ratio(number: float | None) -> str:
    """Return a ratio or an error with three significant digits; a dash for None."""
    return "-" if number is None else f"{number:.3g}"


def below(break_even: float) -> str:
    """Return the break-even number of components, rounded down."""
    return str(math.floor(break_even)) if math.isfinite(break_even) else "-"
