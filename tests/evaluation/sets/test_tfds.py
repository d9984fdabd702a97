import io
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from evaluation.models.ready import EmbeddingsModel
from evaluation.protocol import Context, Unavailable
from evaluation.sets.images import UnreadableImage
from evaluation.sets.labelled import read_labelled
from evaluation.sets.tfds import open_tfds, read_examples, read_tfds
from pipeline.schema import UserError
from tests.evaluation.sets.tfds_sets import labelled, plain, prepare

CLASSES = ["ant", "bee", "cow"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=CLASSES)}
    splits = {"train": labelled(23, 3), "test": labelled(7, 3, first=100)}
    prepare(folder, "animals", "3.0.2", features, splits, supervised_keys=("image", "label"), num_shards=4)
    prepare(folder, "animals", "3.0.10", features, {"train": labelled(2, 3)}, supervised_keys=("image", "label"))
    prepare(folder, "places", "1.0.0", features, {"test": labelled(3, 3)}, config="small")
    odd = {
        "picture": tfds.features.Tensor(shape=(4, 4, 1), dtype=np.uint8),
        "image": tfds.features.Image(shape=(4, 4, 1)),
        "deep": tfds.features.Image(shape=(4, 4, 1), dtype=np.uint16),
        "deep_array": tfds.features.Tensor(shape=(4, 4), dtype=np.uint16),
        "floats": tfds.features.Image(shape=(4, 4, 1), dtype=np.float32),
        "mask": tfds.features.Tensor(shape=(4, 4, 1), dtype=np.bool_),
        "counts": tfds.features.Tensor(shape=(4, 4, 1), dtype=np.int64),
        "label": tfds.features.ClassLabel(names=CLASSES),
        "things": tfds.features.Sequence(
            {"kind": tfds.features.ClassLabel(num_classes=4), "at": tfds.features.Tensor(shape=(3,), dtype=np.float32)}
        ),
        "text": tfds.features.Text(),
    }
    records = [
        {
            "picture": plain(n, channels=1),
            "image": plain(n % 2, channels=1),
            "deep": plain(n, channels=1).astype(np.uint16) * 257 * 50,
            "deep_array": np.full((4, 4), 129 * n, np.uint16),
            "floats": plain(n, channels=1).astype(np.float32) / 4,
            "mask": plain(n % 2, channels=1).astype(bool),
            "counts": plain(n, channels=1).astype(np.int64),
            "label": -1 if n == 5 else 0,
            "things": [{"kind": 3, "at": [n, 0.5, k]} for k in range(n)],
            "text": "x",
        }
        for n in range(6)
    ]
    prepare(folder, "odd", "1.0.0", odd, {"train": records})
    return folder


def opened(images):
    return [np.asarray(images.open(position)[0]) for position in range(len(images))]


@pytest.mark.parametrize("split", ["train", "test", "train[:80%]", "train[5:19]", "train[-3:]+test[2:4]"])
def test_pictures_labels_and_their_order_are_those_that_tfds_reads(data_dir, split):
    found = read_tfds("animals", f"animals:3.0.2/{split}", data_dir)
    in_file_order = tfds.ReadConfig(interleave_cycle_length=1)
    builder = tfds.builder_from_directory(data_dir / "animals" / "3.0.2")
    expected = list(tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False, read_config=in_file_order)))
    assert found.labels.tolist() == [one["label"] for one in expected]
    np.testing.assert_array_equal(opened(found.images), [one["image"] for one in expected])
    assert found.class_names == tuple(CLASSES)


def test_an_id_counts_in_the_full_split_so_that_slices_agree(data_dir):
    whole = read_tfds("animals", "animals:3.0.2/train", data_dir).images
    assert whole.ids.tolist() == [f"train:{number}" for number in range(23)]
    part = read_tfds("animals", "animals:3.0.2/train[7:9]+test[:1]", data_dir).images
    assert part.ids.tolist() == ["train:7", "train:8", "test:0"]
    assert part.read(1) == whole.read(8)


def test_the_newest_version_counts_unless_one_is_named(data_dir):
    assert open_tfds("animals", data_dir).full_name == "animals/3.0.10"
    assert open_tfds("animals:3.0.2", data_dir).full_name == "animals/3.0.2"
    assert open_tfds("places/small:1.*.*", data_dir).full_name == "places/small/1.0.0"
    assert open_tfds("animals:3.0.2", data_dir).split_sizes == {"train": 23, "test": 7}


def test_pictures_come_as_they_are_encoded(data_dir):
    data = read_tfds("animals", "animals/train", data_dir).images.read(0)
    assert Image.open(io.BytesIO(data)).format == "PNG"


