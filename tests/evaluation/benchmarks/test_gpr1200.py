import numpy as np
import pytest

from evaluation.benchmarks.gpr1200 import DOMAINS, categories_of, gpr1200_metrics
from evaluation.metrics.landmarks import gpr1200_average_precisions
from evaluation.models.ready import EmbeddingsModel
from evaluation.protocol import Unavailable
from pipeline.schema import UserError
from tests.evaluation.builders import Asked, sources

NAMES = sorted(f"{category}_{number}.jpg" for category in range(1200) for number in range(10))


def circle():
    """Embeddings in which each category has a direction of its own; cosines of neighbours differ by 1e-5 and more."""
    angles = 2 * np.pi * categories_of(NAMES) / 1200
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def test_a_perfect_embedding_scores_1_in_every_domain():
    values, precisions = gpr1200_metrics(circle(), NAMES)
    assert list(values) == ["map", *(f"{one}.map" for one in ("landmarks", "inat", "sketch", "instre", "sop", "faces"))]
    assert all(value == pytest.approx(1) for value in values.values())
    assert precisions.shape == (12_000,)


def test_a_domain_is_two_hundred_categories():
    # The faces, categories 1000 to 1199, all look the same: ties by position in the names, and no other domain suffers.
    embeddings = circle()
    faces = categories_of(NAMES) >= 1000
    embeddings[faces] = embeddings[faces][0]
    values, precisions = gpr1200_metrics(embeddings, NAMES)
    others = ("landmarks", "inat", "sketch", "instre", "sop")
    assert [values[f"{one}.map"] for one in others] == pytest.approx([1] * 5)
    assert values["faces.map"] == pytest.approx(precisions[faces].mean()) and values["faces.map"] < 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda names: names[:-1], "has 11999 pictures, 9 of them of category 9; it must have 12000, 10 of each"),
        (lambda names: [names[1], names[0], *names[2:]], f"{NAMES[0]} comes after {NAMES[1]}"),
        (lambda names: [names[0], names[0], *names[2:]], f"duplicate file name {NAMES[0]}, each must occur once"),
        (lambda names: [*names[:-1], "zebra.jpg"], "zebra.jpg does not start with a category"),
        (lambda names: sorted([*names[:-1], "1200_0.jpg"]), "category 1200, the last is 1199"),
        (lambda names: sorted([*names[1:], "7_x.jpg"]), "has 12000 pictures, 9 of them of category 0"),
    ],
)
def test_files_that_are_not_gpr1200s_are_named(change, words):
    with pytest.raises(UserError, match=words):
        categories_of(change(NAMES))


def test_bad_embeddings_are_named():
    with pytest.raises(ValueError, match="not finite"):
        gpr1200_average_precisions(np.array([[np.nan], [1.0]]), np.array([0, 0]))
    with pytest.raises(ValueError, match="1 to 2 rows"):
        gpr1200_average_precisions(np.ones((3, 1), np.float32), np.array([0, 0, 1]))
    with pytest.raises(ValueError, match="11999 embeddings"):
        gpr1200_metrics(circle()[:-1], NAMES)


@pytest.mark.parametrize("inner", ["GPR1200", "GPR1200/images"])
def test_the_benchmark_reads_either_layout(tmp_path, inner):
    root = tmp_path / "data" / inner
    root.mkdir(parents=True)
    for name in NAMES:
        (root / name).touch()
    ready = tmp_path / "ready"
    ready.mkdir()
    np.save(ready / "gpr1200.npy", circle().astype(np.float16))
    (ready / "gpr1200.ids").write_text("\n".join(NAMES))
    context = Asked(model=EmbeddingsModel(folder=ready), data_dir=tmp_path / "data")
    result = context.run("gpr1200")
    assert result.metrics["map"] == pytest.approx(result.items["map"].mean()) and len(result.metrics) == 7
    assert result.counts["num_queries"] == 12_000 and result.counts["faces.num_queries"] == 2_000
    for number, domain in enumerate(DOMAINS):
        of_domain = result.items[f"{domain}.map"]
        assert of_domain.tolist() == result.items["map"][2000 * number : 2000 * (number + 1)].tolist()
    assert "gpr1200" in sources(result)
    shuffled = np.random.default_rng(0).permutation(len(NAMES))
    np.save(ready / "gpr1200.npy", circle()[shuffled].astype(np.float16))
    (ready / "gpr1200.ids").write_text("\n".join(np.array(NAMES)[shuffled]))
    without = Asked(model=context.model, data_dir=tmp_path / "elsewhere")
    again = without.run("gpr1200")
    assert again.metrics == result.metrics and sources(again)["gpr1200"].ids == sources(result)["gpr1200"].ids
    (root / NAMES[5]).unlink()
    with pytest.raises(UserError, match="has 11999 pictures"):
        context.run("gpr1200")


def test_missing_data_says_where_to_get_it(tmp_path):
    with pytest.raises(Unavailable, match="get it from https://visual-computing.com"):
        Asked(model=EmbeddingsModel(folder=tmp_path), data_dir=tmp_path).run("gpr1200")
