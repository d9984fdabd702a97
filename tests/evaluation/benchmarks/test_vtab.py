import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds

from evaluation.benchmarks import vtab
from evaluation.models.encoder import EncoderModel
from evaluation.models.fine_tune import Diverged
from evaluation.models.ready import EmbeddingsModel
from evaluation.protocol import Context, Unavailable, hash_of
from evaluation.sets.images import UnreadableImage
from evaluation.sets.tfds import open_tfds
from pipeline.schema import UserError
from tests.evaluation.builders import Asked, sources
from tests.evaluation.sets.tfds_sets import labelled, prepare
from trainer.encoder import Encoder, Preprocessing
from trainer.encoder.write import save_encoder

SIZE_PX = 6
COLOURS = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250], [240, 240, 30]], np.uint8)


def test_a_mean_is_called_mean_only_when_all_tasks_are_there():
    everything = {name: number / 100 for number, name in enumerate(vtab.TASKS)}
    assert vtab.means(everything) == pytest.approx(
        {"natural.mean": 0.03, "specialised.mean": 0.085, "structured.mean": 0.145, "mean": 0.09}
    )
    del everything["clevr_count"], everything["dmlab"]
    some = vtab.means(everything)
    assert set(some) == {"natural.mean", "specialised.mean", "structured.mean_of_6_tasks", "mean_of_17_tasks"}
    assert some["mean_of_17_tasks"] == pytest.approx((sum(range(19)) - 11 - 13) / 1700)
    assert vtab.means({"svhn": 0.5}) == {"natural.mean_of_1_tasks": 0.5, "mean_of_1_tasks": 0.5}


def image_function(params, images):
    return images.reshape(images.shape[0], -1) @ params["kernel"]


@pytest.fixture(scope="module")
def encoder_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder")
    kernel = np.random.default_rng(0).normal(size=(SIZE_PX * SIZE_PX * 3, 8)).astype(np.float32)
    preprocessing = Preprocessing(image_size_px=SIZE_PX, mean=(0.5,) * 3, std=(0.25,) * 3)
    save_encoder(path, image_function=image_function, image_params={"kernel": kernel}, preprocessing=preprocessing)
    return path


@pytest.fixture
def model(encoder_path, tmp_path):
    return EncoderModel(encoder=Encoder.load(encoder_path, batch_size=64), cache_dir=tmp_path)


def coloured(kind, random):
    """A wide picture of one of four colours, with noise."""
    noise = random.integers(-15, 16, (5, 8, 3))
    return np.clip(COLOURS[kind] + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(1)
    named = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=100)}

    def colours(count):
        return [{"image": coloured(n % 4, random), "label": 25 * (n % 4)} for n in range(count)]

    prepare(folder, "cifar100", "3.0.2", named, {"train": colours(60), "test": colours(21)})
    prepare(folder, "svhn_cropped", "3.1.0", named, {"train": colours(60), "test": colours(4)})
    objects = tfds.features.Sequence(
        {
            "size": tfds.features.ClassLabel(num_classes=2),
            "pixel_coords": tfds.features.Tensor(shape=(3,), dtype=np.float32),
        }
    )

    def scenes(count):
        # Colour k has 3 + k objects; the closest is at 8.0, 8.5, 9.0 or 9.5, all of them thresholds.
        return [
            {
                "image": coloured(n % 4, random),
                "objects": [{"size": 0, "pixel_coords": [1, 2, 8 + (n % 4) / 2 + k]} for k in range(3 + n % 4)],
            }
            for n in range(count)
        ]

    splits = {"train": scenes(60), "validation": scenes(20)}
    prepare(folder, "clevr", "3.1.0", {"image": tfds.features.Image(), "objects": objects}, splits)
    masks = {
        "image": tfds.features.Image(shape=(8, 8, 1)),
        "label_orientation": tfds.features.ClassLabel(num_classes=40),
        "label_x_position": tfds.features.ClassLabel(num_classes=32),
    }
    records = []
    for number in range(100):
        mask = np.zeros((8, 8, 1), np.uint8)
        mask[:, 4 * (number % 2) : 4 * (number % 2) + 4] = 1
        records.append({"image": mask, "label_orientation": 39 * (number % 2), "label_x_position": 31 * (number % 2)})
    prepare(folder, "dsprites", "2.0.0", masks, {"train": records})
    return folder


