import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from evaluation.metrics.logistic import fit
from evaluation.models.encoder import EncoderModel
from evaluation.models.ready import EmbeddingsModel
from pipeline.schema import UserError
from tests.evaluation.builders import Asked, FakeEncoder, clouds, png, sources


def write_folders(root: Path, num_classes: int = 6, per_class: int = 6) -> Asked:
    """Writes train and test folders, and embeddings in a random order of rows."""
    (root / "embeddings").mkdir()
    num_rows = num_classes * per_class
    both, all_labels = clouds(2 * num_rows, 12, num_classes, noise=0.3)
    for part, seed in (("train", 0), ("test", 1)):
        features, labels = both[seed * num_rows :][:num_rows], all_labels[:num_rows]
        ids = []
        for number, label in enumerate(labels):
            path = root / part / f"class{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(number))
            ids.append(f"class{label}/{number}.png")
        order = np.random.default_rng(seed).permutation(len(ids))
        np.save(root / "embeddings" / f"linear_probe_{part}.npy", features[order])
        (root / "embeddings" / f"linear_probe_{part}.ids").write_text("".join(f"{ids[one]}\n" for one in order))
    return context_of(root)


def context_of(root: Path, **options: str) -> Asked:
    options = {"train": "train", "test": "test", **options}
    return Asked(model=EmbeddingsModel(folder=root / "embeddings"), data_dir=root, options=options)


@pytest.mark.parametrize("method", ["exact", "sgd"])
def test_the_benchmark_runs_on_a_labelled_folder_and_ready_embeddings(tmp_path: Path, method):
    write_folders(tmp_path)
    context = context_of(tmp_path, method=method, num_epochs="3")
    result = context.run("linear_probe")
    assert result.metrics["accuracy_at_1"] > 0.9
    assert result.metrics["accuracy_at_5"] >= result.metrics["accuracy_at_1"]
    assert result.items["accuracy_at_1"].shape == (36,)
    assert result.items["accuracy_at_1"].mean() == result.metrics["accuracy_at_1"]
    assert (result.counts["num_train"], result.counts["num_test"], result.counts["num_classes"]) == (36, 36, 6)
    assert result.settings["method"] == method
    assert set(sources(result)) == {"linear_probe_train", "linear_probe_test"}
    assert None not in [one.truth for one in result.data]
    chosen = result.counts["chosen_c" if method == "exact" else "chosen_learning_rate"]
    assert f"{chosen:.4g}" in result.counts["validation_losses"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "'magic'; it must be one of exact, sgd"),
        ({"seed": "x"}, "linear_probe.seed is 'x'"),
        ({"heldout_share": "1"}, "a number above 0 and below 1"),
        ({"log10_c": "0;1"}, "linear_probe.log10_c is '0;1'"),
        ({"log10_c": "0,1,3"}, "^linear_probe: the grid of .* must rise in even steps"),
        ({"log10_c": "0,100"}, "must stay within 30 of 0"),
        ({"learning_rates": "0,1"}, "numbers above 0 and of at most 100"),
        ({"c": "0"}, "linear_probe.c is '0.0'; it must be a number of at least 1e-30 and of at most 1e.30"),
        ({"c": "1", "method": "sgd"}, "c is 1, which method sgd does not have; leave one of them out"),
        ({"c": "1", "validation": "val"}, "c is 1, so validation=val chooses nothing; leave one of them out"),
        ({"num_epochs": "0"}, "linear_probe.num_epochs is '0'; it must be a whole number of at least 1"),
    ],
)
def test_an_option_that_means_nothing_is_an_error_before_any_data_is_read(tmp_path: Path, options, message):
    with pytest.raises(UserError, match=message):
        context_of(tmp_path, **options).run("linear_probe")


def test_labels_of_one_class_are_an_error_before_anything_is_embedded(tmp_path: Path):
    write_folders(tmp_path, num_classes=1)
    (tmp_path / "embeddings" / "linear_probe_train.npy").unlink()
    with pytest.raises(UserError, match="train has pictures of 1 class, at least 2 are needed"):
        context_of(tmp_path).run("linear_probe")


