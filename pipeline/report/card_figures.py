"""The figures of a data card, as SVG. Equal numbers give equal bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

GOOD, DROPPED, FAILED, ACCENT, INK = "#1f9d6b", "#e0a13b", "#cf3f3f", "#2f6fde", "#1d2430"
_WIDTH = 8.6  # inches
_LOG_FROM = 20  # largest count over the smallest from which an axis is logarithmic


def funnel_figure(num_read: int, stages: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns bars of the rows that are left after each stage, with those that it ended beside them.

    Args:
        num_read: rows of the input.
        stages: `stage`, `dropped`, `failed` and `left` of each, in order.
    """
    canvas, axes = _canvas(height=0.9 + 0.42 * (len(stages) + 1))
    names = ["input", *(one["stage"] for one in stages)]
    left = [num_read, *(one["left"] for one in stages)]
    dropped, failed = ([0, *(one[end] for one in stages)] for end in ("dropped", "failed"))
    axes.barh(names, left, color=GOOD, label="left")
    axes.barh(names, dropped, left=left, color=DROPPED, label="dropped here")
    if any(failed):
        axes.barh(names, failed, left=np.add(left, dropped), color=FAILED, label="failed here")
    for place, (rows, lost) in enumerate(zip(left, np.add(dropped, failed), strict=True)):
        text = f"{rows:,}" + (f"  (-{lost:,})" if lost else "")
        axes.text(rows + lost + num_read * 0.01, place, text, va="center", color=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, num_read * 1.2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("rows")
    axes.legend(loc="lower right", frameon=False)
    return _encoded(canvas)


def images_per_entity_figure(counts: np.ndarray) -> bytes:
    """Returns the images of each entity by rank, and how many entities have how many, on logarithmic axes.

    Args:
        counts: int `[entities]`, images of each, falling.
    """
    canvas, axes = _canvas(height=3.4, columns=2)
    axes[0].plot(np.arange(1, len(counts) + 1), counts, color=ACCENT, drawstyle="steps-mid")
    axes[0].set(xscale="log", yscale="log", xlabel="rank of the entity", ylabel="images")
    _write_out(axes[0].xaxis, axes[0].yaxis)
    edges = log_edges(int(counts.max()))
    numbers, _ = np.histogram(counts, edges)
    axes[1].bar(edges[:-1], numbers, np.diff(edges), align="edge", color=ACCENT, edgecolor="white")
    axes[1].set(xscale="log", xlabel="images of an entity", ylabel="entities")
    _write_out(axes[1].xaxis)
    if numbers.max() >= _LOG_FROM * numbers[numbers > 0].min():
        axes[1].set_yscale("log")
        _write_out(axes[1].yaxis)
    return _encoded(canvas)


def similarities_figure(
    kept: np.ndarray, rejected: np.ndarray, other: np.ndarray, *, bin_width: float, threshold: float
) -> bytes:
    """Returns a histogram of the similarities of picture and entity, with the threshold marked.

    Args:
        kept: int `[bins]`, labels that were kept, in bins from -1 on.
        rejected: those that the filter rejected.
        other: those that another stage rejected.
        bin_width: of all three.
        threshold: least similarity.
    """
    canvas, axes = _canvas(height=3.2)
    used = np.nonzero(kept + rejected + other)[0]
    first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
    starts = -1 + bin_width * np.arange(first, last)
    below = np.zeros(last - first)
    parts = (
        (kept, GOOD, "kept"),
        (other, "#b9c1cf", "rejected elsewhere"),
        (rejected, DROPPED, "rejected by the filter"),
    )
    for counts, colour, label in parts:
        part = counts[first:last]
        if part.any():
            axes.bar(starts, part, bin_width, bottom=below, align="edge", color=colour, label=label)
        below = below + part
    axes.axvline(threshold, color=INK, linestyle="--", label=f"threshold {threshold:.4g}")
    axes.set(xlabel="cosine of picture and entity text", ylabel="labels")
    axes.legend(frameon=False)
    return _encoded(canvas)


def entities_per_image_figure(numbers: Mapping[int, int]) -> bytes:
    """Returns bars of how many kept images have how many entities."""
    canvas, axes = _canvas(height=2.6)
    shown = range(1, max(numbers) + 1)
    bars = axes.bar([str(number) for number in shown], [numbers.get(number, 0) for number in shown], color=ACCENT)
    axes.bar_label(bars, fmt="{:,.0f}", padding=2)
    axes.margins(y=0.15)
    axes.set(xlabel="entities of an image", ylabel="images")
    if max(numbers.values()) >= _LOG_FROM * min(numbers.values()):
        axes.set_yscale("log")
        axes.set_ylabel("images (log)")
        _write_out(axes.yaxis)
    return _encoded(canvas)


def log_edges(largest: int) -> np.ndarray:
    """Returns the edges of bins that cover 1 to `largest`: 1, 2, 5, 10, 20, 50, …; the last edge is above it."""
    edges: list[int] = []
    power = 1
    while True:
        for factor in (1, 2, 5):
            edges.append(factor * power)
            if edges[-1] > largest:
                return np.array(edges)
        power *= 10


def _canvas(*, height: float, columns: int = 1) -> tuple[Canvas, Any]:
    # Not pyplot: that keeps global state, and looks for a display.
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasSVG(canvas)
    axes = canvas.subplots(1, columns)
    for one in np.atleast_1d(axes):
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
    return canvas, axes


def _write_out(*logarithmic: Any) -> None:
    """Labels logarithmic axes with numbers such as 2,000 instead of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axis in logarithmic:
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 500 * low else (1,)))
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.set_minor_formatter(NullFormatter())


def _encoded(canvas: Canvas) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "mofi"}):
        canvas.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
