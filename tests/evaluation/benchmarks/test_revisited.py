import hashlib
import io
import os
import pickle

import numpy as np
import pytest

from evaluation.benchmarks.revisited import (
    GRADES,
    GroundTruth,
    NormalisedRows,
    QueryTruth,
    precision_at,
    read_ground_truth,
    revisited_metrics,
    roxford,
    rparis,
    trapezoidal_average_precision,
)
from evaluation.metrics.blocks import Stacked
from evaluation.models.encoder import EncoderModel
from evaluation.models.ready import EmbeddingsModel
from evaluation.protocol import Context, Embedded, Unavailable
from evaluation.report.figures import Grid
from pipeline.schema import UserError
from tests.evaluation.builders import FakeEncoder

CONTENT = {
    "imlist": ["a", "b", "c", "d"],
    "qimlist": ["q"],
    "gnd": [{"easy": np.array([1]), "hard": [2], "junk": np.array([], int), "bbx": [1.0, 2.0, np.float64(3), 4]}],
}
# What Python 2 and numpy 1 wrote for {'imlist': ['a'], 'qimlist': ['q'], 'gnd': [{'easy': array([0]), 'hard': [],
# 'junk': [], 'bbx': [1.0, 2.0, 3.0, 4.0]}]}, with protocol 0: bytes as text.
PYTHON_2 = (
    b"(dp0\nS'imlist'\np1\n(lp2\nS'a'\np3\nasS'qimlist'\np4\n(lp5\nS'q'\np6\nasS'gnd'\np7\n(lp8\n(dp9\nS'easy'\np10\n"
    b"cnumpy.core.multiarray\n_reconstruct\np11\n(cnumpy\nndarray\np12\n(I0\ntp13\nS'b'\np14\ntp15\nRp16\n"
    b"(I1\n(I1\ntp17\ncnumpy\ndtype\np18\n(S'i8'\np19\nI0\nI1\ntp20\nRp21\n(I3\nS'<'\np22\nNNNI-1\nI-1\nI0\ntp23\nb"
    b"I00\nS'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00'\np24\ntp25\nbsS'hard'\np26\n(lp27\nsS'junk'\np28\n(lp29\ns"
    b"S'bbx'\np30\n(lp31\nF1.0\naF2.0\naF3.0\naF4.0\nasas."
)


def pickled(content, protocol=2):
    return io.BytesIO(pickle.dumps(content, protocol))


def query(easy=(), hard=(), junk=()):
    return QueryTruth(easy=easy, hard=hard, junk=junk, box=(0, 0, 1, 1))


def slow_grade(similarities, positives, junk):
    """The definitions, one picture of the ranking at a time: average precision, and precision at 1, 5, 10."""
    ranking = sorted(range(len(similarities)), key=lambda position: (-similarities[position], position))
    ranking = [position for position in ranking if position not in junk]
    area, found, last = 0.0, 0, 0
    for seen, position in enumerate(ranking):
        before = found / seen if seen else 1.0
        found += position in positives
        if position in positives:
            area += (before + found / (seen + 1)) / 2 / len(positives)
            last = seen + 1
    at = [sum(position in positives for position in ranking[: min(last, k)]) / min(last, k) for k in (1, 5, 10)]
    return [area, *at]


def test_trapezoids_by_hand():
    # Ranks 0 and 2 of two positives: (1 + 1)/2/2 + (1/2 + 2/3)/2/2 = 1/2 + 7/24 = 19/24.
    assert trapezoidal_average_precision([0, 2], 2) == pytest.approx(19 / 24)
    # A first positive at rank 1: before it precision is 0/1, after it 1/2.
    assert trapezoidal_average_precision([1], 1) == pytest.approx(1 / 4)
    # A second positive that was not ranked adds nothing.
    assert trapezoidal_average_precision([1], 2) == pytest.approx(1 / 8)


def test_precision_at_k_stops_at_the_last_positive():
    # Positives at ranks 0 and 2 (first and third): of the first min(3, 10) = 3, two are positive.
    assert precision_at([0, 2], 10) == pytest.approx(2 / 3)
    assert precision_at([0, 2], 1) == 1.0


