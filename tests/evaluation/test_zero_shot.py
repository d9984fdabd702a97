import numpy as np
import pytest

from evaluation.errors import UserError
from evaluation.zero_shot import class_embeddings, read_names, zero_shot_metrics
from tests.evaluation.builders import pictures

VECTORS = {"cat": [2, 0], "a cat": [0, 3], "dog": [0, 1], "a dog": [0, 1], "nan": [np.nan, 0]}


class Words:
    def embed_texts(self, texts):
        return np.array([VECTORS[text] for text in texts], np.float32)


def test_templates_are_normalised_before_and_after_their_mean():
    # cat: (1, 0) and (0, 1) -> mean (.5, .5) -> (1, 1) / sqrt 2. The longer vector has no more say.
    result = class_embeddings(Words(), ["cat", "dog"], ["{}", "a {}"])
    np.testing.assert_allclose(result, [[0.5**0.5, 0.5**0.5], [0, 1]], rtol=1e-6)


def test_a_broken_text_embedding_names_the_text():
    with pytest.raises(UserError, match="'nan'"):
        class_embeddings(Words(), ["nan"])


def test_pictures_are_given_the_closest_name_and_a_shared_name_goes_to_the_smaller_id():
    set_ = pictures(
        [
            ("a", "E1", "t", True, False),
            ("b", "E2", "t", True, False),
            ("c", "E3", "t", True, False),
            ("d", "E4", "t", True, False),
        ]
    )
    embeddings = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], np.float32)
    names = {"E1": "cat", "E2": "dog", "E3": "dog"}  # E4 has no name
    values, counts = zero_shot_metrics(embeddings, set_, Words(), names, ["E3", "E2", "E1", "E4"])
    # E1 right; E2 and E3 tie on "dog", E2 wins: 2 of 3 right.
    assert values["accuracy_at_1"] == pytest.approx(2 / 3)
    assert counts == {"num_pictures": 3, "num_candidates": 3, "num_without_name": 1, "num_shared_names": 2}


def test_names_come_from_a_vocabulary_or_a_source_and_a_bad_line_is_named(tmp_path):
    path = tmp_path / "names.jsonl"
    path.write_text('{"entity_id": "Q1", "name": "one"}\n{"id": "Q2", "label": "two"}\n')
    assert read_names(path) == {"Q1": "one", "Q2": "two"}
    path.write_text('{"id": "Q1", "label": "one"}\n{"id": "Q2"}\n')
    with pytest.raises(UserError, match="line 2: needs"):
        read_names(path)
    path.write_text("{cut")
    with pytest.raises(UserError, match="line 1 is no JSON"):
        read_names(path)
    with pytest.raises(UserError, match="is missing"):
        read_names(tmp_path / "none.jsonl")