def test_an_array_comes_as_png_and_a_mask_is_made_visible(data_dir):
    arguments = dict(features=("label",), label_of=lambda example: 0, class_names=("one",))
    prepared = open_tfds("odd", data_dir)
    array = read_examples("odd", prepared, "train", image="picture", **arguments)
    np.testing.assert_array_equal(opened(array.images), [np.full((4, 4, 3), n) for n in range(6)])
    mask = read_examples("odd", prepared, "train", brightness=255, **arguments)
    np.testing.assert_array_equal(opened(mask.images), [np.full((4, 4, 3), 255 * (n % 2)) for n in range(6)])
    assert mask.images.fingerprint != read_examples("odd", prepared, "train", **arguments).images.fingerprint
    twice = read_examples("odd", prepared, "train", image="picture", brightness=255, **arguments)
    with pytest.raises(UnreadableImage, match="a pixel is 2, times 255 that is above 255"):
        twice.images.open(2)


def test_labels_are_made_from_any_feature_even_from_empty_lists(data_dir):
    found = read_examples(
        "odd",
        open_tfds("odd", data_dir),
        "train",
        features=("things",),
        label_of=lambda example: int(sum(at[2] for at in example["things"]["at"])),
        class_names=[str(number) for number in range(11)],
    )
    assert found.labels.tolist() == [0, 0, 1, 3, 6, 10]


def test_reading_needs_no_tensorflow(data_dir):
    script = (
        "import sys; from pathlib import Path; from evaluation.sets.tfds import read_tfds; "
        "read_tfds('a', 'animals/train', Path(sys.argv[1])).images.open(0); print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(data_dir)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_fingerprint_follows_split_and_files(data_dir, tmp_path):
    shutil.copytree(data_dir / "animals", tmp_path / "animals")

    def fingerprint(split):
        return read_tfds("animals", f"animals:3.0.2/{split}", tmp_path).images.fingerprint

    before = fingerprint("train")
    assert fingerprint("train") == before
    assert fingerprint("train[:22]") != before
    path = next((tmp_path / "animals" / "3.0.2").glob("*train*00001*"))
    os.utime(path, ns=(1, 1))
    assert fingerprint("train") != before


def test_a_labelled_source_may_be_a_tfds_set(data_dir):
    context = Context(model=EmbeddingsModel(folder=data_dir), data_dir=data_dir)
    found = read_labelled(context, "knn_train", "tfds:animals/train", option="knn.train")
    assert found.labels.tolist() == [0, 1]


def test_a_set_that_is_not_there_is_named_with_the_command_that_prepares_it(data_dir):
    command = "import tensorflow_datasets as tfds; tfds.builder('cifar10:3.*.*', data_dir='"
    with pytest.raises(Unavailable, match=re.escape(command)):
        read_tfds("a", "cifar10:3.*.*/train", data_dir)
    with pytest.raises(Unavailable, match=r"animals:2.\*.\* is not prepared .* \(3.0.2, 3.0.10 is\)"):
        read_tfds("a", "animals:2.*.*/train", data_dir)
    with pytest.raises(Unavailable, match=r"its folder has small: name the config"):
        read_tfds("a", "places/test", data_dir)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("animals", "does not name a split; write <name>/<split>"),
        ("/train", "does not name a split"),
        ("a/b/c/train", "is not the name of a TFDS set"),
        ("animals:3.x/train", "is not the name of a TFDS set"),
        ("animals:3.0/train", r"'3.0' in 'animals:3.0' is not a version"),
        ("animals:3.0.2/dev", r"'dev' is not a split of animals/3.0.2 .*; it has train \(23\), test \(7\)"),
        ("animals:3.0.2/train[:24]", r"'train\[:24\]' is not a split"),
        ("animals:3.0.2/train+train[:1]", "has the duplicate id train:0"),
        ("odd/train", "odd/1.0.0 has 3 pictures and 1 classes per record, one of each is needed"),
    ],
)
def test_a_spec_that_does_not_fit_is_an_error(data_dir, spec, words):
    with pytest.raises(UserError, match=words):
        read_tfds("a", spec, data_dir)


@pytest.mark.parametrize(
    ("image", "features", "words"),
    [
        ("image", ("label",), r"train:5 of odd/1.0.0 has label -1, it must be from 0 to 2; use a split with labels"),
        ("photo", ("label",), "has no feature 'photo'; it has"),
        ("image", ("objects",), "has no feature 'objects'"),
        ("text", ("label",), r"odd/1.0.0 \('text'\) are object, which states no black and white"),
        ("counts", ("label",), r"odd/1.0.0 \('counts'\) are int64, .* prepare them as uint8, uint16, bool, or floats"),
    ],
)
def test_a_record_that_does_not_fit_is_an_error(data_dir, image, features, words):
    with pytest.raises(UserError, match=words):
        read_examples(
            "odd",
            open_tfds("odd", data_dir),
            "train",
            image=image,
            features=features,
            label_of=lambda example: example["label"],
            class_names=CLASSES,
        )