def test_grades_by_hand_with_junk_out_of_the_ranking():
    truth = GroundTruth(
        gallery_names=("a", "b", "c", "d"),
        query_names=("q", "r"),
        queries=(query(easy=(1,), hard=(2,), junk=(0,)), query(hard=(3,))),
    )
    # Both rank a, b, d, c.
    gallery = np.array([[0.9], [0.8], [0.1], [0.5]], np.float32)
    values, items = revisited_metrics(np.ones((2, 1), np.float32), gallery, truth)
    # easy: a (junk) and c (hard) leave: b, d -> b first: 1. The second query has no easy positive and leaves the mean.
    assert values["easy.map"] == 1.0 and len(items["easy.map"]) == 1
    # medium: q ranks b, d, c: ranks 0, 2 of 2: 19/24. r ranks a, b, d, c: d at rank 2 of 1: (0/2 + 1/3)/2 = 1/6.
    np.testing.assert_allclose(items["medium.map"], [19 / 24, 1 / 6])
    assert values["medium.map"] == pytest.approx((19 / 24 + 1 / 6) / 2)
    # hard: q ranks d, c: c at rank 1: 1/4. r: 1/6.
    assert values["hard.map"] == pytest.approx((1 / 4 + 1 / 6) / 2)
    assert values["hard.precision_at_1"] == 0.0
    # q: c is 2nd of min(2, 10): 1/2. r: d is 3rd: 1/3.
    assert values["hard.precision_at_10"] == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_a_grade_without_queries_has_no_metric():
    truth = GroundTruth(gallery_names=("a",), query_names=("q",), queries=(query(easy=(0,)),))
    values, items = revisited_metrics(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32), truth)
    assert "hard.map" not in values and len(items["hard.map"]) == 0
    assert values["easy.map"] == values["medium.map"] == 1.0


@pytest.mark.parametrize("num_stated", [20, 90])
@pytest.mark.parametrize(("block_rows", "num_threads"), [(None, 1), (37, 2), (128, 2)])
def test_metrics_equal_the_slow_twin_with_ties_and_junk_and_queries_without_positives(
    num_stated, block_rows, num_threads
):
    random = np.random.default_rng(5)
    # Small integers: exact in float32, and full of ties.
    gallery = random.integers(-2, 3, (300, 4)).astype(np.float32)
    queries = random.integers(-2, 3, (12, 4)).astype(np.float32)
    truths = []
    for number in range(12):
        stated = random.choice(200, num_stated, replace=False).tolist()
        parts = np.split(np.array(stated), np.sort(random.integers(0, num_stated + 1, 2)))
        easy, hard, junk = (tuple(part.tolist()) for part in parts)
        truths.append(query(easy=easy if number else (), hard=hard if number > 1 else (), junk=junk))
    names = tuple(str(number) for number in range(200))
    truth = GroundTruth(gallery_names=names, query_names=names[:12], queries=tuple(truths))
    stacked = Stacked([gallery[:200], gallery[200:].astype(np.float16)])
    values, items = revisited_metrics(queries, stacked, truth, block_rows=block_rows, num_threads=num_threads)
    similarities = queries @ gallery.T
    for grade, (positive_fields, junk_fields) in GRADES.items():
        expected = []
        for one, row in zip(truths, similarities.tolist(), strict=True):
            positives = {position for field in positive_fields for position in getattr(one, field)}
            junk = {position for field in junk_fields for position in getattr(one, field)}
            if positives:
                expected.append(slow_grade(row, positives, junk))
        assert len(expected) < 12
        for number, name in enumerate(("map", "precision_at_1", "precision_at_5", "precision_at_10")):
            np.testing.assert_allclose(items[f"{grade}.{name}"], np.array(expected)[:, number], atol=1e-12)
            assert values[f"{grade}.{name}"] == pytest.approx(np.mean(np.array(expected)[:, number]))


def test_bad_shapes_and_values_are_errors():
    truth = GroundTruth(gallery_names=("a",), query_names=("q",), queries=(query(easy=(0,)),))
    one = np.ones((1, 1), np.float32)
    with pytest.raises(ValueError, match="there are 2 queries"):
        revisited_metrics(np.ones((2, 1), np.float32), one, truth)
    with pytest.raises(ValueError, match="not finite"):
        revisited_metrics(one, one * np.nan, truth)


