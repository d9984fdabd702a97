import numpy as np
import pytest

from evaluation import tfds_images
from evaluation.benchmark import Unavailable
from evaluation.errors import UserError
from evaluation.images import LabelledImages
from evaluation.labelled import read_labelled
from tests.evaluation.builders import png


@pytest.fixture
def root(tmp_path):
    for name in ("train/cat/1.png", "train/cat/0.png", "train/ant/2.png", "test/cat/3.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(len(name)))
    return tmp_path


def test_one_folder_is_one_class_in_sorted_order(root):
    train = read_labelled("train", "train", root)
    assert train.class_names == ("ant", "cat")
    assert train.images.ids.tolist() == ["ant/2.png", "cat/0.png", "cat/1.png"]
    assert train.labels.tolist() == [0, 1, 1]


def test_test_pictures_take_the_classes_of_the_training_pictures(root):
    assert read_labelled("test", "test", root, ("ant", "cat")).labels.tolist() == [1]
    with pytest.raises(UserError, match="has the class 'cat', which the training pictures do not"):
        read_labelled("test", "test", root, ("ant", "dog"))


def test_an_empty_class_is_an_error(root):
    (root / "train" / "dog").mkdir()
    with pytest.raises(UserError, match="class 'dog' of .* has no pictures"):
        read_labelled("train", "train", root)


def test_missing_and_flat_folders_are_told_apart(root):
    with pytest.raises(Unavailable, match="val is not there; put one folder a class in it"):
        read_labelled("val", "val", root)
    with pytest.raises(UserError, match="has no folders"):
        read_labelled("cat", "train/cat", root)


def test_classes_of_a_tfds_set_meet_those_of_the_training_pictures_by_name(root, monkeypatch):
    images = read_labelled("train", "train", root).images
    found = LabelledImages(images=images, labels=np.array([0, 1, 1]), class_names=("dog", "cat"))
    monkeypatch.setattr(tfds_images, "read_tfds", lambda name, spec, data_dir: found)
    test = read_labelled("test", "tfds:pets/test", root, ("cat", "dog"))
    assert test.labels.tolist() == [1, 0, 0] and test.class_names == ("cat", "dog")
    with pytest.raises(UserError, match="tfds:pets/test has the class 'dog', which the training pictures do not"):
        read_labelled("test", "tfds:pets/test", root, ("cat", "ant"))