def context(model, data_dir, **options):
    return Asked(model=model, data_dir=data_dir, options=options)


def test_labels_of_a_task_are_made_from_its_set(data_dir):
    distance = vtab.read_task(vtab.TASKS["clevr_distance"], open_tfds("clevr", data_dir), "full")
    assert distance["test"].labels.tolist() == [0, 1, 2, 3] * 5
    count = vtab.read_task(vtab.TASKS["clevr_count"], open_tfds("clevr", data_dir), "full")
    assert count["train"].labels.tolist() == ([0, 1, 2, 3] * 15)[:54]
    assert count["val"].images.ids.tolist() == [f"train:{number}" for number in range(54, 60)]
    assert count["test"].images.fingerprint == distance["test"].images.fingerprint  # embedded once for both


def test_mode_1k_takes_800_and_200_pictures(tmp_path):
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=102)}
    splits = {"train": labelled(805, 102), "validation": labelled(203, 102), "test": labelled(9, 102)}
    prepare(tmp_path, "oxford_flowers102", "2.1.1", features, splits)
    data = vtab.read_task(vtab.TASKS["oxford_flowers102"], open_tfds("oxford_flowers102", tmp_path), "1k")
    names = [one.images.name for one in data.values()]
    assert names == ["vtab_oxford_flowers102_train800", "vtab_oxford_flowers102_val200", "vtab_oxford_flowers102_test"]
    assert data["train"].images.ids.tolist() == [f"train:{number}" for number in range(800)]
    assert data["val"].images.ids.tolist() == [f"validation:{number}" for number in range(200)]
    assert len(data["test"].labels) == 9


def test_a_kitti_picture_without_objects_has_the_last_class(tmp_path):
    objects = tfds.features.Sequence(
        {
            "type": tfds.features.ClassLabel(num_classes=8),
            "location": tfds.features.Tensor(shape=(3,), dtype=np.float32),
        }
    )
    scenes = [[], [{"type": 0, "location": [0, 0, 8]}], [{"type": 3, "location": [0, 0, 8]}]]
    records = [{"image": coloured(0, np.random.default_rng(0)), "objects": one} for one in scenes]
    features = {"image": tfds.features.Image(), "objects": objects}
    prepare(tmp_path, "kitti", "3.3.0", features, {"train": records, "validation": records[:1], "test": records})
    data = vtab.read_task(vtab.TASKS["kitti_distance"], open_tfds("kitti", tmp_path), "full")
    assert data["test"].labels.tolist() == [3, 0, 3]


def test_pixels_of_dsprites_are_made_visible(data_dir):
    data = vtab.read_task(vtab.TASKS["dsprites_x_position"], open_tfds("dsprites", data_dir), "full")
    assert np.unique(np.asarray(data["train"].images.open(0)[0])).tolist() == [0, 255]
    assert sorted(set(data["train"].labels)) == [0, 15]


def test_pictures_are_squares_unless_the_encoders_own_crop_is_asked_for(data_dir):
    prepared = open_tfds("cifar100", data_dir)
    whole = vtab.read_task(vtab.TASKS["cifar100"], prepared, "full", size_px=SIZE_PX)
    assert whole["test"].images.open(0)[0].size == (SIZE_PX, SIZE_PX)
    assert vtab.read_task(vtab.TASKS["cifar100"], prepared, "full")["test"].images.open(0)[0].size == (8, 5)


def test_tasks_with_data_are_scored_and_those_without_are_listed(data_dir, model):
    asked = "cifar100,clevr_distance,dsprites_orientation,sun397"
    result = context(model, data_dir, tasks=asked, mode="full").run("vtab")
    assert result.metrics == {
        "cifar100.accuracy": 1.0,
        "clevr_distance.accuracy": 1.0,
        "dsprites_orientation.accuracy": 1.0,
        "natural.mean_of_1_tasks": 1.0,
        "structured.mean_of_2_tasks": 1.0,
        "mean_of_3_tasks": 1.0,
    }
    (line,) = result.not_measured
    assert line.startswith("sun397: ") and "tfds.builder('sun397/tfds:4.*.*'" in line and "likewise" not in line
    assert len(result.counts["not_asked_for"]) == 15
    one = result.counts["tasks"]["cifar100"]
    assert (one["set"], one["num_train"], one["num_val"], one["num_test"]) == ("cifar100/3.0.2", 54, 6, 21)
    assert result.items["cifar100.accuracy"].tolist() == [1.0] * 21
    assert list(result.figures["tasks"].values) == ["cifar100", "clevr_distance", "dsprites_orientation"]
    assert set(one["chosen"]) == {"c", "val_accuracies", "val_losses", "converged"}
    assert result.settings == {"mode": "full", "method": "linear", "resize": "square"}


