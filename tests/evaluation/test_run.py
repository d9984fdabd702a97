import json

import numpy as np
import pytest

from evaluation import run
from evaluation.errors import UserError
from tests.evaluation.builders import write_demo, write_evaluation


class FakeClassifier:
    entity_ids = ("E0", "E1", "E2", "E3")
    scale = 1.0

    def __init__(self):
        self.weights = np.eye(4, 3, dtype=np.float32)
        self.weights[3] = 1 / np.sqrt(3)


class FakeEncoder:
    hash = "abc"
    embedding_dim = 3

    def __init__(self, has_text=True, classifier=True):
        self.has_text = has_text
        self.classifier = FakeClassifier() if classifier else None

    def preprocess(self, picture):
        return np.asarray(picture.resize((4, 4)), np.float32) / 255

    def embed_images(self, images):
        return images.mean(axis=(1, 2)) + 1e-3

    def embed_texts(self, texts):
        return np.array([[len(text), text.count("1") + 1, 1] for text in texts], np.float32)


@pytest.fixture
def fake_encoder(monkeypatch):
    monkeypatch.setattr(run, "load_encoder", lambda path: FakeEncoder())


def test_a_demo_without_models_names_what_is_missing_and_exits_0(tmp_path, capsys):
    write_demo(tmp_path)
    assert run.main(["--demo", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert table.count("holds no finished encoder") == 3
    assert (tmp_path / "table.txt").read_text() == table
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["ledger.read"] == 4 and metrics["ledger.kept"] == 2
    assert metrics["seconds.corpus"] == 12.5 and metrics["seconds.total"] >= 12.5
    assert 0 < metrics["retrieval.pixels.seen.map"] <= 1
    assert not any(key.startswith("retrieval.supervised") for key in metrics)


def test_check_goals_exits_1_when_one_is_not_met(tmp_path):
    write_demo(tmp_path)
    assert run.main(["--demo", str(tmp_path), "--check-goals"]) == 1


def test_a_demo_with_models_has_all_their_keys(tmp_path, fake_encoder):
    write_demo(tmp_path)
    for recipe in ("supervised", "multitask"):
        directory = tmp_path / "models" / recipe / "encoder"
        directory.mkdir(parents=True)
        (directory / "encoder.json").write_text("{}")
    assert run.main(["--demo", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {
        "retrieval.multitask.unseen.map",
        "retrieval.supervised.seen.recall_at_1",
        "retrieval.multitask.seen.flags.map",
        "entities.accuracy_at_1",
        "entities.accuracy_at_5",
        "zero_shot.multitask.accuracy_at_1",
        "zero_shot.multitask.unseen.accuracy_at_1",
    } <= set(metrics)
    assert "wrong" in (tmp_path / "report.html").read_text()
    protocols = json.loads((tmp_path / "evaluation" / "protocols.json").read_text())
    assert protocols["retrieval.multitask.seen"]["encoder_hash"] == "abc"
    assert protocols["retrieval.multitask.seen"]["num_queries"] == 8


def test_one_encoder_is_measured_by_the_benchmarks_that_are_asked_for(tmp_path, fake_encoder):
    data, output = tmp_path / "evaluation.parquet", tmp_path / "out"
    write_evaluation(data)
    args = ["--encoder", "x", "--data", str(data), "--output", str(output)]
    assert run.main([*args, "--benchmarks", "retrieval,entities"]) == 0
    metrics = json.loads((output / "metrics.json").read_text())
    assert {"retrieval.seen.map", "retrieval.unseen.map", "entities.accuracy_at_1"} <= set(metrics)
    assert not any(key.startswith("zero_shot") for key in metrics)
    assert "retrieval.seen" in json.loads((output / "protocols.json").read_text())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "give either --demo, or --encoder"),
        (["--demo", "a", "--encoder", "b"], "give either --demo, or --encoder"),
        (["--demo", "nowhere"], "evaluation.parquet is missing; make it with python -m pipeline.demo.corpus"),
        (["--encoder", "b"], "needs --data and --output"),
        (["--encoder", "b", "--data", "d", "--output", "o", "--benchmarks", "gpr"], "'gpr'; name one or more of"),
        (["--encoder", "b", "--data", "d", "--output", "o", "--check-goals"], "--check-goals checks the demo's goals"),
    ],
)
def test_a_users_error_is_one_line_and_exit_status_2(args, words, capsys):
    assert run.main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1


def test_what_an_encoder_cannot_do_is_said(tmp_path, monkeypatch, capsys):
    data = tmp_path / "evaluation.parquet"
    write_evaluation(data)
    args = ["--encoder", "x", "--data", str(data), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(run, "load_encoder", lambda path: FakeEncoder(classifier=False))
    assert run.main(args) == 2
    assert "has no classifier" in capsys.readouterr().err
    monkeypatch.setattr(run, "load_encoder", lambda path: FakeEncoder(has_text=False))
    assert run.main(args) == 2
    assert "has no text function" in capsys.readouterr().err


def test_the_recorded_time_of_the_evaluation_stands(tmp_path):
    assert run.read_seconds(tmp_path, evaluate_sec=7.0) == {"seconds.evaluate": 7.0, "seconds.total": 7.0}
    (tmp_path / "evaluate.json").write_text('{"step": "evaluate", "seconds": 30}')
    assert run.read_seconds(tmp_path, evaluate_sec=7.0)["seconds.total"] == 30
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match="no record of a step"):
        run.read_seconds(tmp_path, evaluate_sec=7.0)


def test_curves_forgive_a_cut_last_line_only(tmp_path):
    path = tmp_path / "a" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert run.read_curves(tmp_path) == {"a": [{"step": 1, "loss": 2.0}]}
    path.write_text('{"step": 1, "lo\n{"step": 2, "loss": 2.0}')
    with pytest.raises(UserError, match="line 1 is no JSON object"):
        run.read_curves(tmp_path)


def test_a_metric_that_is_not_finite_stops_the_run():
    with pytest.raises(UserError, match="metric a is nan"):
        run.check_finite({"a": float("nan")})