@pytest.mark.parametrize("protocol", range(6))
def test_a_ground_truth_with_arrays_is_read(protocol):
    truth = read_ground_truth(pickled(CONTENT, protocol))
    assert truth.gallery_names == ("a", "b", "c", "d")
    assert truth.queries == (QueryTruth(easy=(1,), hard=(2,), junk=(), box=(1.0, 2.0, 3.0, 4.0)),)


@pytest.mark.parametrize("protocol", [0, 2])
def test_arrays_of_names_and_of_any_shape_are_read(protocol):
    gnd = [
        {"easy": np.array([[1], [3]], ">i2"), "hard": (), "junk": np.array([[2.0]]), "bbx": np.array([[1, 2, 3, 4]])}
    ]
    content = {"imlist": np.array(["a", "b", "c", "d"]), "qimlist": np.array(["q"], object), "gnd": np.array(gnd)}
    truth = read_ground_truth(pickled(content, protocol))
    assert truth.gallery_names == ("a", "b", "c", "d") and truth.query_names == ("q",)
    assert truth.queries == (QueryTruth(easy=(1, 3), hard=(), junk=(2,), box=(1.0, 2.0, 3.0, 4.0)),)


@pytest.mark.parametrize("protocol", range(4))
def test_the_old_module_names_of_numpy_are_read(protocol):
    old = pickle.dumps(CONTENT, protocol).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core" in old
    assert read_ground_truth(io.BytesIO(old)).queries[0].easy == (1,)


def test_a_pickle_of_python_2_is_read():
    truth = read_ground_truth(io.BytesIO(PYTHON_2))
    assert truth.gallery_names == ("a",) and truth.queries == (
        QueryTruth(easy=(0,), hard=(), junk=(), box=(1.0, 2.0, 3.0, 4.0)),
    )


class Attack:
    def __reduce__(self):
        return os.system, ("touch never",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "content",
    [
        Attack(),
        {**CONTENT, "gnd": Attack()},
        {**CONTENT, "more": {"deep": [{"deeper": (Attack(),)}]}},
        {**CONTENT, "gnd": [{**CONTENT["gnd"][0], "junk": np.array([Attack()])}]},
    ],
)
def test_a_pickle_that_would_run_code_is_refused(content, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"names (posix|nt)\.system"):
        read_ground_truth(pickled(content, protocol))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"c__builtin__\ngetattr\n.",
        b"(i__main__\nAnything\n.",
        b"cnumpy.core.multiarray\nfromfile\n.",
        b"cnumpy\nload\n.",
        b"cnumpy.testing._private.utils\nrunstring\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0cf2py.os.name\x93.",
    ],
)
def test_any_other_name_is_refused(content):
    with pytest.raises(UserError, match="only numpy arrays may stand there"):
        read_ground_truth(io.BytesIO(content))


def test_arrays_of_types_that_hold_pointers_are_refused():
    # A record with an object in it, made from raw bytes, would be read as an address.
    for code in (b"V8", b"O8,i8", b"M8"):
        with pytest.raises(UserError, match="only numbers and text are read"):
            read_ground_truth(io.BytesIO(b"cnumpy\ndtype\n(S'" + code + b"'\nI0\nI1\ntR."))
    raw_objects = pickle.dumps({**CONTENT, "gnd": [{"easy": np.array([1])}]}, 0).replace(b"Vi8", b"VO8")
    with pytest.raises(UserError, match="an array of objects is no list"):
        read_ground_truth(io.BytesIO(raw_objects))


def test_cut_or_wrong_ground_truths_are_errors():
    with pytest.raises(UserError, match="cannot be read"):
        read_ground_truth(io.BytesIO(pickled(CONTENT).getvalue()[:40]))
    with pytest.raises(UserError, match="cannot be read"):
        read_ground_truth(io.BytesIO(b"<html>not found</html>"))
    wrong = {**CONTENT, "gnd": [{**CONTENT["gnd"][0], "hard": [4]}]}
    with pytest.raises(UserError, match=r"q has position \[4\] of 4 pictures"):
        read_ground_truth(pickled(wrong))
    with pytest.raises(UserError, match="has picture 2 twice"):
        read_ground_truth(pickled({**CONTENT, "gnd": [{**CONTENT["gnd"][0], "junk": [2]}]}))
    with pytest.raises(UserError, match="no whole number"):
        read_ground_truth(pickled({**CONTENT, "gnd": [{**CONTENT["gnd"][0], "junk": [0.5]}]}))
    with pytest.raises(UserError, match="1 queries and 2 names"):
        read_ground_truth(pickled({**CONTENT, "qimlist": ["q", "r"]}))