def test_ready_embeddings_serve_as_well(data_dir, tmp_path):
    random = np.random.default_rng(0)
    data = vtab.read_task(vtab.TASKS["clevr_count"], open_tfds("clevr", data_dir), "full")
    for part, one in data.items():
        vectors = np.eye(4)[one.labels] + random.normal(size=(len(one.labels), 4)) * 0.05
        np.save(tmp_path / f"vtab_clevr_{part}.npy", vectors.astype(np.float32))
        (tmp_path / f"vtab_clevr_{part}.ids").write_text("".join(f"{image_id}\n" for image_id in one.images.ids))
    model = EmbeddingsModel(folder=tmp_path)
    result = context(model, data_dir, tasks="cifar100,clevr_count", mode="full").run("vtab")
    assert result.metrics["clevr_count.accuracy"] == 1.0
    (line,) = result.not_measured
    assert line.startswith("cifar100: ") and "vtab_cifar100_train.npy is not there" in line
    with pytest.raises(Unavailable, match="ready embeddings cannot be fine-tuned"):
        context(model, data_dir, method="finetune").run("vtab")


def test_fine_tuning_learns_and_says_what_it_chose(data_dir, model):
    options = {"tasks": "cifar100", "mode": "full", "method": "finetune"}
    options |= {"num_steps": "40", "batch_size": "16", "learning_rates": "3e38,1e-60,0.1"}  # the first diverges
    asked = context(model, data_dir, **options)
    result = asked.run("vtab")
    assert result.metrics["cifar100.accuracy"] == 1.0
    chosen = result.counts["tasks"]["cifar100"]["chosen"]
    assert chosen == {"learning_rate": 0.1, "val_accuracies": {3e38: None, 1e-60: pytest.approx(1 / 6), 0.1: 1.0}}
    assert set(sources(result)) == {"vtab_cifar100_train", "vtab_cifar100_val", "vtab_cifar100_test"}
    assert None not in [one.truth for one in result.data]
    assert result.settings["fine_tune"] == {
        "learning_rates": [3e38, 1e-60, 0.1],
        "num_steps": 40,
        "batch_size": 16,
        "warmup_steps": 4,
        "momentum": 0.9,
        "max_gradient_norm": 1.0,
        "seed": 0,
    }


def test_a_rate_that_diverges_on_all_pictures_gives_way_to_the_next(data_dir, model, monkeypatch):
    def tuned(encoder, images, labels, num_classes, config):
        if images.name.endswith("_and_val") and config.learning_rate == 0.1:
            raise Diverged("the loss is inf")
        return SimpleNamespace(predict=lambda images: np.zeros(len(images), int))

    monkeypatch.setattr("evaluation.models.fine_tune.fine_tune", tuned)
    options = {"tasks": "cifar100", "mode": "full", "method": "finetune", "learning_rates": "0.1,0.01"}
    result = context(model, data_dir, **options).run("vtab")
    assert result.counts["tasks"]["cifar100"]["chosen"]["learning_rate"] == 0.01


def test_learning_rates_that_all_diverge_are_an_error(data_dir, model):
    options = {"tasks": "cifar100", "mode": "full", "method": "finetune", "num_steps": "10", "batch_size": "16"}
    with pytest.raises(UserError, match=r"cifar100 \(cifar100/3.0.2\): the loss is not finite at any of .*3e\+38"):
        context(model, data_dir, **options, learning_rates="3e38").run("vtab")


