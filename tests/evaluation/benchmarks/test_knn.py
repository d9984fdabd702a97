import dataclasses
import hashlib
import shutil

import numpy as np
import pytest

from evaluation.models.ready import EmbeddingsModel
from evaluation.protocol import Context, Unavailable
from evaluation.results import without_small_groups
from evaluation.sets.labelled import read_labelled
from evaluation.sets.listing import list_images
from pipeline.schema import UserError
from tests.evaluation.builders import Asked, sources
from tests.evaluation.metrics.references import unit


def write_sets(tmp_path, *, dim=8):
    """Writes three classes with pictures (empty files) and ready embeddings; returns a context's parts."""
    random = np.random.default_rng(4)
    ready = tmp_path / "ready"
    ready.mkdir()
    centres = unit(random, (3, dim))
    for name, folder, num in (("knn_train", "imagenet/train", 20), ("knn_test", "imagenet/val", 5)):
        root = tmp_path / "data" / folder
        for one in "abc":
            (root / one).mkdir(parents=True)
            for number in range(num):
                (root / one / f"{number}.jpg").touch()
        ids = list_images(root)
        rows = np.stack([centres["abc".index(id_[0])] for id_ in ids]) + 0.05 * random.normal(size=(len(ids), dim))
        np.save(ready / f"{name}.npy", rows)
        (ready / f"{name}.ids").write_text("\n".join(ids))
    return EmbeddingsModel(folder=ready), tmp_path / "data"


def test_the_benchmark_reads_class_folders(tmp_path):
    model, data_dir = write_sets(tmp_path)
    result = Asked(model=model, data_dir=data_dir, options={"k": "1,10", "temperature": "0.03"}).run("knn")
    assert result.metrics == {"1.accuracy_at_1": 1.0, "10.accuracy_at_1": 1.0}
    numbers = {"num_train": 60, "num_queries": 15, "num_classes": 3, "num_unreadable": 0, "num_unread_files": 0}
    assert result.counts == numbers | {"train": "imagenet/train", "test": "imagenet/val"}
    # Where the pictures lie is no part of the protocol.
    assert result.settings == {"temperature": 0.03}
    assert result.items["10.accuracy_at_1"].shape == (15,)
    # Ready embeddings need no pictures, only ids.
    without = Asked(model=model, data_dir=tmp_path, options={"k": "1,10", "temperature": "0.03"}).run("knn")
    np.testing.assert_array_equal(without.items["10.accuracy_at_1"], result.items["10.accuracy_at_1"])
    assert (without.counts["train"], without.counts["test"]) == ("knn_train.ids", "knn_test.ids")


def test_a_copy_of_the_training_pictures_is_refused(tmp_path):
    model, data_dir = write_sets(tmp_path)
    shutil.copytree(data_dir / "imagenet" / "train", data_dir / "copy")
    for suffix in ("npy", "ids"):
        shutil.copy(model.folder / f"knn_train.{suffix}", model.folder / f"knn_test.{suffix}")
    with pytest.raises(UserError, match="^knn.train=imagenet/train and knn.test=copy are the same pictures"):
        Asked(model=model, data_dir=data_dir, options={"k": "1", "test": "copy"}).run("knn")


def test_the_number_of_neighbours_is_no_group_so_that_few_test_pictures_show_a_number(tmp_path):
    model, data_dir = write_sets(tmp_path)
    result = Asked(model=model, data_dir=data_dir, options={"k": "1"}).run("knn")
    four = dataclasses.replace(result, items={name: values[:4] for name, values in result.items.items()})
    shown, too_few = without_small_groups(four)
    assert shown.metrics == {"1.accuracy_at_1": 1.0} and not too_few


def test_results_state_the_labels_they_were_measured_against(tmp_path):
    model, data_dir = write_sets(tmp_path)
    context = Asked(model=model, data_dir=data_dir, options={"k": "1"})
    found = sources(context.run("knn"))
    test = read_labelled(Context(model=model, data_dir=data_dir), "knn_test", "imagenet/val", option="knn.test")
    assert found["knn_test"].truth == hashlib.sha256(test.truth).hexdigest()
    assert found["knn_train"].truth not in (None, found["knn_test"].truth)


def test_labels_of_one_class_and_a_class_without_pictures_are_errors_before_anything_is_embedded(tmp_path):
    import tensorflow_datasets as tfds

    from tests.evaluation.sets.tfds_sets import labelled, prepare

    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["ant", "bee", "cow"])}
    splits = {"train": labelled(5, 3), "test": labelled(3, 3)}
    prepare(tmp_path, "animals", "1.0.0", features, splits, supervised_keys=("image", "label"))

    def run(train):
        options = {"train": f"tfds:animals/{train}", "test": "tfds:animals/test", "k": "1"}
        return Asked(model=EmbeddingsModel(folder=tmp_path / "none"), data_dir=tmp_path, options=options).run("knn")

    with pytest.raises(UserError, match=r"train\[3:4\] has pictures of 1 class, at least 2 are needed"):
        run("train[3:4]")
    with pytest.raises(UserError, match="class cow of .* has 0 training pictures .1 of 3 classes has none"):
        run("train[:2]")
    with pytest.raises(Unavailable, match="knn_train.npy is not there"):
        run("train")


def test_bad_options_and_sets_are_named(tmp_path):
    model, data_dir = write_sets(tmp_path)

    def run(**options):
        return Asked(model=model, data_dir=data_dir, options=options).run("knn")

    with pytest.raises(UserError, match="k is 200, the training pictures are 60"):
        run()
    for k in ("ten", "", "0", "5,5"):
        with pytest.raises(UserError, match="knn.k is"):
            run(k=k)
    for temperature in ("warm", "0", "-1", "nan", "inf"):
        with pytest.raises(UserError, match="knn.temperature is"):
            run(k="1", temperature=temperature)
    with pytest.raises(UserError, match="find themselves"):
        run(k="1", test="imagenet/train")
    (data_dir / "link").symlink_to(data_dir / "imagenet" / "train")
    for same in ("./imagenet/train/", "link"):
        with pytest.raises(UserError, match=f"^knn.train=imagenet/train and knn.test={same} are the same pictures"):
            run(k="1", test=same)
    with pytest.raises(Unavailable, match="elsewhere is not there"):
        run(k="1", train="elsewhere")
    for name in ("one", "other"):
        (data_dir / name / "a").mkdir(parents=True)
        (data_dir / name / "a" / "0.jpg").touch()
    with pytest.raises(UserError, match="one has pictures of 1 class, at least 2"):
        run(k="1", train="one", test="other")


def test_embeddings_of_another_width_are_named(tmp_path):
    model, data_dir = write_sets(tmp_path)
    np.save(model.folder / "knn_test.npy", np.ones((15, 7), np.float32))
    with pytest.raises(UserError, match="have 8 dimensions, the test's 7"):
        Asked(model=model, data_dir=data_dir, options={"k": "1"}).run("knn")
