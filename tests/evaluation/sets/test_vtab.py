import collections

import numpy as np
import pytest
import tensorflow as tf

from evaluation.sets import vtab
from evaluation.sets.images import ImageSet
from pipeline.schema import UserError
from tests.evaluation.builders import png


def below(distance):
    return np.nextafter(np.float32(distance), np.float32(0))


def above(distance):
    return np.nextafter(np.float32(distance), np.float32(1000))


def test_clevr_counts_start_at_three_objects():
    assert [vtab.clevr_count(np.zeros(count)) for count in (3, 4, 10)] == [0, 1, 7]


@pytest.mark.parametrize(
    ("closest", "label"),
    [(0.1, 0), (7.9, 0), (8.0, 0), (above(8), 1), (8.5, 1), (above(8.5), 2), (9.0, 2), (above(9), 3), (9.5, 3)]
    + [(above(9.5), 4), (below(10), 4), (10.0, 4), (above(10), 5), (14.0, 5)],
)
def test_a_clevr_distance_that_equals_a_threshold_is_below_it(closest, label):
    assert vtab.clevr_distance(np.array([15.0, closest, 16.0], np.float32)) == label


@pytest.mark.parametrize(
    ("closest", "label"),
    [(-3.5, 0), (0.0, 0), (8.0, 0), (above(8), 1), (20.0, 1), (above(20), 2), (90.0, 2)],
)
def test_a_kitti_distance_that_equals_a_threshold_is_below_it(closest, label):
    assert vtab.kitti_distance(np.array([1, 0]), np.array([95.0, closest], np.float32)) == label


def test_only_cars_vans_and_trucks_are_vehicles_and_without_one_the_class_is_the_last():
    assert vtab.kitti_distance(np.array([3, 2, 7]), np.array([1.0, 30.0, 2.0])) == 2
    assert vtab.kitti_distance(np.array([3, 4, 5, 6, 7]), np.full(5, 3.0)) == 3
    assert vtab.kitti_distance(np.zeros(0), np.zeros(0)) == 3


def test_forty_orientations_make_sixteen_bins_of_two_or_three():
    labels = [vtab.binned(value, num_values=40, num_bins=16) for value in range(40)]
    assert labels[:8] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert labels[-3:] == [14, 15, 15]
    assert [vtab.binned(value, num_values=32, num_bins=16) for value in (0, 1, 2, 3, 31)] == [0, 0, 1, 1, 15]


def test_labels_are_those_of_a_literal_twin_on_random_distances_with_ties():
    random = np.random.default_rng(0)
    for _ in range(300):
        depths = random.choice([7.0, 8.0, 8.25, 8.5, 9.0, 9.5, 10.0, 20.0, 21.0], random.integers(1, 5))
        types = random.integers(0, 8, len(depths))
        thresholds = [0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0]
        assert vtab.clevr_distance(depths) == max(n for n, one in enumerate(thresholds) if one - min(depths) < 0)
        closest = min([depth for depth, kind in zip(depths, types, strict=True) if kind < 3] + [1000.0])
        thresholds = [-100.0, 8.0, 20.0, 999.0]
        assert vtab.kitti_distance(types, depths) == max(n for n, one in enumerate(thresholds) if one - closest < 0)
    for value in range(40):
        assert vtab.binned(value, num_values=40, num_bins=16) == np.floor(np.float32(value) / np.float32(2.5))


def test_the_tasks_are_the_papers():
    groups = collections.Counter(task.group for task in vtab.TASKS.values())
    assert groups == {"natural": 7, "specialised": 4, "structured": 8}
    assert [task.num_classes for task in vtab.TASKS.values()] == (
        [102, 100, 47, 102, 37, 397, 10] + [2, 10, 45, 5] + [8, 6, 6, 4, 16, 16, 18, 9]
    )