@pytest.fixture
def one_broken(monkeypatch):
    """The third test picture of dSprites cannot be read."""
    read_task = vtab.read_task

    def with_broken(task, prepared, mode, *, size_px=None):
        data = read_task(task, prepared, mode, size_px=size_px)
        if task.set_name == "dsprites":
            images = data["test"].images

            def read(position):
                if position == 2:
                    raise UnreadableImage(f"picture {images.ids[2]} is broken")
                return images.read(position)

            data["test"] = dataclasses.replace(data["test"], images=dataclasses.replace(images, read=read))
        return data

    monkeypatch.setattr(vtab, "read_task", with_broken)


FINE_TUNED = {"method": "finetune", "num_steps": "5", "batch_size": "4", "learning_rates": "0.1"}


@pytest.mark.parametrize("options", [{}, FINE_TUNED])
def test_a_broken_picture_costs_its_task_or_is_left_out_and_counted(data_dir, model, one_broken, options):
    asked = context(model, data_dir, tasks="cifar100,dsprites_orientation", mode="full", **options)
    result = asked.run("vtab")
    assert set(result.items) == {"cifar100.accuracy"} and "mean_of_1_tasks" in result.metrics
    (line,) = result.failed
    assert line.startswith("dsprites_orientation (dsprites/2.0.0): picture train:") and line.endswith("is broken")
    assert {name.split("_")[1] for name in sources(result)} == {"cifar100"}  # as where the task was not asked for
    lenient = dataclasses.replace(asked, model=dataclasses.replace(model, max_unreadable=1))
    result = lenient.run("vtab")
    of_task = result.counts["tasks"]["dsprites_orientation"]
    assert not result.failed and of_task["num_unreadable"] == 1
    assert of_task["num_test"] == len(result.items["dsprites_orientation.accuracy"])
    known = sources(result)["vtab_dsprites_test"]
    assert len(known.contents) == 64 and known.ids != hash_of([])


def test_labels_stay_with_their_pictures_where_some_are_left_out(data_dir, model, one_broken):
    whole = vtab.read_task(vtab.TASKS["dsprites_orientation"], open_tfds("dsprites", data_dir), "full")["test"]
    lenient = context(dataclasses.replace(model, max_unreadable=1), data_dir)
    read, _ = vtab._read(Context(model=lenient.model, data_dir=data_dir), whole, "dsprites_orientation")
    assert len(whole.labels) == 10 and read.labels.tolist() == np.delete(whole.labels, 2).tolist()
    assert read.images.ids.tolist() == np.delete(whole.images.ids, 2).tolist()


def test_a_set_that_is_half_written_costs_its_tasks(data_dir, model, tmp_path):
    shutil.copytree(data_dir / "cifar100", tmp_path / "data" / "cifar100")
    (tmp_path / "data" / "dtd" / "3.0.1").mkdir(parents=True)
    (tmp_path / "data" / "dtd" / "3.0.1" / "dataset_info.json").write_text("{")
    result = context(model, tmp_path / "data", tasks="cifar100,dtd", mode="full").run("vtab")
    (line,) = result.failed
    assert set(result.items) == {"cifar100.accuracy"} and line.startswith("dtd: ") and "cannot be read" in line


def test_a_set_that_is_not_vtabs_costs_its_task_and_is_told_at_once(data_dir, model, capsys):
    result = context(model, data_dir, tasks="cifar100,svhn,sun397,dtd", mode="full").run("vtab")
    assert set(result.items) == {"cifar100.accuracy"}
    assert result.failed == ["svhn (svhn_cropped/3.1.0): the set has 100 classes, VTAB's has 10; prepare that one"]
    assert f"warning: VTAB will lack {result.failed[0]}\n" in capsys.readouterr().err
    (line,) = result.not_measured
    assert line.startswith("dtd: the TFDS set dtd:3.*.* is not prepared") and line.endswith(
        "sun397 (sun397/tfds:4.*.*)"
    )


def test_when_all_tasks_fail_the_benchmark_does(data_dir, model, one_broken):
    with pytest.raises(UserError, match="dsprites_orientation .* is broken"):
        context(model, data_dir, tasks="dsprites_orientation", mode="full").run("vtab")


