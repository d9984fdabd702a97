import numpy as np
import pytest

from evaluation.benchmark import Unavailable
from evaluation.errors import UserError
from evaluation.images import ImageSet
from evaluation.models import EmbeddingsModel


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
        (np.ones((2, 3)), ["a", "a"], "names an id twice"),
        (np.ones((2, 3)), ["a", "c"], "lacks 1 ids, 'b' first"),
        (np.ones((3, 3)), ["a", "b", "c"], "has 1 ids that set does not, 'c' first"),
        (np.array([[1.0, 0], [np.inf, 0]], np.float16), ["a", "b"], "b is not finite"),
        (np.array([[1.0, 0], [0, 0]]), ["a", "b"], "b is a zero vector"),
    ],
)
def test_what_does_not_fit_is_an_error(tmp_path, vectors, ids, words):
    write(tmp_path, vectors, ids)
    with pytest.raises(UserError, match=words):
        EmbeddingsModel(folder=tmp_path).embed(image_set("a", "b"))


def test_missing_files_leave_a_benchmark_out(tmp_path):
    with pytest.raises(Unavailable, match="set.npy is not there; write set.npy"):
        EmbeddingsModel(folder=tmp_path).embed(image_set("a"))


def test_a_pickle_is_no_array(tmp_path):
    np.save(tmp_path / "set.npy", np.array([{"a": 1}], object), allow_pickle=True)
    (tmp_path / "set.ids").write_text("a\n")
    with pytest.raises(UserError, match="is no array"):
        EmbeddingsModel(folder=tmp_path).embed(image_set("a"))


def test_two_pictures_of_one_id_are_refused():
    with pytest.raises(UserError, match="the id a stands for two pictures"):
        image_set("a", "a")
