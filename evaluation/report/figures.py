"""Figures of results, as PNG: bars, retrieval grids, maps of the embedding space, calibration."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.sets.images import ImageSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

RIGHT, WRONG, JUNK, INK = "#1f9d6b", "#cf3f3f", "#b9c1cf", "#1d2430"
_CELL_PX, _FRAME_PX = 96, 4
_TITLE_PX, _ROW_TITLE_PX, _MARGIN_PX = 18, 13, 8


class Figure(Protocol):
    """What a result can carry to be drawn."""

    @property
    def title(self) -> str: ...

    def png(self) -> bytes:
        """Returns the figure as an encoded PNG."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bars:
    """One bar a name, in the order given."""

    title: str
    values: Mapping[str, float]
    label: str  # of the axis

    def png(self) -> bytes:
        """Returns the figure as an encoded PNG."""
        canvas, axes = _canvas(self.title, height=1.0 + 0.3 * len(self.values))
        names = list(self.values)
        bars = axes.barh(names, [self.values[name] for name in names], color="#2f6fde")
        axes.bar_label(bars, fmt="%.3f", padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel(self.label)
        return _encoded(canvas)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReliabilityDiagram:
    """Confidence against accuracy in bins, and how much lies in each."""

    title: str
    confidences: np.ndarray  # float [bins], mean of the top probability
    accuracies: np.ndarray  # float [bins]
    counts: np.ndarray  # int [bins]; empty bins are left out

    def png(self) -> bytes:
        """Returns the figure as an encoded PNG."""
        canvas, axes = _canvas(self.title, height=4.5)
        filled = self.counts > 0
        axes.plot([0, 1], [0, 1], color="#b9c1cf", linestyle="--", label="perfect")
        sizes = 20 + 300 * self.counts[filled] / self.counts.sum()
        axes.plot(self.confidences[filled], self.accuracies[filled], color="#2f6fde", zorder=1)
        axes.scatter(
            self.confidences[filled], self.accuracies[filled], s=sizes, color="#2f6fde", label="bins, by count"
        )
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        axes.legend()
        return _encoded(canvas)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Map:
    """Embeddings in the plane by t-SNE (cosine, seeded), coloured by group: at most `most` of them, evenly spread."""

    title: str
    vectors: np.ndarray  # float32 [n, dim], L2-normalised
    groups: Sequence[str]  # one per row; colours and markers distinguish up to 20
    most: int = 1500

    def png(self) -> bytes:
        """Returns the figure as an encoded PNG."""
        from sklearn.manifold import TSNE

        chosen = np.unique(np.linspace(0, len(self.vectors) - 1, min(self.most, len(self.vectors))).astype(int))
        perplexity = min(30.0, max((len(chosen) - 1) / 3, 1.0))
        tsne = TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=0)
        points = tsne.fit_transform(np.asarray(self.vectors)[chosen])
        canvas, axes = _canvas(self.title, height=6.5)
        groups = np.array(self.groups)[chosen]
        for number, group in enumerate(dict.fromkeys(groups.tolist())):
            mask = groups == group
            name = group.replace("$", r"\$")  # text between two dollar signs would be read as a formula
            axes.scatter(*points[mask].T, s=9, color=f"C{number % 10}", marker="ox"[number // 10 % 2], label=name)
        axes.set(xticks=[], yticks=[])
        canvas.legend(markerscale=2, fontsize=8, loc="outside right upper")  # so that it hides no point
        return _encoded(canvas)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridRow:
    """A query and its first results, by position in the set of pictures."""

    query: int
    hits: Sequence[tuple[int, bool | None]]  # (position, right); None: junk, which counts for nothing
    title: str = ""  # above the row, such as what the query shows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Queries, each with its first results: right ones framed green, wrong ones red, junk grey."""

    title: str
    images: ImageSet
    rows: Sequence[GridRow]
    hit_images: ImageSet | None = None  # where the results come from, when not from `images`

    def png(self) -> bytes:
        """Returns the figure as an encoded PNG."""
        num_columns = 1 + max((len(row.hits) for row in self.rows), default=0)
        cell = _CELL_PX + 2 * _FRAME_PX + 4
        head = _ROW_TITLE_PX + 6 if any(row.title for row in self.rows) else 0
        font = ImageFont.load_default(_TITLE_PX)
        title_width = int(font.getlength(self.title)) + 2 * _MARGIN_PX
        top = _TITLE_PX + 2 * _MARGIN_PX
        sheet = Image.new(
            "RGB", (max(cell * num_columns + 12, title_width), top + (head + cell) * len(self.rows)), "white"
        )
        ImageDraw.Draw(sheet).text((_MARGIN_PX, _MARGIN_PX), self.title, fill=INK, font=font)
        for number, row in enumerate(self.rows):
            y = top + number * (head + cell) + head
            ImageDraw.Draw(sheet).text(
                (2, y - head + 3), row.title, fill=INK, font=ImageFont.load_default(_ROW_TITLE_PX)
            )
            self._paste(sheet, self.images, row.query, (0, y), INK)
            for column, (position, right) in enumerate(row.hits, 1):
                place = (column * cell + 12, y)
                colour = JUNK if right is None else RIGHT if right else WRONG
                self._paste(sheet, self.hit_images or self.images, position, place, colour)
        buffer = io.BytesIO()
        sheet.save(buffer, "PNG")
        return buffer.getvalue()

    @staticmethod
    def _paste(sheet: Image.Image, images: ImageSet, position: int, place: tuple[int, int], colour: str) -> None:
        picture, _ = images.open(position)
        picture.thumbnail((_CELL_PX, _CELL_PX), Image.Resampling.BILINEAR)
        x, y = place
        frame = _CELL_PX + 2 * _FRAME_PX
        ImageDraw.Draw(sheet).rectangle((x, y, x + frame - 1, y + frame - 1), outline=colour, width=_FRAME_PX)
        sheet.paste(picture, (x + (frame - picture.width) // 2, y + (frame - picture.height) // 2))


def _canvas(title: str, *, height: float) -> tuple[Canvas, Any]:
    # Not pyplot: that keeps global state, and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(8, height), layout="constrained", dpi=110)
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    axes.set_title(title)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return canvas, axes


def _encoded(canvas: Canvas) -> bytes:
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png")
    return buffer.getvalue()
