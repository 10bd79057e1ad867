"""Axes of a figure: from values to pixels, with ticks, grid lines and titles that carry the unit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moesaic.report.numbers import log_ticks, number_text, ticks
from moesaic.report.svg import Element, node

WIDTH, HEIGHT = 400.0, 300.0  # of a figure, pixels
LEFT, RIGHT, TOP, BOTTOM = 66.0, 16.0, 16.0, 46.0


@dataclass(frozen=True)
class Scale:
    """From values to pixels, linear or logarithmic.

    Attributes:
        low, high: the interval of values; `low` above 0 where logarithmic.
        start, end: the pixels that they fall on.
        log: logarithmic.
        whole: only whole numbers get labels, as for layers.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, at = (
            (math.log(x) for x in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values to put labels at."""
        found = log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)
        return [tick for tick in found if tick.is_integer()] if self.whole else found


def fitted(values: list[float], start: float, end: float, *, log: bool = False, zero: bool = False) -> Scale:
    """A scale that holds all values with 6 % of room on both sides.

    Args:
        values: at least one.
        start, end: pixels.
        log: logarithmic; the values are above 0.
        zero: begin at 0.
    """
    low, high = min(values), max(values)
    if log:
        room = (high / low) ** 0.06 if high > low else 2.0
        return Scale(low / room, high * room, start, end, log=True)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(0.0 if zero else low - room, high + room, start, end)


def across(values: list[float], *, log: bool = False, zero: bool = False) -> Scale:
    """A horizontal scale of a figure of the usual size."""
    return fitted(values, LEFT, WIDTH - RIGHT, log=log, zero=zero)


def upward(values: list[float], *, log: bool = False, zero: bool = False) -> Scale:
    """A vertical scale of a figure of the usual size."""
    return fitted(values, HEIGHT - BOTTOM, TOP, log=log, zero=zero)


def frame(x: Scale, y: Scale, x_title: str, y_title: str) -> list[Element]:
    """Grid, tick labels and titles for two scales of the usual size."""
    made = []
    for tick in y.ticks():
        at = y(tick)
        made.append(node("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at))
        made.append(node("text", number_text(tick), class_="faint", x=LEFT - 8, y=at + 4, text_anchor="end"))
    for tick in x.ticks():
        at = x(tick)
        made.append(node("line", class_="grid", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM))
        made.append(node("text", number_text(tick), class_="faint", x=at, y=HEIGHT - BOTTOM + 18, text_anchor="middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    made.append(node("text", x_title, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 8, text_anchor="middle"))
    made.append(node("text", y_title, x=12.0, y=middle, text_anchor="middle", transform=f"rotate(-90 12 {middle:g})"))
    return made
