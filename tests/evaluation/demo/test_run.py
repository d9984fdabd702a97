import json

import pytest

from evaluation.demo import run
from pipeline.schema import UserError
from tests.evaluation.builders import FakeEncoder, write_demo


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


def test_counts_of_the_corpus_are_metrics_and_a_broken_manifest_is_an_error(tmp_path):
    path = tmp_path / "manifest.json"
    assert run.read_corpus_counts(path) == {}
    counts = {"pairs": 9, "ambiguous_names": 3, "pictures_by_kind": {"emoji": 4}, "pairs_by_noise": {"named": 5}}
    path.write_text(json.dumps({"counts": counts}))
    assert run.read_corpus_counts(path) == {
        "corpus.pairs": 9, "corpus.ambiguous_names": 3, "corpus.named_texts": 5
    }  # fmt: skip
    path.write_text(json.dumps({"counts": 3}))
    with pytest.raises(UserError, match="is not the manifest of a corpus"):
        run.read_corpus_counts(path)


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
    # 2 of 6 unseen entities are logos, in two held-out renderings: 4 queries, too few for a number.
    assert not any(".unseen.logos." in key for key in metrics)
    protocols = json.loads((tmp_path / "evaluation" / "protocols.json").read_text())
    assert protocols["retrieval.multitask"]["encoder_hash"] == "abc"
    assert protocols["retrieval.multitask"]["num_items"]["seen.flags.map"] == 12
    assert protocols["retrieval.multitask"]["too_few_queries"]["unseen.logos.map"] == 4
    assert protocols["retrieval.multitask"]["seen.num_queries"] == 36


def test_a_users_error_is_one_line_and_exit_status_2(capsys):
    assert run.main(["--demo", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "evaluation.parquet is missing; make it with python -m pipeline.demo.corpus" in error


def test_a_report_that_cannot_be_written_is_one_line_and_exit_status_2(tmp_path, capsys):
    write_demo(tmp_path)
    (tmp_path / "report.html").mkdir()
    assert run.main(["--demo", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --demo ") and "cannot be written (" in error and error.count("\n") == 1


def test_groups_by_frequency_go_by_the_counts_of_the_sets_vocabulary(tmp_path, fake_encoder):
    write_demo(tmp_path)
    encoder = tmp_path / "models" / "supervised" / "encoder"
    encoder.mkdir(parents=True)
    (encoder / "encoder.json").write_text("{}")
    rows = [{"entity_id": f"E{n}", "name": f"name {n}", "image_count": count} for n, count in enumerate((30, 15, 5))]
    (tmp_path / "i2e" / "vocabulary.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run.main(["--demo", str(tmp_path)]) == 0
    counts = json.loads((tmp_path / "evaluation" / "protocols.json").read_text())["entities.supervised"]
    # Head from 20 and tail below 10 pictures; the vocabulary lacks the classifier's E3.
    assert [counts[f"{group}.num_classes"] for group in ("head", "middle", "tail")] == [1, 1, 1]


def test_the_recorded_time_of_the_evaluation_stands(tmp_path):
    assert run.read_seconds(tmp_path, evaluate_sec=7.0) == {"seconds.evaluate": 7.0, "seconds.total": 7.0}
    (tmp_path / "evaluate.json").write_text('{"step": "evaluate", "seconds": 30}')
    assert run.read_seconds(tmp_path, evaluate_sec=7.0)["seconds.total"] == 30
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match="not the record of a step"):
        run.read_seconds(tmp_path, evaluate_sec=7.0)


def test_seconds_in_which_two_steps_ran_count_once(tmp_path):
    def record(step, seconds, spans):
        (tmp_path / f"{step}.json").write_text(json.dumps({"step": step, "seconds": seconds, "spans": spans}))

    (tmp_path / "setup.json").write_text('{"step": "setup", "seconds": 90}')
    record("kb", 14.0, [[100.0, 114.0]])
    record("pairs", 12.0, [[110.0, 118.0], [300.0, 304.0]])  # stopped, and resumed later
    record("card", 2.0, [[111.0, 113.0]])
    record("evaluate", 30.0, [[304.0, 334.0]])
    # 90 + (100 to 118) + (300 to 334)
    assert run.read_seconds(tmp_path, evaluate_sec=7.0)["seconds.total"] == 90 + 18 + 34


def test_curves_forgive_a_cut_last_line_only(tmp_path):
    path = tmp_path / "a" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert run.read_curves(tmp_path) == {"a": [{"step": 1, "loss": 2.0}]}
    path.write_text('{"step": 1, "lo\n{"step": 2, "loss": 2.0}')
    with pytest.raises(UserError, match="line 1 is not a JSON object"):
        run.read_curves(tmp_path)
