"""Line charts as inline SVG: no script, no font, no file beside the page."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

COLOURS = ("#2f6fde", "#d9622b", "#1f9d6b", "#8b54c9", "#b8860b")
_WIDTH, _HEIGHT = 520, 260  # px
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 48, 40  # px, margins around the plot


def line_chart(series: Mapping[str, Sequence[tuple[float, float]]], *, title: str, x_label: str, y_label: str) -> str:
    """Returns an SVG element with one line a series; points that are not finite are left out, and the legend says so.

    Args:
        series: name to (x, y) points; empty ones get no line.
        title: above the plot.
        x_label: below it.
        y_label: beside it.
    """
    finite = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in series.items()
    }
    drawn = {name: points for name, points in finite.items() if points}
    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        f'<text x="{_LEFT}" y="16" class="chart-title">{html.escape(title)}</text>'
    ]
    if not drawn:
        parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT / 2}" text-anchor="middle">no points</text></svg>')
        return "".join(parts)
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points]
    x_low, x_high = _padded(min(xs), max(xs), 0.0)
    y_low, y_high = _padded(min(ys), max(ys), 0.05)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM),
        )

    for tick in ticks(y_low, y_high):
        _, y = at(x_low, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in ticks(x_low, x_high):
        x, _ = at(tick, y_low)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_short(tick)}</text>')
    parts.append(
        f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{html.escape(x_label)}</text>'
    )
    parts.append(
        f'<text x="13" y="{_HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 13 {_HEIGHT / 2})">'
        f"{html.escape(y_label)}</text>"
    )
    legend_x = float(_LEFT)
    for position, (name, points) in enumerate(drawn.items()):
        colour = COLOURS[position % len(COLOURS)]
        left_out = len(series[name]) - len(points)
        label = name + (f" ({left_out} not finite)" if left_out else "")
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{legend_x}" y="34" fill="{colour}">{html.escape(label)}</text>')
        legend_x += 6 * len(label) + 16
    parts.append("</svg>")
    return "".join(parts)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Returns at most `most` + 1 round numbers in [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def thinned(points: Sequence[tuple[float, float]], most: int = 300) -> list[tuple[float, float]]:
    """Returns at most `most` points, each the mean of a run of neighbours."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    if low == high:
        return low - 0.5, high + 0.5
    return low - share * (high - low), high + share * (high - low)


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:.4g}"
