import json

import numpy as np
import pytest

from pipeline.schema import UserError
from trainer import train as train_module
from trainer.configs.base import check, override
from trainer.data import ReadExample, batches, held_out_positions, make_example, make_tokenizer, open_corpus
from trainer.encoder import Preprocessing
from trainer.held_out import image_recall, text_recall
from trainer.train import train


def test_training_reads_every_record_but_those_held_out(write_set, tiny, tmp_path):
    experiment = override(tiny, ["data.batch_size=8", "data.held_out_batches=2"])
    corpus = open_corpus(write_set(tmp_path), experiment)
    example = make_example(corpus, experiment, Preprocessing(image_size_px=8), None)
    iterator = batches(experiment, ReadExample(corpus.records, example, 0), 0, 1)
    read = np.concatenate([next(iterator)["read"] for _ in range(3)])
    iterator.close()
    held_out = held_out_positions(experiment, 40)
    assert len(held_out) == 16 and len(set(read.tolist())) == 24
    assert sorted([*read.tolist(), *held_out.tolist()]) == list(range(40))
    assert not len(held_out_positions(tiny, 40))


def test_the_nearest_image_counts_where_another_shares_a_group():
    angles = np.asarray([0.0, 0.1, 0.5, 0.55, 2.0])
    images = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    # Nearest: 0 -> 1, 1 -> 0, 2 -> 3, 3 -> 2, 4 -> 3. Groups: 0 and 1 share 7; 3 and 4 share 5; 2 is alone.
    groups = np.asarray([[7, -1], [3, 7], [9, -1], [5, -1], [5, -1]], np.int32)
    assert image_recall(images, groups) == 3 / 4  # 0, 1 and 4 are right, 3 is not
    assert image_recall(images, np.arange(5, dtype=np.int32)[:, None]) is None


def test_the_nearest_text_counts_where_it_is_of_a_group_of_the_image():
    images = np.eye(3, dtype=np.float32)
    texts = images[[1, 0, 2]]
    groups = np.asarray([[4, -1], [6, 5], [8, -1]], np.int32)
    # Image 0 is nearest to text 1, of group 5; image 1 to text 0, of group 6; image 2 to text 2.
    assert text_recall(images, texts, groups, np.asarray([6, 5, 8])) == pytest.approx(2 / 3)


@pytest.mark.parametrize("mesh", ["1x1", "2x2"])
def test_a_run_measures_what_it_holds_out(write_set, tiny, tmp_path, monkeypatch, mesh):
    monkeypatch.setattr(train_module, "write_encoder", lambda *_: "")
    changes = ["steps=3", "optimizer.kind=adamw", "data.held_out_batches=1", "log_every=3", "evaluate_every=2"]
    changes += ["optimizer.learning_rate=0", "optimizer.classifier_learning_rate=0", "image.scale_init_by_data=false"]
    experiment = override(tiny, changes)
    train(experiment, data=write_set(tmp_path / "set"), workdir=str(tmp_path / "run"), mesh=mesh)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3]
    names = {name for name in lines[0] if name.startswith("held_out_")}
    assert names == {f"held_out_{name}" for name in ("loss", "classification_loss", "contrastive_loss", *RECALLS)}
    # The parameters never change: the same again, and near the loss of training, of which it is another sample.
    assert [lines[0][name] for name in sorted(names)] == [lines[1][name] for name in sorted(names)]
    assert abs(lines[0]["held_out_loss"] - lines[0]["loss"]) < 0.5
    assert all(0 <= lines[0][f"held_out_{name}"] <= 1 for name in RECALLS)


RECALLS = ("image_recall", "text_recall")


def test_to_measure_needs_records_held_out_and_some_left(write_set, tiny, tmp_path):
    with pytest.raises(UserError, match=r"evaluate_every is 5, but data.held_out_batches is 0; hold out a batch with"):
        check(override(tiny, ["evaluate_every=5"]))
    with pytest.raises(UserError, match="holds 40 images, fewer than data.batch_size 16 and the batches that are held"):
        open_corpus(write_set(tmp_path), override(tiny, ["data.held_out_batches=2"]))


def test_raw_pairs_are_measured_by_their_texts(write_set, tiny, tmp_path):
    experiment = override(tiny, ["loss.classification_weight=0"])
    corpus = open_corpus(write_set(tmp_path, kind="pairs"), experiment)
    tokenizer = make_tokenizer(corpus, experiment)
    example = make_example(corpus, experiment, Preprocessing(image_size_px=8), tokenizer)
    arrays = example(corpus.records[0], np.random.default_rng(0))
    assert arrays["image_groups"].tolist() == [arrays["text_groups"]]