def read_odd(data_dir, image, **options):
    return read_examples(
        "odd",
        open_tfds("odd", data_dir),
        "train[:5]",
        image=image,
        features=("label",),
        label_of=lambda example: example["label"],
        class_names=CLASSES,
        **options,
    ).images


@pytest.mark.parametrize(
    ("image", "levels"),
    [
        ("deep", [0, 50, 100, 150, 200]),  # 257 * 50 n
        ("deep_array", [0, 1, 1, 2, 2]),  # 129 n / 257 = 0, 0.502, 1.004, 1.506, 2.008
        ("floats", [0, 64, 128, 191, 255]),  # n / 4 * 255 = 0, 63.75, 127.5, 191.25, 255; a half rounds up
        ("mask", [0, 255, 0, 255, 0]),
    ],
)
def test_pictures_of_another_type_than_uint8_are_scaled_by_the_range_of_their_type(data_dir, image, levels):
    assert [pixels[0, 0].tolist() for pixels in opened(read_odd(data_dir, image))] == [[level] * 3 for level in levels]


def test_floats_outside_0_to_1_are_refused_by_name(tmp_path):
    features = {
        "image": tfds.features.Tensor(shape=(2, 2, 1), dtype=np.float32),
        "label": tfds.features.ClassLabel(names=CLASSES),
    }
    prepare(
        tmp_path, "bright", "1.0.0", features, {"train": [{"image": np.full((2, 2, 1), 200, np.float32), "label": 0}]}
    )
    images = read_examples(
        "bright",
        open_tfds("bright", tmp_path),
        "train",
        features=("label",),
        label_of=lambda example: example["label"],
        class_names=CLASSES,
    ).images
    with pytest.raises(
        UnreadableImage, match="picture train:0 of bright cannot be read .*floats outside 0 to 1, from 200"
    ):
        images.open(0)


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 2, 5), (4,), (1, 2, 2, 3)])
def test_an_array_of_a_shape_that_is_not_a_pictures_is_refused_by_name(tmp_path, shape):
    features = {
        "image": tfds.features.Tensor(shape=shape, dtype=np.uint8),
        "label": tfds.features.ClassLabel(names=CLASSES),
    }
    prepare(tmp_path, "two", "1.0.0", features, {"train": [{"image": np.zeros(shape, np.uint8), "label": 0}]})
    words = (
        rf"pictures of two/1.0.0 \('image'\) have shape {re.escape(str(list(shape)))}, \[height, width\] or .* needed"
    )
    with pytest.raises(UserError, match=words):
        read_examples(
            "two",
            open_tfds("two", tmp_path),
            "train",
            features=("label",),
            label_of=lambda example: example["label"],
            class_names=CLASSES,
        )


def test_two_channels_that_only_a_record_states_are_refused_by_name(tmp_path):
    features = {
        "image": tfds.features.Tensor(shape=(2, 2, None), dtype=np.uint8),
        "label": tfds.features.ClassLabel(names=CLASSES),
    }
    prepare(tmp_path, "two", "1.0.0", features, {"train": [{"image": np.zeros((2, 2, 2), np.uint8), "label": 0}]})
    images = read_examples(
        "two",
        open_tfds("two", tmp_path),
        "train",
        features=("label",),
        label_of=lambda example: example["label"],
        class_names=CLASSES,
    ).images
    with pytest.raises(
        UnreadableImage, match="picture train:0 of two cannot be read .it has 2 channels, 1, 3 or 4 are"
    ):
        images.open(0)


def test_only_8_bit_pictures_are_multiplied(data_dir):
    with pytest.raises(UserError, match=r"\('deep'\) are uint16, uint8 is needed"):
        read_odd(data_dir, "deep", brightness=255)


def test_a_file_that_is_cut_short_or_missing_is_an_error(data_dir, tmp_path):
    shutil.copytree(data_dir / "animals" / "3.0.2", tmp_path / "animals" / "3.0.2")
    path = next((tmp_path / "animals" / "3.0.2").glob("*train*00001*"))
    found = read_tfds("animals", "animals/train", tmp_path).images
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"00001-of-00004 cannot be read \(record .*prepare the set again"):
        read_tfds("animals", "animals/train", tmp_path)
    path.write_bytes(b"\0" * 2000)
    with pytest.raises(UnreadableImage, match="picture train:7 of animals cannot be read"):
        found.open(7)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read .*No such file"):
        read_tfds("animals", "animals/train", tmp_path)


def test_a_folder_that_tfds_cannot_read_is_an_error(tmp_path):
    (tmp_path / "empty" / "1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be read as a TFDS set"):
        open_tfds("empty", tmp_path)
