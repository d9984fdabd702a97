import numpy as np
import pytest

from evaluation.models.ready import EmbeddingsModel
from evaluation.protocol import Context, Unavailable
from evaluation.sets import tfds as tfds_images
from evaluation.sets.images import LabelledImages, UnreadableImage, folder_images
from evaluation.sets.labelled import check_training_classes, read_labelled
from pipeline.schema import UserError
from tests.evaluation.builders import png


@pytest.fixture
def root(tmp_path):
    for name in ("train/cat/1.png", "train/cat/0.png", "train/ant/2.png", "test/cat/3.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(len(name)))
    return tmp_path


def context(root):
    return Context(model=EmbeddingsModel(folder=root / "ready"), data_dir=root)


def test_ids_of_ready_embeddings_stand_for_a_folder_that_is_not_there(root):
    there = read_labelled(context(root), "train", "train", option="x.y")
    (root / "ready").mkdir()
    (root / "ready" / "train.ids").write_text("cat/1.png\nant/2.png\ncat/0.png\n")
    (root / "train").rename(root / "elsewhere")
    found = read_labelled(context(root), "train", "train", option="x.y")
    assert found.images.ids.tolist() == there.images.ids.tolist() and found.truth == there.truth
    with pytest.raises(UserError, match="train.ids has the class 'ant', which the training pictures do not"):
        read_labelled(context(root), "train", "train", ("cat", "dog"), option="x.y")
    with pytest.raises(UnreadableImage, match="picture ant/2.png of train cannot be read .only its embedding is here"):
        found.images.open(0)
    (root / "ready" / "train.ids").write_text("cat/1.png\nant\n")
    with pytest.raises(UserError, match="train.ids has the id 'ant'; without pictures, ids must be <class>/<file>"):
        read_labelled(context(root), "train", "train", option="x.y")
    (root / "ready" / "train.ids").write_text("/data/cat/1.png\n/data/ant/2.png\n")
    with pytest.raises(UserError, match="train.ids has the id '/data/ant/2.png'"):
        read_labelled(context(root), "train", "train", option="x.y")
    (root / "ready" / "train.ids").write_text("")
    with pytest.raises(UserError, match="train.ids has no ids"):
        read_labelled(context(root), "train", "train", option="x.y")
    with pytest.raises(Unavailable, match="other is not there; .* ready embeddings are none.npy and none.ids"):
        read_labelled(context(root), "none", "other", option="x.y")


def test_one_folder_is_one_class_in_sorted_order(root):
    train = read_labelled(context(root), "train", "train", option="x.y")
    assert train.class_names == ("ant", "cat")
    assert train.images.ids.tolist() == ["ant/2.png", "cat/0.png", "cat/1.png"]
    assert train.labels.tolist() == [0, 1, 1]


def test_test_pictures_take_the_classes_of_the_training_pictures(root):
    assert read_labelled(context(root), "test", "test", ("ant", "cat"), option="x.y").labels.tolist() == [1]
    with pytest.raises(UserError, match="has the class 'cat', which the training pictures do not"):
        read_labelled(context(root), "test", "test", ("ant", "dog"), option="x.y")


def test_an_empty_class_is_an_error(root):
    (root / "train" / "dog").mkdir()
    with pytest.raises(UserError, match="class 'dog' of .* has no pictures"):
        read_labelled(context(root), "train", "train", option="x.y")


def test_missing_and_flat_folders_are_told_apart(root):
    words = (
        r"val is not there; get ImageNet from https://\S+ and put one folder per class in it, .* with "
        "--option knn.test="
    )
    with pytest.raises(Unavailable, match=words):
        read_labelled(context(root), "val", "val", option="knn.test")
    with pytest.raises(UserError, match="has no folders"):
        read_labelled(context(root), "cat", "train/cat", option="x.y")


def test_classes_of_a_tfds_set_meet_those_of_the_training_pictures_by_name(root, monkeypatch):
    images = read_labelled(context(root), "train", "train", option="x.y").images
    found = LabelledImages(images=images, labels=np.array([0, 1, 1]), class_names=("dog", "cat"))
    monkeypatch.setattr(tfds_images, "read_tfds", lambda name, spec, data_dir: found)
    test = read_labelled(context(root), "test", "tfds:pets/test", ("cat", "dog"), option="x.y")
    assert test.labels.tolist() == [1, 0, 0] and test.class_names == ("cat", "dog")
    with pytest.raises(UserError, match="tfds:pets/test has the class 'dog', which the training pictures do not"):
        read_labelled(context(root), "test", "tfds:pets/test", ("cat", "ant"), option="x.y")


def test_a_tfds_split_without_pictures_is_an_error(root, monkeypatch):
    images = folder_images("none", root, [])
    found = LabelledImages(images=images, labels=np.zeros(0, int), class_names=("dog", "cat"))
    monkeypatch.setattr(tfds_images, "read_tfds", lambda name, spec, data_dir: found)
    with pytest.raises(UserError, match=r"tfds:pets/test\[:0\] has 0 pictures, at least 1 is needed"):
        read_labelled(context(root), "test", "tfds:pets/test[:0]", option="x.y")


def test_training_pictures_need_two_classes_and_every_class_a_picture():
    check_training_classes(np.array([1, 0, 1]), ("ant", "bee"), "here")
    with pytest.raises(UserError, match="here has pictures of 1 class, at least 2 are needed"):
        check_training_classes(np.array([1, 1]), ("ant", "bee"), "here")
    with pytest.raises(UserError, match=r"class ant of here has 0 training pictures \(1 of 3 classes has none\)"):
        check_training_classes(np.array([1, 2]), ("ant", "bee", "cow"), "here")


def test_hidden_folders_are_no_classes_and_what_is_not_read_is_counted(root, capsys):
    for name in ("train/.ipynb_checkpoints/x.png", "train/cat/.ipynb_checkpoints/x.png", "train/cat/9.heic"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(png(1))
    train = read_labelled(context(root), "train", "train", option="x.y")
    assert train.images.ids.tolist() == ["ant/2.png", "cat/0.png", "cat/1.png"] and train.class_names == ("ant", "cat")
    assert train.num_unread_files == 1
    assert "1 file below" in capsys.readouterr().err
    (root / "train" / "heic").mkdir()
    (root / "train" / "heic" / "1.heic").touch()
    with pytest.raises(
        UserError, match="class 'heic' of .* has no pictures, only .heic, which is not read, at least 1"
    ):
        read_labelled(context(root), "train", "train", option="x.y")


def test_classes_meet_however_their_accents_are_spelled(root):
    for folder, name in (("train", "cafe\u0301"), ("test", "caf\u00e9")):
        (root / folder / name).mkdir()
        (root / folder / name / "1.png").write_bytes(png(1))
    train = read_labelled(context(root), "train", "train", option="x.y")
    assert train.class_names == ("ant", "caf\u00e9", "cat") and train.labels.tolist() == [0, 1, 2, 2]
    test = read_labelled(context(root), "test", "test", train.class_names, option="x.y")
    assert test.labels.tolist() == [1, 2]


def test_pictures_beside_the_class_folders_are_reported_as_not_read(root, capsys):
    for name in ("8.png", "cat/9.heic"):
        (root / "train" / name).touch()
    train = read_labelled(context(root), "train", "train", option="x.y")
    assert train.images.ids.tolist() == ["ant/2.png", "cat/0.png", "cat/1.png"]
    assert train.num_unread_files == 2  # one beside the folders, one HEIC
    assert "train has 1 pictures beside the class folders, which are not read" in capsys.readouterr().err
