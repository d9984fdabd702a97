import io

import numpy as np
import pytest
from PIL import Image

from evaluation.report.figures import JUNK, RIGHT, WRONG, Bars, Grid, GridRow, Map, ReliabilityDiagram
from tests.evaluation.builders import pictures


def opened(figure) -> Image.Image:
    picture = Image.open(io.BytesIO(figure.png()))
    assert picture.format == "PNG"
    return picture.convert("RGB")


def colours(picture: Image.Image) -> set[str]:
    return {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in picture.getcolors(1 << 24)}


def test_right_results_are_framed_green_and_wrong_ones_red():
    images = pictures([(f"i{n}", "cat", "n", False, False) for n in range(4)]).image_set("set")
    right = Grid(title="t", images=images, rows=[GridRow(query=0, hits=[(1, True), (2, True)])])
    assert RIGHT in colours(opened(right)) and WRONG not in colours(opened(right))
    none = Grid(title="t", images=images, rows=[])
    mixed = Grid(
        title="t", images=images, rows=[GridRow(query=0, hits=[(1, True), (2, False)]), GridRow(query=3, hits=[])]
    )
    assert {RIGHT, WRONG} <= colours(opened(mixed))
    assert opened(mixed).height - opened(right).height == opened(right).height - opened(none).height > 96


def test_the_title_of_a_row_is_drawn_above_it():
    images = pictures([(f"i{n}", "cat", "n", False, False) for n in range(2)]).image_set("set")
    without, with_title = (
        opened(Grid(title="t", images=images, rows=[GridRow(query=0, title=title, hits=[(1, True)])]))
        for title in ("", "E0 (noto), unseen")
    )
    assert with_title.height > without.height
    # Below the title of the grid, which is 34 pixels high, and above the frame of the query.
    ink = np.asarray(with_title).min(axis=2) < 128
    assert ink[35:50, :100].any()


def test_a_grid_has_its_title_whole():
    images = pictures([("i0", "cat", "n", False, False)]).image_set("set")
    short, long = (Grid(title=title, images=images, rows=[]) for title in ("t", "queries and their first ten " * 3))
    assert opened(long).width > 400 > opened(short).width
    ink = np.asarray(opened(long)).min(axis=2) < 128
    assert ink.any() and not ink[:, -4:].any() and not ink[-4:].any()


def test_junk_is_framed_grey():
    images = pictures([(f"i{n}", "cat", "n", False, False) for n in range(2)]).image_set("set")
    junk = opened(Grid(title="t", images=images, rows=[GridRow(query=0, hits=[(1, None)])]))
    assert JUNK in colours(junk) and not {RIGHT, WRONG} & colours(junk)


@pytest.mark.parametrize(
    "figure",
    [
        Bars(title="t", values={"landmarks": 0.5, "faces": 0.2}, label="mAP"),
        ReliabilityDiagram(
            title="t",
            confidences=np.array([0.1, 0.0, 0.9]),
            accuracies=np.array([0.2, 0.0, 0.7]),
            counts=np.array([3, 0, 5]),
        ),
    ],
)
def test_charts_are_drawn(figure):
    picture = opened(figure)
    assert picture.width > 400 and "#2f6fde" in colours(picture)


def test_a_map_is_the_same_each_time():
    vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    figure = Map(title="t", vectors=vectors, groups=["a", "b"] * 30, most=40)
    assert figure.png() == figure.png()


def test_a_map_shows_no_more_than_its_limit_evenly_spread(monkeypatch):
    mapped = []

    def fit_transform(self, vectors):
        mapped.append(vectors[:, 0].tolist())
        return vectors

    monkeypatch.setattr("sklearn.manifold.TSNE.fit_transform", fit_transform)
    # 4 of positions 0 to 9: 0, 3, 6 and 9.
    vectors = np.stack([np.arange(10.0), np.zeros(10)], axis=1)
    Map(title="t", vectors=vectors, groups=["$a_$", "b"] * 5, most=4).png()  # a name that is no formula
    assert mapped == [[0, 3, 6, 9]]
