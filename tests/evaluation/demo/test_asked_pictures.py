"""Links with pictures against links by text alone, on pairs that the encoder has not seen."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.demo.asked_pictures import picture_cases, trained_shards
from evaluation.demo.labels import PairTruth, TrueMention
from pipeline.schema import UserError


def truth(entity_id, half="measure"):
    mention = TrueMention(start=0, end=4, entity_id=entity_id, kind="flag", ambiguous=True, has_context=True)
    return PairTruth(picture_entity_id="E0", kind="flag", mentions=(mention,), half=half)


def row(image_id, shard, chosen, by_text, *, compared, similarity):
    candidate = {
        "entity_id": "E1", "prior": 1.0, "similarity": similarity, "evidence": {"seen": 0.0, "compared": compared}
    }  # fmt: skip
    link = {"start": 0, "end": 4, "chosen": chosen, "by_text": by_text, "candidates": [candidate]}
    return {"image_id": image_id, "shard": shard, "linked": [link]}


def write(folder, rows):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    return folder


def test_only_pairs_that_nothing_was_fitted_to_or_trained_on_are_measured(tmp_path):
    rows = [
        row("a", "new.tar", "E1", None, compared=1.0, similarity=0.5),  # found by the picture alone
        row("b", "new.tar", "E1", "E1", compared=0.0, similarity=0.4),
        row("c", "new.tar", None, None, compared=0.0, similarity=None),
        row("d", "old.tar", None, None, compared=1.0, similarity=0.5),  # the encoder has seen it
        row("e", "new.tar", None, None, compared=1.0, similarity=0.5),  # the linker was fitted to it
    ]
    truths = {one: truth("E1", half="fit" if one == "e" else "measure") for one in "abcde"}
    cases = picture_cases(truths, write(tmp_path / "annotations", rows), frozenset(["old.tar"]))
    # Of a, b and c, pictures make 2 right, and the text 1.
    assert cases["labels.picture.ambiguous_accuracy"] == (2, 3)
    assert cases["labels.by_text.ambiguous_accuracy"] == (1, 3)
    assert cases["labels.picture.refused"] == (1, 3) and cases["labels.by_text.refused"] == (2, 3)
    assert cases["labels.picture.asked"] == (1, 3)
    # The pictures of a and b were opened, that of a because of doubt.
    assert cases["labels.picture.opened_for_doubt"] == (1, 2)


def test_an_encoder_that_saw_all_shards_leaves_nothing_to_measure(tmp_path):
    rows = [row("a", "old.tar", None, None, compared=1.0, similarity=0.5)]
    assert picture_cases({"a": truth("E1")}, write(tmp_path / "x", rows), frozenset(["old.tar"])) == {}


def test_annotations_without_the_choice_by_text_are_refused(tmp_path):
    rows = [row("a", "new.tar", None, None, compared=1.0, similarity=0.5)]
    del rows[0]["linked"][0]["by_text"]
    with pytest.raises(UserError, match=r"mentions have no 'by_text'; make them with python -m pipeline\.build_i2e"):
        picture_cases({"a": truth("E1")}, write(tmp_path / "x", rows), frozenset())


def test_the_shards_that_were_trained_on_stand_in_the_manifest(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"inputs": [{"path": "/somewhere/pairs-00000.tar"}]}))
    assert trained_shards(path) == {"pairs-00000.tar"}
    path.write_text('{"inputs": 3}')
    with pytest.raises(UserError, match="'inputs' is not a list of objects with a 'path'"):
        trained_shards(path)
