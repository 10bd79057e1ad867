"""Numbers for people: sizes, significant digits, shares, ticks of an axis."""

from __future__ import annotations

import math


def size_text(size: float) -> str:
    """Bytes for people, in powers of ten: `11.7 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def number_text(value: float, digits: int = 4) -> str:
    """A number with that many significant digits; an exponent only below 0.0001 and from a million: `12,350`."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits}g}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def rounded(value: float, digits: int = 4) -> float:
    """The number with that many significant digits."""
    return float(f"{value:.{digits}g}")


def share_text(share: float) -> str:
    """A share as a percentage: `93.4 %`."""
    return f"{100 * share:.1f} %"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{place * step:.12g}") for place in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to `high`, with 2 and 5 times them where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [10.0**power for power in powers if low <= 10.0**power <= high]
    if len(found) < 3:
        found = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    shown = [float(f"{tick:.6g}") for tick in found if low <= tick <= high]
    return shown if len(shown) > 1 else ticks(low, high, 3)
