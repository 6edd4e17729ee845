"""Charts as inline SVG: the colours, markers and dashes of :mod:`wsgraph.plot`, values under the pointer, the finger and the keyboard."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from wsgraph.plot.styles import STYLES

__all__ = ["chart", "legend", "marker", "style_sheet"]

Curves = Mapping[str, Mapping[float, tuple[float, float]]]

_WIDTH, _HEIGHT = 420, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 10, 44
# Lighter where the colour would drown in a dark page.
_ON_DARK = {"#000000": "#E8E8E8", "#0072B2": "#3A96D6", "#8C564B": "#B98176"}
_DASHES = {"-": "", "--": "6 3", "-.": "8 3 2 3", ":": "2 3"}


def _polygon(corners: int, inner: float = 1.0, turn: float = 0.0) -> str:
    points = [
        (radius * math.sin(angle), -radius * math.cos(angle))
        for k in range(corners)
        for radius, angle in [(5.2 * (inner if k % 2 else 1.0), 2 * math.pi * k / corners + turn)]
    ]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z"


_CROSS = "M-1.7 -5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5V-1.7H-1.7Z"
_DIAGONAL = "M-4.8 -2.4L-2.4 -4.8L0 -2.4L2.4 -4.8L4.8 -2.4L2.4 0L4.8 2.4L2.4 4.8L0 2.4L-2.4 4.8L-4.8 2.4L-2.4 0Z"
_MARKERS = {
    "o": "M-4.3 0A4.3 4.3 0 1 1 4.3 0A4.3 4.3 0 1 1 -4.3 0Z",
    "s": "M-3.9 -3.9H3.9V3.9H-3.9Z",
    "^": _polygon(3),
    "v": _polygon(3, turn=math.pi),
    "<": _polygon(3, turn=-math.pi / 2),
    ">": _polygon(3, turn=math.pi / 2),
    "D": _polygon(4),
    "h": _polygon(6),
    "*": _polygon(10, 0.45),
    "P": _CROSS,
    "X": _DIAGONAL,
}


def style_sheet() -> str:
    """The colours of all series as rules of CSS, for light and dark pages."""
    light = "".join(f"--c{i}:{color};" for i, (color, _, _) in enumerate(STYLES))
    dark = "".join(f"--c{i}:{_ON_DARK[color]};" for i, (color, _, _) in enumerate(STYLES) if color in _ON_DARK)
    classes = "".join(f".c{i}{{color:var(--c{i})}}" for i in range(len(STYLES)))
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}{classes}"


def marker(style: int) -> str:
    """The marker of a series, to stand beside its name."""
    color, shape, _ = _style(style)
    return f'<svg class="mark {color}" viewBox="-6 -6 12 12" aria-hidden="true"><path d="{shape}"/></svg>'


def _style(number: int) -> tuple[str, str, str]:
    """Class of the colour, path of the marker, and dashes; colours that return after all were used have other markers and dashes."""
    index, turn = number % len(STYLES), number // len(STYLES)
    _, shape, dashes = STYLES[(index + turn) % len(STYLES)]
    lengths = " ".join(f"{2 * length:g}" for length in dashes[1]) if isinstance(dashes, tuple) else _DASHES[dashes]
    return f"c{index}", _MARKERS[shape], f' stroke-dasharray="{lengths}"' if lengths else ""


def legend(styles: Mapping[str, int], *, lines: bool) -> str:
    """Names of series beside their lines and markers, as buttons that bring out one of them."""
    items = []
    for name, style in styles.items():
        color, shape, dashes = _style(style)
        line = f'<path class="line" d="M0 0H28"{dashes}/>' if lines else ""
        swatch = f'{line}<path transform="translate(14)" d="{shape}"/>'
        box = "0 -6 28 12" if lines else "8 -6 12 12"
        items.append(
            f'<li><button type="button" aria-pressed="false" data-series="{escape(name)}">'
            f'<svg class="{color}" viewBox="{box}" style="width:{box.split()[2]}px" aria-hidden="true">{swatch}</svg>'
            f"{escape(name)}</button></li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


# == Axes ==


class _Axis(NamedTuple):
    """Where values lie between 0 and 1, and which are written."""

    place: Callable[[float], float]
    ticks: list[float]


def _axis(values: Sequence[float], *, log: bool, ticks: Sequence[float] | None = None, wanted: int = 6) -> _Axis:
    low, high = min(values), max(values)
    if log:
        a, b = math.log10(low), math.log10(high)
        margin = 0.05 * (b - a) or 0.3
        a, b = a - margin, b + margin
        decades = range(math.floor(a), math.ceil(b) + 1)
        every = max(1, math.ceil((b - a) / wanted))
        steps = (1,) if b - a > 2 else (1, 3) if b - a > 1 else (1, 2, 5)
        chosen = [step * 10.0**k for k in decades if k % every == 0 for step in steps]
        chosen = [value for value in chosen if a <= math.log10(value) <= b]
        return _Axis(lambda value: (math.log10(value) - a) / (b - a), list(ticks or chosen))
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - margin, high + margin
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    chosen = [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return _Axis(lambda value: (value - low) / (high - low), list(ticks or chosen))


def _tick(value: float) -> str:
    exponent = round(math.log10(abs(value))) if value else 0
    if abs(exponent) > 3 and math.isclose(abs(value), 10.0**exponent):
        return ("-" if value < 0 else "") + "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{round(value, 12):g}"


# == The chart ==


def chart(
    curves: Curves,
    styles: Mapping[str, int],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_name: Callable[[float], str],
    y_name: Callable[[float, float], str],
    joined: bool = True,
    log_x: bool = True,
    log_y: bool = False,
    x_ticks: Sequence[float] | None = None,
) -> str:
    """A chart of several series.

    Args:
        curves: By series, pairs of a mean and its standard error at points of the horizontal axis; those that are not finite are left out.
        styles: Number of the style of every series.
        title: What the chart shows, where other charts stand beside it.
        x_label: Text below the axis.
        y_label: Text above the vertical axis.
        x_name: A place on the axis in words.
        y_name: A value and its error in words.
        joined: Whether the points of a series are joined by a line.
        log_x: Whether the horizontal axis is logarithmic, where all values allow it.
        log_y: Whether the vertical axis is.
        x_ticks: Where to write values below the axis (default: round numbers).

    Returns:
        A ``figure`` element, or nothing where no value is finite.
    """
    known = {
        name: {x: point for x, point in sorted(points.items()) if math.isfinite(x) and math.isfinite(point[0])}
        for name, points in curves.items()
    }
    known = {name: points for name, points in known.items() if points}
    if not known:
        return ""
    xs = [x for points in known.values() for x in points]
    spread = [(mean, 0.0 if math.isnan(error) else error) for points in known.values() for mean, error in points.values()]
    log_x, log_y = log_x and min(xs) > 0, log_y and min(mean - error for mean, error in spread) > 0
    across = _axis(xs, log=log_x, ticks=x_ticks)
    along = _axis([mean + sign * error for mean, error in spread for sign in (-1, 1)], log=log_y)

    def x_of(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * across.place(value)

    def y_of(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * along.place(value)

    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    grid = "".join(
        f'<path class="{"zero" if value == 0 and not log_y else "grid"}" d="M{_LEFT} {y_of(value):.1f}H{right}"/>'
        f'<text x="{_LEFT - 7}" y="{y_of(value) + 4:.1f}" text-anchor="end">{_tick(value)}</text>'
        for value in along.ticks
    )
    grid += "".join(
        f'<path class="axis" d="M{x_of(value):.1f} {bottom}v4"/>'
        f'<text x="{x_of(value):.1f}" y="{bottom + 17}" text-anchor="middle">{_tick(value)}</text>'
        for value in across.ticks
    )
    grid += f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>'
    grid += f'<text class="label" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'

    series = []
    for name, points in known.items():
        color, shape, dashes = _style(styles[name])
        drawn = ""
        bars = [(x, mean, error) for x, (mean, error) in points.items() if error > 0]
        if joined and len(points) > 1:
            upper, lower = (
                [f"{x_of(x):.1f} {y_of(mean + sign * (0 if math.isnan(error) else error)):.1f}" for x, (mean, error) in points.items()]
                for sign in (1, -1)
            )
            drawn += f'<path class="band" d="M{"L".join([*upper, *reversed(lower)])}Z"/>' if bars else ""
            line = "L".join(f"{x_of(x):.1f} {y_of(mean):.1f}" for x, (mean, _) in points.items())
            drawn += f'<path class="line" d="M{line}"{dashes}/>'
        else:
            drawn += "".join(f'<path class="bar" d="M{x_of(x):.1f} {y_of(m - e):.1f}V{y_of(m + e):.1f}"/>' for x, m, e in bars)
        for x, (mean, error) in points.items():
            words, value = x_name(x), y_name(mean, error)
            drawn += (
                f'<g class="point" role="img" tabindex="-1" transform="translate({x_of(x):.1f} {y_of(mean):.1f})" data-order="{mean:.12g}" '
                f'data-x="{escape(words)}" data-value="{escape(value)}" aria-label="{escape(f"{name}, {words}: {value}")}">'
                f'<title>{escape(f"{name}, {words}: {value}")}</title><path d="{shape}"/></g>'
            )
        series.append(f'<g class="series {color}" data-series="{escape(name)}">{drawn}</g>')
    return (
        f'<figure class="chart{" joined" if joined else ""}"><figcaption>{escape(title)}<span>{escape(y_label)}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="group" aria-label="{escape(f"{title} {y_label} against {x_label}".strip())}. '
        f'Arrow keys move between values.">{grid}{"".join(series)}</svg></figure>'
    )