@pytest.mark.parametrize("box", [[3, 2, 1, 4], [1, 4, 3, 2], [1, 2, 1, 4], [1, 2, float("nan"), 4]])
def test_a_box_without_inside_is_an_error(box):
    wrong = {**CONTENT, "gnd": [{**CONTENT["gnd"][0], "bbx": box}]}
    with pytest.raises(UserError, match="q has the box .* left must be below right and top below bottom"):
        read_ground_truth(pickled(wrong))


def test_the_original_ground_truth_is_of_another_version():
    with pytest.raises(UserError, match="no field 'easy'; it is of another version"):
        read_ground_truth(pickled({**CONTENT, "gnd": [{"ok": [1], "junk": [2], "bbx": [0, 0, 1, 1]}]}))


def test_raw_rows_are_normalised_and_bad_ones_named():
    raw = np.array([[3, 4], [0, 2], [0, 0], [np.inf, 1]], np.float16)
    rows = NormalisedRows(raw, "x.npy")
    np.testing.assert_allclose(rows[0:2], [[0.6, 0.8], [0, 1]])
    for wrong in (2, 3):
        with pytest.raises(UserError, match=f"row {wrong} of x.npy has norm"):
            rows[wrong : wrong + 1]


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
    context = Context(model=EmbeddingsModel(folder=ready), data_dir=tmp_path / "data")
    return context, gallery, asked, truths


def test_the_benchmark_with_and_without_distractors_equals_the_slow_twin(tmp_path):
    context, gallery, asked, truths = write_benchmark(tmp_path)
    raw = np.random.default_rng(9).normal(size=(500, 8)).astype(np.float16)
    np.save(tmp_path / "data" / "far.npy", raw)
    with_more = Context(model=context.model, data_dir=context.data_dir, options={"distractors": "far.npy"})
    far = raw.astype(np.float32)
    far /= np.sqrt(np.square(far).sum(axis=1, keepdims=True))
    for one, rows in ((context, gallery), (with_more, np.concatenate([gallery, far]))):
        result = roxford(one)
        similarities = asked.astype(np.float64) @ rows.astype(np.float64).T
        expected = [
            slow_grade(row, {*truth["easy"].tolist(), *truth["hard"].tolist()}, set(truth["junk"].tolist()))
            for row, truth in zip(similarities[:5], truths, strict=False)
        ]
        np.testing.assert_allclose(result.items["medium.map"][:5], [own[0] for own in expected], atol=1e-6)
        assert result.metrics["medium.map"] == pytest.approx(result.items["medium.map"].mean())
        assert result.counts["num_distractors"] == len(rows) - len(gallery) and result.counts["easy.num_queries"] == 70
        assert result.settings == {"num_distractors": len(rows) - len(gallery)}
    assert set(with_more.data) == {"roxford", "roxford_queries", "revisitop1m"}
    assert len(result.metrics) == 12
    grid = result.figures["grid"]
    assert isinstance(grid, Grid) and [row.query for row in grid.rows][:2] == [0, 9] and len(grid.rows) == 8
    first = np.argsort(-(asked[0] @ gallery.T), kind="stable")[:10].tolist()  # no distractors
    good, junk = {*truths[0]["easy"].tolist(), *truths[0]["hard"].tolist()}, truths[0]["junk"].tolist()
    assert grid.rows[0].hits == [(one, None if one in junk else one in good) for one in first]


def test_the_truth_of_the_queries_is_part_of_what_was_measured(tmp_path):
    context, *_ = write_benchmark(tmp_path)
    path = tmp_path / "data" / "roxford5k" / "gnd_roxford5k.pkl"
    roxford(context)
    truths = [context.data["roxford_queries"]["truth"]]
    for field, value in (("bbx", [0.5, 1.5, 20.0, 31.0]), ("junk", [])):
        content = pickle.loads(path.read_bytes())
        content["gnd"][5][field] = value
        path.write_bytes(pickle.dumps(content, 2))
        roxford(context)
        truths.append(context.data["roxford_queries"]["truth"])
    assert len(set(truths)) == 3 and None not in truths


