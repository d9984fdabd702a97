from pathlib import Path

import numpy as np
import pytest

from evaluation.models.ready import EmbeddingsModel
from pipeline.schema import UserError
from tests.evaluation.builders import Asked, clouds, png, sources


def write_folders(root: Path, num_classes: int = 6, per_class: int = 6) -> Asked:
    """Writes train and test folders, and embeddings in a random order of rows."""
    (root / "embeddings").mkdir()
    for part, seed in (("train", 0), ("test", 1)):
        features, labels = clouds(num_classes * per_class, 12, num_classes, noise=0.3)
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
        ({"log10_c": "0,1,3"}, "must rise in even steps"),
        ({"log10_c": "0,100"}, "must stay within 30 of 0"),
        ({"learning_rates": "0,1"}, "numbers above 0 and of at most 100"),
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
