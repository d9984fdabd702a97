import hashlib
import pickle

import numpy as np
import pytest

from evaluation.models.encoder import EncoderModel
from evaluation.models.ready import EmbeddingsModel
from evaluation.protocol import Embedded, Provenance, Unavailable
from evaluation.report.figures import Grid
from pipeline.schema import UserError
from tests.evaluation.builders import Asked, FakeEncoder, sources
from tests.evaluation.metrics.references import slow_grade


def unit(random, shape):
    rows = random.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_benchmark(tmp_path, folder="roxford5k", name="roxford", num_pictures=4993, num_queries=70):
    """Writes a ground truth of the right size and ready embeddings; returns the context and what was written."""
    random = np.random.default_rng(8)
    names = [f"p{number}" for number in range(num_pictures)]
    truths = []
    for _ in range(num_queries):
        stated = random.choice(num_pictures, 60, replace=False)
        truths.append({"easy": stated[:10], "hard": stated[10:30], "junk": stated[30:], "bbx": [0.5, 1.5, 20.0, 30.0]})
    queries = [f"q{number}" for number in range(num_queries)]
    (tmp_path / "data" / folder).mkdir(parents=True)
    content = {"imlist": names, "qimlist": queries, "gnd": truths}
    (tmp_path / "data" / folder / f"gnd_{folder}.pkl").write_bytes(pickle.dumps(content, 2))
    ready = tmp_path / "ready"
    ready.mkdir()
    gallery, asked = unit(random, (num_pictures, 8)), unit(random, (num_queries, 8))
    for one, ids, rows in ((name, names, gallery), (f"{name}_queries", queries, asked)):
        np.save(ready / f"{one}.npy", rows)
        (ready / f"{one}.ids").write_text("\n".join(f"jpg/{id_}.jpg" for id_ in ids))
    context = Asked(model=EmbeddingsModel(folder=ready), data_dir=tmp_path / "data")
    return context, gallery, asked, truths


def test_the_benchmark_with_and_without_distractors_equals_the_slow_twin(tmp_path):
    context, gallery, asked, truths = write_benchmark(tmp_path)
    raw = np.random.default_rng(9).normal(size=(500, 8)).astype(np.float16)
    np.save(tmp_path / "data" / "far.npy", raw)
    with_more = Asked(model=context.model, data_dir=context.data_dir, options={"distractors": "far.npy"})
    far = raw.astype(np.float32)
    far /= np.sqrt(np.square(far).sum(axis=1, keepdims=True))
    for one, rows in ((context, gallery), (with_more, np.concatenate([gallery, far]))):
        result = one.run("roxford")
        similarities = asked.astype(np.float64) @ rows.astype(np.float64).T
        expected = [
            slow_grade(row, {*truth["easy"].tolist(), *truth["hard"].tolist()}, set(truth["junk"].tolist()))
            for row, truth in zip(similarities[:5], truths, strict=False)
        ]
        np.testing.assert_allclose(result.items["medium.map"][:5], [own[0] for own in expected], atol=1e-6)
        assert result.metrics["medium.map"] == pytest.approx(result.items["medium.map"].mean())
        assert result.counts["num_distractors"] == len(rows) - len(gallery) and result.counts["easy.num_queries"] == 70
        assert result.settings == {"num_distractors": len(rows) - len(gallery)}
    assert set(sources(result)) == {"roxford", "roxford_queries", "revisitop1m"}
    assert len(result.metrics) == 12
    grid = result.figures["grid"]
    assert isinstance(grid, Grid) and [row.query for row in grid.rows][:2] == [0, 9] and len(grid.rows) == 8
    first = np.argsort(-(asked[0] @ gallery.T), kind="stable")[:10].tolist()  # no distractors
    good, junk = {*truths[0]["easy"].tolist(), *truths[0]["hard"].tolist()}, truths[0]["junk"].tolist()
    assert grid.rows[0].hits == [(one, None if one in junk else one in good) for one in first]


def test_the_truth_of_the_queries_is_part_of_what_was_measured(tmp_path):
    context, *_ = write_benchmark(tmp_path)
    path = tmp_path / "data" / "roxford5k" / "gnd_roxford5k.pkl"
    truths = [sources(context.run("roxford"))["roxford_queries"].truth]
    for field, value in (("bbx", [0.5, 1.5, 20.0, 31.0]), ("junk", [])):
        content = pickle.loads(path.read_bytes())
        content["gnd"][5][field] = value
        path.write_bytes(pickle.dumps(content, 2))
        truths.append(sources(context.run("roxford"))["roxford_queries"].truth)
    assert len(set(truths)) == 3 and None not in truths


def test_a_folder_without_pictures_is_not_measured(tmp_path):
    context, *_ = write_benchmark(tmp_path)
    model = EncoderModel(encoder=FakeEncoder(), cache_dir=tmp_path / "cache")
    context = Asked(model=model, data_dir=context.data_dir)
    with pytest.raises(
        Unavailable, match=r"roxford5k/jpg is not there; get it from http.*, 4,993 pictures and 70 quer"
    ):
        context.run("roxford")
    (tmp_path / "data" / "roxford5k" / "jpg").mkdir()
    with pytest.raises(UserError, match=r"picture jpg/p\d+.jpg of roxford cannot be read"):
        context.run("roxford")