@pytest.mark.parametrize(
    ("task", "sizes", "few", "full"),
    [
        (
            "caltech101",
            {"train": 3057, "test": 6084},
            ("train[0:800]", "train[2751:2951]", "test[0:6084]"),
            ("train[0:2751]", "train[2751:3057]", "test[0:6084]"),
        ),
        (
            "oxford_iiit_pet",
            {"train": 3680, "test": 3669},
            ("train[0:800]", "train[2944:3144]", "test[0:3669]"),
            ("train[0:2944]", "train[2944:3680]", "test[0:3669]"),
        ),
        (
            "sun397",
            {"train": 76128, "validation": 10875, "test": 21750},
            ("train[0:800]", "validation[0:200]", "test[0:21750]"),
            ("train[0:76128]", "validation[0:10875]", "test[0:21750]"),
        ),
        (
            "eurosat",
            {"train": 27000},
            ("train[0:800]", "train[16200:16400]", "train[21600:27000]"),
            ("train[0:16200]", "train[16200:21600]", "train[21600:27000]"),
        ),
        (
            "clevr_count",
            {"train": 70000, "validation": 15000, "test": 15000},
            ("train[0:800]", "train[63000:63200]", "validation[0:15000]"),
            ("train[0:63000]", "train[63000:70000]", "validation[0:15000]"),
        ),
        (
            "dsprites_orientation",
            {"train": 737280},
            ("train[0:800]", "train[589824:590024]", "train[663552:737280]"),
            ("train[0:589824]", "train[589824:663552]", "train[663552:737280]"),
        ),
        (
            "smallnorb_azimuth",
            {"train": 24300, "test": 24300},
            ("train[0:800]", "test[0:200]", "test[12150:24300]"),
            ("train[0:24300]", "test[0:12150]", "test[12150:24300]"),
        ),
    ],
)
def test_splits_are_cut_as_the_official_code_cuts_them(task, sizes, few, full):
    cuts = vtab.TASKS[task].cuts
    assert cuts.parts(sizes, "1k") == vtab.Parts(train=few[0], val=few[1], test=few[2])
    assert cuts.parts(sizes, "full") == vtab.Parts(train=full[0], val=full[1], test=full[2])


@pytest.mark.parametrize(
    ("task", "split", "size", "full"),
    [
        # floor(0.8 * 1019) = 815 and floor(0.1 * 1019) = 101; floor(0.9 * 1019) would be 917.
        ("dsprites_orientation", "train", 1019, ("train[0:815]", "train[815:916]", "train[916:1019]")),
        # floor(0.6 * 1003) = 601 and floor(0.2 * 1003) = 200; floor(0.8 * 1003) would be 802.
        ("eurosat", "train", 1003, ("train[0:601]", "train[601:801]", "train[801:1003]")),
        ("resisc45", "train", 1003, ("train[0:601]", "train[601:801]", "train[801:1003]")),
        # TFDS rounds 50 % of 1003, 501.5, to the even 502, and 50 % of 1001, 500.5, to 500.
        ("smallnorb_azimuth", "test", 1003, ("train[0:50]", "test[0:502]", "test[502:1003]")),
        ("smallnorb_azimuth", "test", 1001, ("train[0:50]", "test[0:500]", "test[500:1001]")),
        # floor(0.9 * 1019) = 917.
        ("clevr_count", "train", 1019, ("train[0:917]", "train[917:1019]", "validation[0:7]")),
    ],
)
def test_sizes_that_the_shares_do_not_divide_are_cut_as_the_official_code_cuts_them(task, split, size, full):
    parts = vtab.TASKS[task].cuts.parts({"train": 50, "validation": 7, "test": 9} | {split: size}, "full")
    assert parts == vtab.Parts(train=full[0], val=full[1], test=full[2])


def test_a_set_that_is_not_whole_is_an_error():
    cuts = vtab.TASKS["cifar100"].cuts
    with pytest.raises(UserError, match="the split 'test' is missing, there is train; prepare the set whole"):
        cuts.parts({"train": 50000}, "1k")
    with pytest.raises(UserError, match="the train part has 799 pictures, mode 1k needs 800"):
        cuts.parts({"train": 888, "test": 10}, "1k")
    with pytest.raises(UserError, match="the val part has 199 pictures, mode 1k needs 200; .* vtab.mode=full"):
        cuts.parts({"train": 1990, "test": 10}, "1k")


@pytest.mark.parametrize(("height", "width", "size_px"), [(5, 9, 4), (3, 2, 7), (40, 13, 8), (6, 6, 6), (1, 5, 3)])
def test_squares_are_tensorflows_resize_to_half_a_grey_level(height, width, size_px):
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    expected = tf.image.resize(pixels, [size_px, size_px]).numpy()
    assert np.abs(vtab.square(pixels, size_px) - expected).max() <= 0.5001


def test_squares_are_other_pictures_under_the_same_ids():
    images = ImageSet(name="one", ids=np.array(["a"]), read=lambda n: png(1, 9), fingerprint="f")
    changed = vtab.squares(images, 4)
    np.testing.assert_array_equal(np.asarray(changed.open(0)[0]), vtab.square(np.asarray(images.open(0)[0]), 4))
    assert changed.fingerprint not in (images.fingerprint, vtab.squares(images, 5).fingerprint)
    assert changed.ids.tolist() == ["a"]