def test_test_embeddings_of_another_width_are_an_error_before_the_fit(tmp_path: Path):
    write_folders(tmp_path)
    np.save(tmp_path / "embeddings" / "linear_probe_test.npy", np.ones((36, 7), np.float32))
    with pytest.raises(UserError, match="training embeddings have 12 dimensions, the test's 7; embed both with one"):
        context_of(tmp_path).run("linear_probe")


def test_a_class_without_training_pictures_is_an_error_of_the_benchmark(tmp_path: Path):
    context = write_folders(tmp_path)
    for path in (tmp_path / "train" / "class2").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="class2"):
        context.run("linear_probe")


def test_five_classes_have_no_accuracy_at_5(tmp_path: Path):
    write_folders(tmp_path, num_classes=5)
    assert set(context_of(tmp_path, log10_c="0").run("linear_probe").metrics) == {"accuracy_at_1"}


def test_test_pictures_of_fewer_classes_are_scored_among_all(tmp_path: Path):
    context = write_folders(tmp_path)
    embeddings = tmp_path / "embeddings"
    ids = (embeddings / "linear_probe_test.ids").read_text().splitlines()
    kept = [number for number, one in enumerate(ids) if not one.startswith("class2/")]
    np.save(embeddings / "linear_probe_test.npy", np.load(embeddings / "linear_probe_test.npy")[kept])
    (embeddings / "linear_probe_test.ids").write_text("".join(f"{ids[one]}\n" for one in kept))
    for path in (tmp_path / "test" / "class2").iterdir():
        path.unlink()
    (tmp_path / "test" / "class2").rmdir()
    result = context.run("linear_probe")
    assert (result.counts["num_test"], result.counts["num_classes"]) == (30, 6)


def one_picture_per_class(root: Path, **options: str) -> Asked:
    """Training folders of one picture each; the test's embeddings also as those of validation pictures."""
    write_folders(root, num_classes=3)
    embeddings = root / "embeddings"
    ids = (embeddings / "linear_probe_train.ids").read_text().splitlines()
    first = [next(number for number, one in enumerate(ids) if one.startswith(f"class{label}/")) for label in range(3)]
    for path in (root / "train").glob("*/*.png"):
        if path.relative_to(root / "train").as_posix() not in [ids[number] for number in first]:
            path.unlink()
    np.save(embeddings / "linear_probe_train.npy", np.load(embeddings / "linear_probe_train.npy")[first])
    (embeddings / "linear_probe_train.ids").write_text("".join(f"{ids[number]}\n" for number in first))
    for path in (root / "test").glob("*/*.png"):
        other = root / "validation" / path.parent.name / f"v{path.name}"
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(b"validation " + path.read_bytes())
    np.save(embeddings / "linear_probe_validation.npy", np.load(embeddings / "linear_probe_test.npy"))
    ids = (embeddings / "linear_probe_test.ids").read_text().replace("/", "/v")
    (embeddings / "linear_probe_validation.ids").write_text(ids)
    return context_of(root, **options)


def test_one_picture_per_class_needs_validation_pictures_or_a_fixed_c(tmp_path: Path):
    with pytest.raises(UserError, match="each of the 3 classes of train has one picture, .*linear_probe.validation="):
        one_picture_per_class(tmp_path).run("linear_probe")
    with pytest.raises(UserError, match="linear_probe.validation=<folder or tfds:...>$"):
        context_of(tmp_path, method="sgd").run("linear_probe")
    result = context_of(tmp_path, c="10").run("linear_probe")
    assert result.counts["chosen_c"] == 10 and result.counts["validation_accuracies"] == {}
    assert result.settings == {"method": "exact", "c": 10.0}
    train = np.load(tmp_path / "embeddings" / "linear_probe_train.npy")
    labels = [
        int(one[len("class")]) for one in (tmp_path / "embeddings" / "linear_probe_train.ids").read_text().split()
    ]
    unit = (train / np.linalg.norm(train, axis=1, keepdims=True)).astype(np.float32)
    weights, bias = fit(unit, np.array(labels), c=10.0)
    test = np.load(tmp_path / "embeddings" / "linear_probe_test.npy")
    ids = (tmp_path / "embeddings" / "linear_probe_test.ids").read_text().split()
    found = (test / np.linalg.norm(test, axis=1, keepdims=True) @ weights.T + bias).argmax(axis=1)
    right = np.mean([class_ == int(one[len("class")]) for class_, one in zip(found, ids, strict=True)])
    assert result.metrics["accuracy_at_1"] == pytest.approx(right)


