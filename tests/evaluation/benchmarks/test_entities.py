import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from evaluation.benchmarks.entities import classifier_metrics, entity_metrics
from evaluation.metrics.classes import calibration, top_probabilities
from evaluation.protocol import Embedded, Unavailable
from evaluation.report.figures import Map
from pipeline.schema import UserError
from tests.evaluation.builders import Asked, pictures, sources, write_evaluation
from tests.evaluation.metrics.references import literal_order, tied_problem
from tests.evaluation.sets.tfds_sets import plain, prepare


def test_all_metrics_are_those_of_a_literal_twin():
    embeddings, weights, entity_ids, truths = tied_problem()
    image_counts = {one: int(one[1:]) // 2 for one in entity_ids if one != "Q7"}
    result = entity_metrics(
        embeddings, truths, weights, entity_ids, scale=8.0, image_counts=image_counts, tail_below=10, head_from=20
    )
    first_hits: dict[int, list[bool]] = {1: [], 5: []}
    reciprocal, precisions, by_group = [], [], {group: [] for group in ("head", "middle", "tail")}
    for embedding, truth in zip(embeddings, truths, strict=True):
        order = literal_order(embedding, weights, entity_ids)
        for k, hits in first_hits.items():
            hits.append(any(one in truth for one in order[:k]))
        reciprocal.append(1 / min(order.index(one) + 1 for one in truth))
        at = [rank for rank, one in enumerate(order, 1) if one in truth]
        precisions.append(sum(number / rank for number, rank in enumerate(at, 1)) / len(at))
        for one in truth:
            count = image_counts.get(entity_ids[one])
            if count is None:
                continue
            group = "head" if count >= 20 else "tail" if count < 10 else "middle"
            others = [other for other in order if other == one or other not in truth]
            by_group[group].append(others.index(one) + 1)
    expected: dict[str, Any] = {
        "accuracy_at_1": np.mean(first_hits[1]),
        "accuracy_at_5": np.mean(first_hits[5]),
        "mean_reciprocal_rank": np.mean(reciprocal),
        "map": np.mean(precisions),
    }
    for group, ranks in by_group.items():
        expected[f"{group}.accuracy_at_1"] = np.mean([rank <= 1 for rank in ranks])
        expected[f"{group}.accuracy_at_5"] = np.mean([rank <= 5 for rank in ranks])
        expected[f"{group}.mean_reciprocal_rank"] = np.mean([1 / rank for rank in ranks])
        assert result.counts[f"{group}.num_labels"] == len(ranks) > 0
    expected["calibration_error"] = calibration(
        top_probabilities(embeddings, weights, 8.0), np.array(first_hits[1])
    ).error
    assert set(result.metrics) == set(expected)
    for name, value in expected.items():
        assert result.metrics[name] == pytest.approx(value, abs=1e-9), name
    assert sum(result.counts[f"{group}.num_classes"] for group in by_group) == result.counts["num_classes"] - 1 == 59
    assert result.counts["num_classes_without_count"] == 1
    assert set(result.items) == set(result.metrics) - {"calibration_error"}
    for name, values in result.items.items():
        group = name.split(".")[0]
        assert len(values) == result.counts[f"{group}.num_labels"] if group in by_group else len(values) == 40
        assert values.mean() == pytest.approx(result.metrics[name])


def test_counts_of_other_entities_are_an_error():
    embeddings, weights, entity_ids, truths = tied_problem()
    with pytest.raises(UserError, match="none of the 60 classes, .* is among the 2 entities of the vocabulary"):
        entity_metrics(embeddings, truths, weights, entity_ids, image_counts={"X1": 3, "X2": 500})


def test_only_held_out_renderings_of_seen_entities_in_the_vocabulary_are_scored():
    set_ = pictures(
        [
            ("a", "cat", "n", False, False),  # training saw the rendering
            ("b", "cat", "t", True, False),  # scored, right
            ("c", "dog", "t", True, False),  # scored, wrong at 1, right at 5
            ("d", "emu", "t", True, True),  # unseen entity
            ("e", "yak", "t", True, False),  # not in the vocabulary
        ]
    )
    embeddings = np.array([[1, 0], [1, 0], [1, 0], [1, 0], [1, 0]], np.float32)
    result = classifier_metrics(embeddings, set_, np.eye(2, dtype=np.float32), ["cat", "dog"], {"cat": 100, "dog": 99})
    values, counts = result.metrics, result.counts
    assert values["accuracy_at_1"] == 0.5
    assert values["accuracy_at_5"] == 1.0
    assert (values["head.accuracy_at_1"], values["middle.accuracy_at_1"]) == (1.0, 0.0)
    assert (counts["num_pictures"], counts["num_out_of_vocabulary"], counts["num_classes"]) == (2, 1, 2)


def test_nothing_to_score_gives_no_metric():
    set_ = pictures([("a", "cat", "n", False, False)])
    result = classifier_metrics(np.ones((1, 1), np.float32), set_, np.ones((1, 1), np.float32), ["cat"])
    assert result.metrics == {} and result.counts["num_pictures"] == 0


@dataclasses.dataclass(frozen=True)
class Classes:
    weights: np.ndarray
    entity_ids: tuple[str, ...]
    scale: float


class FromPixels:
    """A model that needs no weights: a picture's mean grey level picks a place on a quarter circle; texts likewise."""

    hash = "0" * 64
    preprocessing: dict[str, Any] = {}

    def __init__(self, classifier: Classes | None = None):
        self.classifier = classifier
        self.texts: list[str] = []

    @property
    def encoder(self):
        raise Unavailable("there is no encoder")

    def embed(self, images):
        levels = [float(np.asarray(images.open(position)[0]).mean()) for position in range(len(images))]
        return Embedded(vectors=on_circle(levels), positions=np.arange(len(images)), num_unreadable=0)

    def embed_texts(self, name, texts):
        self.texts = list(texts)
        vectors = on_circle([float(text.split(",")[0]) for text in texts])
        return Embedded(vectors=vectors, positions=np.arange(len(texts)))


def on_circle(levels) -> np.ndarray:
    angles = np.array(levels) / 255 * np.pi / 2
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def write_i2e(data_dir: Path, name: str = "i2e") -> Path:
    """Writes an I2E set of five pictures: of grey level 0, 100, 200, of two entities, and of one that is no class."""
    text = tfds.features.Text()
    records = [
        {"image": plain(level), "image_id": image_id, "entity_ids": ids}
        for level, image_id, ids in [
            (0, "p0", ["E0"]),
            (100, "p1", ["E1", "E9"]),
            (200, "p2", ["E1"]),  # looks like E2
            (200, "p3", ["E2", "E1"]),
            (50, "p4", ["E9"]),
        ]
    ]
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "image_id": text,
        "entity_ids": tfds.features.Sequence(tfds.features.Text()),
    }
    prepare(data_dir, name, "1.0.0", features, {"train": records})
    folder = data_dir / name / "1.0.0"
    (folder / "manifest.json").write_text("{}")
    write_vocabulary(folder / "vocabulary.jsonl", [1, 3, 1])  # its own pictures
    write_vocabulary(data_dir / "training.jsonl", [200, 50, 5])
    return folder