def test_distractors_are_known_by_their_ids_and_their_file(tmp_path):
    context, *_ = write_benchmark(tmp_path)
    context = Asked(model=context.model, data_dir=context.data_dir, options={"distractors": "far.npy"})
    np.save(tmp_path / "data" / "far.npy", np.ones((3, 8), np.float32))
    result = context.run("roxford")
    digest = hashlib.sha256((tmp_path / "data" / "far.npy").read_bytes()).hexdigest()
    assert sources(result)["revisitop1m"] == Provenance(name="revisitop1m", ids=None, embeddings=digest)
    (tmp_path / "data" / "far.ids").write_text("a\nb\nc\n")
    assert sources(context.run("roxford"))["revisitop1m"].ids == hashlib.sha256(b"a\0b\0c\0").hexdigest()
    (tmp_path / "data" / "far.ids").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"far.ids has 2 ids and far.npy 3 rows"):
        context.run("roxford")


def test_distractors_that_cannot_be_read_are_counted(tmp_path):
    context, *_ = write_benchmark(tmp_path)

    class Partly(EmbeddingsModel):
        def embed(self, images):
            if images.name != "revisitop1m":
                return super().embed(images)
            return Embedded(vectors=np.eye(1, 8, dtype=np.float32), positions=np.array([0]), num_unreadable=1)

    (tmp_path / "data" / "far").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "data" / "far" / name).write_bytes(b"")
    model = Partly(folder=context.model.folder)
    result = Asked(model=model, data_dir=context.data_dir, options={"distractors": "far"}).run("roxford")
    assert (result.counts["num_distractors"], result.counts["num_unreadable_distractors"]) == (1, 1)


def test_distractors_may_be_a_set_of_ready_embeddings(tmp_path):
    context, *_ = write_benchmark(tmp_path)
    far = np.random.default_rng(3).normal(size=(50, 8)).astype(np.float32)
    np.save(tmp_path / "data" / "far.npy", far)
    by_file = Asked(model=context.model, data_dir=context.data_dir, options={"distractors": "far.npy"}).run("roxford")
    asked = Asked(model=context.model, data_dir=context.data_dir, options={"distractors": "revisitop1m"})
    with pytest.raises(Unavailable, match="revisitop1m is not there"):
        asked.run("roxford")
    np.save(context.model.folder / "revisitop1m.npy", far)
    (context.model.folder / "revisitop1m.ids").write_text("".join(f"{number}.jpg\n" for number in range(50)))
    result = asked.run("roxford")
    assert result.metrics == by_file.metrics and sources(result)["revisitop1m"].ids is not None


def test_queries_are_embedded_by_their_boxes(tmp_path):
    context, *_ = write_benchmark(tmp_path, "rparis6k", "rparis", 6322)
    seen = {}

    class Watched(EmbeddingsModel):
        def embed(self, images):
            seen[images.name] = images.boxes
            return super().embed(images)

    Asked(model=Watched(folder=context.model.folder), data_dir=context.data_dir).run("rparis")
    assert seen["rparis"] is None and seen["rparis_queries"] == [(0.5, 1.5, 20.0, 30.0)] * 70


def test_what_is_missing_or_of_another_version_is_named(tmp_path):
    with pytest.raises(Unavailable, match="roxford5k is not there; get it from"):
        Asked(model=EmbeddingsModel(folder=tmp_path), data_dir=tmp_path).run("roxford")
    (tmp_path / "roxford5k").mkdir()
    with pytest.raises(Unavailable, match="gnd_roxford5k.pkl is not there"):
        Asked(model=EmbeddingsModel(folder=tmp_path), data_dir=tmp_path).run("roxford")
    of_query = {"easy": [1], "hard": [2], "junk": [], "bbx": [1.0, 2.0, 3.0, 4.0]}
    content = {"imlist": ["a", "b", "c", "d"], "qimlist": ["q"], "gnd": [of_query]}
    (tmp_path / "roxford5k" / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="4 pictures and 1 queries, 4993 and 70 are needed"):
        Asked(model=EmbeddingsModel(folder=tmp_path), data_dir=tmp_path).run("roxford")


def test_bad_distractors_are_named(tmp_path):
    context, *_ = write_benchmark(tmp_path)

    def run(name):
        return Asked(model=context.model, data_dir=context.data_dir, options={"distractors": name}).run("roxford")

    with pytest.raises(Unavailable, match="none.npy is not there"):
        run("none.npy")
    (tmp_path / "data" / "text.npy").write_text("no array")
    with pytest.raises(UserError, match="is not an array"):
        run("text.npy")
    np.save(tmp_path / "data" / "ints.npy", np.ones((3, 8), int))
    with pytest.raises(UserError, match="of int64; floats"):
        run("ints.npy")
    np.save(tmp_path / "data" / "wide.npy", np.ones((3, 9), np.float32))
    with pytest.raises(UserError, match="have 8, 9 dimensions; embed all with one model"):
        run("wide.npy")
    np.save(tmp_path / "data" / "zero.npy", np.zeros((3, 8), np.float32))
    with pytest.raises(UserError, match="row 0 of .*zero.npy has norm 0"):
        run("zero.npy")
    (tmp_path / "data" / "empty").mkdir()
    with pytest.raises(UserError, match="holds no pictures"):
        run("empty")
