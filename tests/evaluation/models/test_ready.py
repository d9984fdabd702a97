import numpy as np
import pytest

from evaluation.models.ready import EmbeddingsModel
from evaluation.protocol import Unavailable
from evaluation.sets.images import ImageSet
from pipeline.schema import UserError


def image_set(*ids: str) -> ImageSet:
    return ImageSet(name="set", ids=np.array(ids), read=lambda position: b"", fingerprint="f")


def write(folder, vectors, ids):
    np.save(folder / "set.npy", vectors)
    (folder / "set.ids").write_text("".join(f"{one}\n" for one in ids))


def test_rows_follow_the_ids_and_come_at_length_1(tmp_path):
    write(tmp_path, np.array([[0.0, 2.0], [3.0, 0.0]], np.float16), ["b", "a"])
    embedded = EmbeddingsModel(folder=tmp_path).embed(image_set("a", "b"))
    assert embedded.vectors.tolist() == [[1, 0], [0, 1]] and embedded.vectors.dtype == np.float32
    assert embedded.content_hash is None


@pytest.mark.parametrize(
    ("vectors", "ids", "words"),
    [
        (np.ones((2, 3)), ["a"], "n ids are needed"),
        (np.ones(2), ["a", "b"], "floats"),
        (np.ones((2, 3), int), ["a", "b"], "floats"),
        (np.ones((2, 3)), ["a", "a"], "has the duplicate id 'a'"),
        (np.ones((2, 3)), ["a", "c"], "set.ids lacks 1 ids of set, 'b'; add them"),
        (np.ones((3, 3)), ["a", "b", "c"], "set.ids has 1 ids that set does not, 'c'; leave them out"),
        (np.array([[1.0, 0], [np.inf, 0]], np.float16), ["a", "b"], "b is not finite"),
        (np.array([[1.0, 0], [0, 0]]), ["a", "b"], "b is a zero vector"),
    ],
)
def test_what_does_not_fit_is_an_error(tmp_path, vectors, ids, words):
    write(tmp_path, vectors, ids)
    with pytest.raises(UserError, match=words):
        EmbeddingsModel(folder=tmp_path).embed(image_set("a", "b"))


def test_missing_files_leave_a_benchmark_out(tmp_path):
    with pytest.raises(Unavailable, match="set.npy is not there; write set.npy.* of 1 ids such as 'a'"):
        EmbeddingsModel(folder=tmp_path).embed(image_set("a"))


def test_a_pickle_is_no_array(tmp_path):
    np.save(tmp_path / "set.npy", np.array([{"a": 1}], object), allow_pickle=True)
    (tmp_path / "set.ids").write_text("a\n")
    with pytest.raises(UserError, match="is not an array"):
        EmbeddingsModel(folder=tmp_path).embed(image_set("a"))


def test_only_a_newline_ends_an_id(tmp_path):
    ids = ["a\u2028b", "c\x85", "d"]
    np.save(tmp_path / "set.npy", np.eye(3))
    (tmp_path / "set.ids").write_bytes("\r\n".join(ids).encode())
    assert EmbeddingsModel(folder=tmp_path).embed(image_set(*ids)).vectors.tolist() == np.eye(3).tolist()


def test_ids_are_read_as_people_mean_them(tmp_path):
    np.save(tmp_path / "set.npy", np.eye(2))
    # A byte order mark, carriage returns, blanks, an accent as a character of its own, and blank lines at the end.
    (tmp_path / "set.ids").write_bytes(b"\xef\xbb\xbf" + "a.png \r\ncafe\u0301/b.png\t\r\n\r\n \n".encode())
    embedded = EmbeddingsModel(folder=tmp_path).embed(image_set("caf\u00e9/b.png", "a.png"))
    assert embedded.vectors.tolist() == [[0, 1], [1, 0]]


def test_embeddings_without_ids_are_told(tmp_path):
    model = EmbeddingsModel(folder=tmp_path)
    assert model.known_ids("set") is None
    np.save(tmp_path / "set.npy", np.eye(3))
    with pytest.raises(Unavailable, match="set.ids is not there; write the id of each row of set.npy"):
        model.known_ids("set")


def test_two_pictures_of_one_id_are_refused():
    with pytest.raises(UserError, match="set has the duplicate id a"):
        image_set("a", "a")


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr("evaluation.models.ready.IN_MEMORY_VALUES", 0)


def test_a_large_set_in_order_and_at_length_1_is_read_where_it_lies(tmp_path, large):
    write(tmp_path, np.array([[0.6, 0.8], [1, 0]], np.float32), ["a", "b"])
    vectors = EmbeddingsModel(folder=tmp_path, cache_dir=tmp_path / "cache").embed(image_set("a", "b")).vectors
    assert isinstance(vectors, np.memmap) and vectors.filename == tmp_path / "set.npy"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("at_a_time", [1, 2, 16])
@pytest.mark.parametrize(
    ("dtype", "order"), [(np.float16, "abc"), (np.float32, "abc"), (np.float32, "bca"), (np.float64, "cab")]
)
def test_any_other_large_set_is_put_in_order_in_a_file(tmp_path, large, monkeypatch, dtype, order, at_a_time):
    monkeypatch.setattr("evaluation.models.ready._ROWS_AT_A_TIME", at_a_time)
    rows = {"a": [0, 2], "b": [-3, 0], "c": [3, 4]}
    write(tmp_path, np.array([rows[one] for one in order], dtype), list(order))
    model = EmbeddingsModel(folder=tmp_path, cache_dir=tmp_path / "cache")
    vectors = model.embed(image_set("a", "b", "c")).vectors
    assert isinstance(vectors, np.memmap) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [[0, 1], [-1, 0], [0.6, 0.8]], rtol=1e-6)
    (file,) = (tmp_path / "cache").iterdir()
    file.chmod(0o400)
    written = file.stat().st_mtime_ns
    np.testing.assert_array_equal(model.embed(image_set("a", "b", "c")).vectors, vectors)
    model.embed(image_set("c", "b", "a"))  # another order is another file
    assert file.stat().st_mtime_ns == written and len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize(("value", "words"), [(np.nan, "b is not finite"), (0, "b is a zero vector")])
def test_a_broken_row_of_a_large_set_is_named_and_leaves_no_file(tmp_path, large, value, words):
    write(tmp_path, np.array([[1, 0], [value, 0]], np.float32), ["a", "b"])
    with pytest.raises(UserError, match=words):
        EmbeddingsModel(folder=tmp_path, cache_dir=tmp_path / "cache").embed(image_set("a", "b"))
    assert not list((tmp_path / "cache").iterdir())


def test_the_identity_is_of_the_contents_of_the_sets_that_were_read(tmp_path):
    def identity(vectors, ids="ab"):
        write(tmp_path, np.array(vectors, np.float32), list(ids))
        model = EmbeddingsModel(folder=tmp_path)
        files_hash = model.embed(image_set("a", "b")).embeddings_hash
        assert files_hash is not None
        return model.identity({"set": files_hash})

    first = identity([[1, 0], [0, 1]])
    assert set(first) == {"hash", "sets"} and set(first["sets"]) == {"set"}
    np.save(tmp_path / "more.npy", np.ones((2, 2)))  # that nothing has read
    assert identity([[1, 0], [0, 1]]) == first
    assert identity([[1, 0], [0, 2]]) != first and identity([[1, 0], [0, 1]], "ba") != first