@pytest.mark.parametrize("method", ["exact", "sgd"])
def test_validation_pictures_choose_the_setting_and_are_not_trained_on(tmp_path: Path, method):
    options = {"method": method, "num_epochs": "3", "log10_c": "-2,0,2", "validation": "validation"}
    result = one_picture_per_class(tmp_path, **options).run("linear_probe")
    assert (result.counts["num_train"], result.counts["num_validation"], result.counts["num_test"]) == (3, 18, 18)
    assert set(sources(result)) == {"linear_probe_train", "linear_probe_test", "linear_probe_validation"}
    assert result.settings["has_validation"] and "heldout_share" not in result.settings
    if method == "exact":
        # The probe is that of the chosen c on the training pictures alone.
        chosen = str(result.counts["chosen_c"])
        alone = context_of(tmp_path, c=chosen).run("linear_probe")
        np.testing.assert_array_equal(result.items["accuracy_at_1"], alone.items["accuracy_at_1"])
    # The validation pictures are the test's: of the settings that were tried, the chosen one is the best there.
    assert result.metrics["accuracy_at_1"] == pytest.approx(max(result.counts["validation_accuracies"].values()))


@pytest.mark.parametrize("method", ["exact", "sgd"])
def test_validation_pictures_of_wrong_labels_spoil_nothing_but_the_choice(tmp_path: Path, method):
    one_picture_per_class(tmp_path, method=method)
    folder, ids = tmp_path / "validation", tmp_path / "embeddings" / "linear_probe_validation.ids"
    # Class 0 becomes 1, 1 becomes 2, 2 becomes 0: 18 wrong labels, against 3 right ones of the training pictures.
    lines = [f"class{(int(one[len('class')]) + 1) % 3}{one[len('class0') :]}" for one in ids.read_text().split()]
    ids.write_text("".join(f"{one}\n" for one in lines))
    for label in range(3):
        (folder / f"class{label}").rename(folder / f"was{label}")
    for label in range(3):
        (folder / f"was{label}").rename(folder / f"class{(label + 1) % 3}")
    options = {"method": method, "num_epochs": "3", "log10_c": "0,2,4", "validation": "validation"}
    result = context_of(tmp_path, **options).run("linear_probe")
    assert max(result.counts["validation_accuracies"].values()) < 0.2
    assert result.metrics["accuracy_at_1"] > 0.8


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"test": "train"}, "linear_probe.train=train and linear_probe.test=train"),
        ({"validation": "./test/"}, "linear_probe.test=test and linear_probe.validation=./test/"),
        ({"validation": "link"}, "linear_probe.train=train and linear_probe.validation=link"),
        ({"validation": "copy"}, "linear_probe.train=train and linear_probe.validation=copy"),
    ],
)
@pytest.mark.parametrize("is_ready", [False, True])
def test_two_options_that_lead_to_the_same_pictures_are_an_error(tmp_path: Path, options, named, is_ready):
    context = write_folders(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "train")
    shutil.copytree(tmp_path / "train", tmp_path / "copy")
    for suffix in ("npy", "ids"):
        ready = tmp_path / "embeddings" / f"linear_probe_train.{suffix}"
        shutil.copy(ready, ready.with_name(f"linear_probe_validation.{suffix}"))
    if not is_ready:
        context = dataclasses.replace(context, model=EncoderModel(encoder=FakeEncoder(), cache_dir=tmp_path / "cache"))
        # Other pictures than the training's of the same names, as their embeddings are.
        for path in (tmp_path / "test").glob("*/*.png"):
            path.write_bytes(png(100 + int(path.stem)))
    with pytest.raises(UserError) as error:
        dataclasses.replace(context, options={**context.options, **options}).run("linear_probe")
    assert str(error.value).startswith(f"{named} are the same pictures, so ")


def test_other_pictures_of_the_same_names_are_another_set(tmp_path: Path):
    # Ids such as class0/0.png are in both folders.
    assert write_folders(tmp_path).run("linear_probe").counts["num_test"] == 36