def test_a_folder_without_pictures_is_not_measured(tmp_path):
    context, *_ = write_benchmark(tmp_path)
    model = EncoderModel(encoder=FakeEncoder(), cache_dir=tmp_path / "cache")
    context = Context(model=model, data_dir=context.data_dir)
    with pytest.raises(
        Unavailable, match=r"roxford5k/jpg is not there; get it from http.*, 4,993 pictures and 70 quer"
    ):
        roxford(context)
    (tmp_path / "data" / "roxford5k" / "jpg").mkdir()
    with pytest.raises(UserError, match=r"picture jpg/p\d+.jpg of roxford cannot be read"):
        roxford(context)


def test_distractors_are_known_by_their_ids_and_their_file(tmp_path):
    context, *_ = write_benchmark(tmp_path)
    context = Context(model=context.model, data_dir=context.data_dir, options={"distractors": "far.npy"})
    np.save(tmp_path / "data" / "far.npy", np.ones((3, 8), np.float32))
    roxford(context)
    digest = hashlib.sha256((tmp_path / "data" / "far.npy").read_bytes()).hexdigest()
    assert context.data["revisitop1m"] == {"ids": None, "contents": None, "truth": None, "embeddings": digest}
    (tmp_path / "data" / "far.ids").write_text("a\nb\nc\n")
    roxford(context)
    assert context.data["revisitop1m"]["ids"] == hashlib.sha256(b"a\0b\0c\0").hexdigest()
    (tmp_path / "data" / "far.ids").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"far.ids has 2 ids and far.npy 3 rows"):
        roxford(context)


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
    result = roxford(Context(model=model, data_dir=context.data_dir, options={"distractors": "far"}))
    assert (result.counts["num_distractors"], result.counts["num_unreadable_distractors"]) == (1, 1)


def test_distractors_may_be_a_set_of_ready_embeddings(tmp_path):
    context, *_ = write_benchmark(tmp_path)
    far = np.random.default_rng(3).normal(size=(50, 8)).astype(np.float32)
    np.save(tmp_path / "data" / "far.npy", far)
    by_file = roxford(Context(model=context.model, data_dir=context.data_dir, options={"distractors": "far.npy"}))
    asked = Context(model=context.model, data_dir=context.data_dir, options={"distractors": "revisitop1m"})
    with pytest.raises(Unavailable, match="revisitop1m is not there"):
        roxford(asked)
    np.save(context.model.folder / "revisitop1m.npy", far)
    (context.model.folder / "revisitop1m.ids").write_text("".join(f"{number}.jpg\n" for number in range(50)))
    assert roxford(asked).metrics == by_file.metrics and asked.data["revisitop1m"]["ids"] is not None


def test_queries_are_embedded_by_their_boxes(tmp_path):
    context, *_ = write_benchmark(tmp_path, "rparis6k", "rparis", 6322)
    seen = {}

    class Watched(EmbeddingsModel):
        def embed(self, images):
            seen[images.name] = images.boxes
            return super().embed(images)

    rparis(Context(model=Watched(folder=context.model.folder), data_dir=context.data_dir))
    assert seen["rparis"] is None and seen["rparis_queries"] == [(0.5, 1.5, 20.0, 30.0)] * 70


def test_what_is_missing_or_of_another_version_is_named(tmp_path):
    with pytest.raises(Unavailable, match="roxford5k is not there; get it from"):
        roxford(Context(model=EmbeddingsModel(folder=tmp_path), data_dir=tmp_path))
    (tmp_path / "roxford5k").mkdir()
    with pytest.raises(Unavailable, match="gnd_roxford5k.pkl is not there"):
        roxford(Context(model=EmbeddingsModel(folder=tmp_path), data_dir=tmp_path))
    (tmp_path / "roxford5k" / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(CONTENT))
    with pytest.raises(UserError, match="4 pictures and 1 queries, 4993 and 70 are needed"):
        roxford(Context(model=EmbeddingsModel(folder=tmp_path), data_dir=tmp_path))


def test_bad_distractors_are_named(tmp_path):
    context, *_ = write_benchmark(tmp_path)

    def run(name):
        return roxford(Context(model=context.model, data_dir=context.data_dir, options={"distractors": name}))

    with pytest.raises(Unavailable, match="none.npy is not there"):
        run("none.npy")
    (tmp_path / "data" / "text.npy").write_text("no array")
    with pytest.raises(UserError, match="is no array"):
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