def write_vocabulary(path: Path, image_counts: list[int]) -> None:
    rows = [("E0", "0", "dark"), ("E1", "100", ""), ("E2", "200", "light")]
    path.write_text(
        "".join(
            json.dumps({"class_id": n, "entity_id": i, "name": name, "description": text, "image_count": count}) + "\n"
            for n, ((i, name, text), count) in enumerate(zip(rows, image_counts, strict=True))
        )
    )


CLASSES = Classes(weights=on_circle([0, 100, 200]), entity_ids=("E0", "E1", "E2"), scale=50.0)


def test_the_benchmark_scores_a_held_out_part_of_a_set(tmp_path: Path):
    write_i2e(tmp_path)
    options = {"data": "i2e/1.0.0", "vocabulary": "training.jsonl"}
    context = Asked(model=FromPixels(CLASSES), data_dir=tmp_path, options=options)
    result = context.run("entities")
    # p2 is taken for E2, with E1 second; p3 has both first ranks.
    assert result.metrics["accuracy_at_1"] == 0.75
    assert result.metrics["mean_reciprocal_rank"] == pytest.approx((1 + 1 + 1 / 2 + 1) / 4)
    assert result.metrics["map"] == pytest.approx((1 + 1 + 1 / 2 + 1) / 4)
    assert (result.metrics["head.accuracy_at_1"], result.metrics["tail.accuracy_at_1"]) == (1.0, 1.0)
    assert result.metrics["middle.accuracy_at_1"] == pytest.approx(2 / 3)  # p3's E1 is first without E2
    counts = result.counts
    assert (counts["num_pictures"], counts["num_labels"], counts["num_classes"]) == (4, 5, 3)
    assert (counts["num_out_of_vocabulary"], counts["num_labels_out_of_vocabulary"]) == (1, 2)
    assert [counts[f"{group}.num_classes"] for group in ("head", "middle", "tail")] == [1, 1, 1]
    assert sum(counts["calibration"]["num_pictures"]) == 4
    assert result.model["classifier"]["scale"] == 50.0 and "scale" not in result.settings
    assert {one.name for one in result.data if not one.part} == {"entities"}
    mapped = result.figures["map"]
    assert isinstance(mapped, Map) and mapped.groups == ["0", "100", "100", "100"]  # p3 by its first true class