def test_a_finished_run_of_fine_tuning_is_not_done_again(data_dir, model, monkeypatch):
    def run(**more):
        return context(model, data_dir, tasks="cifar100", mode="full", **FINE_TUNED | more).run("vtab")

    first = run(learning_rates="3e38,0.1")
    # Two to choose, one of which diverged, and one on all pictures.
    assert len(list(model.cache_dir.glob("fine-tuned-*.npy"))) == 3
    monkeypatch.setattr("evaluation.models.fine_tune.fine_tune", lambda *arguments: pytest.fail("it was done again"))
    again = run(learning_rates="3e38,0.1")
    assert again.counts == first.counts
    assert again.items["cifar100.accuracy"].tolist() == first.items["cifar100.accuracy"].tolist()
    with pytest.raises(pytest.fail.Exception, match="it was done again"):
        run(num_steps="6", learning_rates="3e38,0.1")


def test_the_interval_of_a_mean_is_made_of_its_tasks(data_dir, model):
    result = context(model, data_dir, tasks="cifar100,clevr_count", mode="full").run("vtab")
    assert result.means == {
        "natural.mean_of_1_tasks": ["cifar100.accuracy"],
        "structured.mean_of_1_tasks": ["clevr_count.accuracy"],
        "mean_of_2_tasks": ["cifar100.accuracy", "clevr_count.accuracy"],
    }


def test_two_means_of_the_same_tasks_are_one_number_of_two_names():
    asked = vtab.members(["clevr_count", "clevr_distance"])
    assert vtab._same_as(asked) == {"mean_of_2_tasks": "structured.mean_of_2_tasks"}
    one = vtab.members(["cifar100"])
    assert vtab._same_as(one) == dict.fromkeys(["natural.mean_of_1_tasks", "mean_of_1_tasks"], "cifar100.accuracy")
    other = vtab.members(["cifar100", "clevr_count", "clevr_distance"])
    assert vtab._same_as(other) == {"natural.mean_of_1_tasks": "cifar100.accuracy"}


def test_an_unknown_option_is_refused_before_the_first_picture(model, tmp_path):
    with pytest.raises(UserError, match="no option 'num_step', the nearest is 'num_steps'; it has: tasks .*num_steps"):
        context(model, tmp_path, method="finetune", num_step="40").run("vtab")


def test_the_truth_of_a_set_is_stated_for_each_task_on_it_whatever_other_tasks_are_measured(data_dir, model):
    def truths(tasks):
        result = context(model, data_dir, tasks=tasks, mode="full").run("vtab")
        return {one.part: one.truth for one in result.data if one.name == "vtab_clevr_test"}

    count, distance, both = map(truths, ("clevr_count", "clevr_distance", "clevr_count,clevr_distance"))
    assert both == count | distance and None not in both.values()
    assert both["clevr_count"] != both["clevr_distance"]


def test_without_any_data_the_benchmark_is_unavailable(model, tmp_path):
    with pytest.raises(Unavailable, match="none of 19 tasks of VTAB has its data; caltech101: the TFDS set"):
        context(model, tmp_path).run("vtab")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": "cifar10"}, "vtab.tasks is 'cifar10'; it must be one of caltech101, cifar100"),
        ({"tasks": " "}, "vtab.tasks is ''; it must be one of"),
        ({"mode": "2k"}, "vtab.mode is '2k'; it must be one of 1k, full"),
        ({"method": "knn"}, "vtab.method is 'knn'"),
        ({"resize": "no"}, "vtab.resize is 'no'"),
        ({"method": "finetune", "num_steps": "many"}, "vtab.num_steps is 'many'; it must be a whole number"),
        ({"method": "finetune", "learning_rates": "0.1,0"}, "'0.1,0.0'; it must be one or more numbers above 0"),
        ({"tasks": "cifar100"}, r"cifar100 \(cifar100/3.0.2\): the train part has 54 pictures, mode 1k needs 800"),
        ({"tasks": "cifar100,sun397"}, r"cifar100 \(cifar100/3.0.2\): the train part has 54 pictures"),
        ({"tasks": "svhn", "mode": "full"}, "the set has 100 classes, VTAB's has 10; prepare that one"),
    ],
)
def test_an_option_or_a_set_that_does_not_fit_is_an_error(data_dir, model, options, words):
    with pytest.raises(UserError, match=words):
        context(model, data_dir, **options).run("vtab")