def test_groups_by_frequency_need_the_counts_of_training(tmp_path: Path):
    folder = write_i2e(tmp_path)

    def measured(**options):
        return Asked(model=FromPixels(CLASSES), data_dir=tmp_path, options={"data": "i2e/1.0.0", **options}).run(
            "entities"
        )

    without = measured()
    assert not any(name.startswith(("head", "middle", "tail")) for name in [*without.metrics, *without.counts])
    assert len(without.not_measured) == 1 and "--option entities.vocabulary=" in without.not_measured[0]
    result = measured(vocabulary="training.jsonl")
    assert result.counts["head.num_classes"] == 1 and not result.not_measured
    # With the same limits, but by other counts: no results to compare.
    other = measured(vocabulary=str(folder / "vocabulary.jsonl"))
    assert sources(other)["training counts"].ids != sources(result)["training counts"].ids
    wider = measured(vocabulary="training.jsonl", tail_below="60")
    assert sources(wider)["training counts"].truth != sources(result)["training counts"].truth


def test_other_labels_of_the_same_pictures_are_another_truth(tmp_path: Path):
    path = tmp_path / "evaluation.parquet"
    write_evaluation(path)
    truths = []
    for _ in range(2):
        context = Asked(model=FromPixels(CLASSES), data_dir=tmp_path, options={"data": path.name})
        truths.append(sources(context.run("entities"))["evaluation"].truth)
        table = pq.read_table(path)
        changed = ["E1" if one == "E0" else one for one in table["entity_id"].to_pylist()]
        pq.write_table(table.set_column(table.schema.get_field_index("entity_id"), "entity_id", [changed]), path)
    assert truths[0] != truths[1] and None not in truths


def test_without_a_classifier_names_and_descriptions_are_the_classes(tmp_path: Path):
    write_i2e(tmp_path)
    model = FromPixels()
    options = {"data": "i2e/1.0.0", "vocabulary": "training.jsonl", "tail_below": "60"}
    result = Asked(model=model, data_dir=tmp_path, options=options).run("entities")
    assert model.texts == ["0, dark", "100", "200, light"]
    assert result.metrics["accuracy_at_1"] == 0.75
    assert (result.settings["classes"], result.settings["scale"]) == ("name, description", 100.0)
    assert result.counts["tail.num_classes"] == 2


def test_a_file_of_pictures_is_scored_on_held_out_renderings_of_seen_entities(tmp_path: Path):
    write_evaluation(tmp_path / "evaluation.parquet")
    classes = Classes(weights=on_circle([0, 127, 255]), entity_ids=("E0", "E1", "E5"), scale=10.0)
    context = Asked(model=FromPixels(classes), data_dir=tmp_path, options={"data": "evaluation.parquet"})
    result = context.run("entities")
    assert (result.counts["num_pictures"], result.counts["num_out_of_vocabulary"]) == (4, 4)  # E0, E1; not E2, E3
    assert not any(name.startswith("head") for name in result.metrics)


def test_a_set_of_unknown_entities_is_an_error(tmp_path: Path):
    write_i2e(tmp_path)
    classes = Classes(weights=on_circle([0]), entity_ids=("Q1",), scale=10.0)
    with pytest.raises(UserError, match="none of 5 pictures .* shows one of the 1 entities"):
        Asked(model=FromPixels(classes), data_dir=tmp_path, options={"data": "i2e/1.0.0"}).run("entities")


def test_a_set_that_is_not_there_is_unavailable(tmp_path: Path):
    with pytest.raises(Unavailable, match="i2e is not there; get it from python -m pipeline.build_i2e"):
        Asked(model=FromPixels(CLASSES), data_dir=tmp_path).run("entities")


def test_a_folder_that_is_no_set_is_an_error(tmp_path: Path):
    (tmp_path / "i2e").mkdir()
    with pytest.raises(UserError, match="holds no finished I2E set"):
        Asked(model=FromPixels(CLASSES), data_dir=tmp_path).run("entities")
    (tmp_path / "i2e" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read as an I2E set"):
        Asked(model=FromPixels(CLASSES), data_dir=tmp_path).run("entities")


def test_no_classifier_and_no_vocabulary_is_an_error(tmp_path: Path):
    write_evaluation(tmp_path / "evaluation.parquet")
    with pytest.raises(UserError, match="no classifier, and there is no vocabulary"):
        Asked(model=FromPixels(), data_dir=tmp_path, options={"data": "evaluation.parquet"}).run("entities")


def test_a_limit_that_is_no_number_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="entities.head_from is 'many'"):
        Asked(model=FromPixels(CLASSES), data_dir=tmp_path, options={"head_from": "many"}).run("entities")
