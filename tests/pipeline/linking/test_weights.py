"""Weights of the evidence, read from files of users."""

import json
import sys

import pytest

from pipeline.config import DisambiguateConfig
from pipeline.linking.weights import SHIPPED, SHIPPED_WITH_MEANING, Weights, read_weights, weights_of
from pipeline.schema import EVIDENCE, UserError

GOOD = {"format_version": 1, "bias": -1.5, "weights": {"prior": 1, "text": 2.5, "seen": 0}}


def written(tmp_path, content):
    path = tmp_path / "weights.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    read_weights.cache_clear()
    return str(path)


def test_evidence_that_the_file_does_not_name_weighs_nothing(tmp_path):
    weights = read_weights(written(tmp_path, GOOD))
    assert weights.bias == -1.5
    assert dict(zip(EVIDENCE, weights.of_evidence, strict=True)) == {
        **dict.fromkeys(EVIDENCE, 0.0), "prior": 1.0, "text": 2.5,
    }  # fmt: skip
    assert weights.used == {"prior", "text"}


def test_one_kind_of_evidence_can_be_switched_off(tmp_path):
    weights = read_weights(written(tmp_path, GOOD))
    less = weights.without("text")
    assert less.used == {"prior"} and less.bias == weights.bias
    assert not weights.sees_pictures
    assert read_weights(written(tmp_path, GOOD | {"weights": {"picture": 1}})).sees_pictures
    others = [read_weights(written(tmp_path, GOOD | further)) for further in ({"bias": 0}, {"probability_min": 0.5})]
    assert len({one.hash for one in (weights, less, *others)}) == 4


def test_a_file_states_the_least_probability_of_a_link_and_a_setting_replaces_it(tmp_path):
    assert read_weights(written(tmp_path, GOOD)).probability_min == 0.69
    path = written(tmp_path, GOOD | {"probability_min": 0})
    assert read_weights(path).probability_min == weights_of(DisambiguateConfig(weights=path)).probability_min == 0.0
    assert weights_of(DisambiguateConfig(weights=path, probability_min=0.25)).probability_min == 0.25
    assert read_weights(written(tmp_path, GOOD | {"probability_min": 1})).probability_min == 1.0


def test_the_largest_floats_are_read(tmp_path):
    largest = sys.float_info.max
    found = read_weights(written(tmp_path, GOOD | {"bias": largest, "weights": {"prior": -largest}}))
    assert (found.bias, min(found.of_evidence)) == (largest, -largest)


def test_the_shipped_weights_are_read_by_default():
    assert read_weights() == read_weights(str(SHIPPED))
    # What the rule of infra/fit_linker.py found.
    assert read_weights().probability_min == 0.74 and read_weights(str(SHIPPED_WITH_MEANING)).probability_min == 0.75
    assert all("probability_min" in json.loads(file.read_text()) for file in (SHIPPED, SHIPPED_WITH_MEANING))
    stated = json.loads(SHIPPED.read_text())
    assert stated["fitted_on"] and stated["knowledge_base"]


REMEDY = "; write one with: make fit-linker"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "cannot be read (Expecting value: line 1 column 2 (char 1))" + REMEDY),
        ("[]", "format_version is None, this program reads 1" + REMEDY),
        (GOOD | {"format_version": 2}, "format_version is 2, this program reads 1" + REMEDY),
        (GOOD | {"weights": [1]}, "the field 'weights' is [1]; it must be an object" + REMEDY),
        (
            GOOD | {"weights": {"txt": 1, "prio": 1, "text": 1}},
            f"unknown evidence prio, txt; known: {', '.join(EVIDENCE)}",
        ),
        (GOOD | {"weights": {"prior": "1"}}, "prior is '1'; give a finite number"),
        (GOOD | {"weights": {"prior": True}}, "prior is True; give a finite number"),
        (GOOD | {"bias": float("nan")}, "bias is nan; give a finite number"),
        ({"format_version": 1, "weights": {}}, "bias is None; give a finite number"),
        (GOOD | {"bias": 10**400}, f"bias is {10**400}; give a finite number"),
        (GOOD | {"probability_min": "0.5"}, "probability_min is '0.5'; give a finite number"),
        (GOOD | {"probability_min": 1.01}, "probability_min is 1.01; give a number from 0 to 1"),
        (GOOD | {"probability_min": -0.01}, "probability_min is -0.01; give a number from 0 to 1"),
    ],
)
def test_a_damaged_file_is_refused_by_the_field(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(UserError) as stop:
        read_weights(path)
    assert str(stop.value) == f"--weights {path}: {message}"


def test_weights_of_another_number_than_the_kinds_of_evidence_are_an_error():
    few = Weights(of_evidence=(1.0,), bias=0.0)
    with pytest.raises(ValueError, match="shorter"):
        _ = few.used
    with pytest.raises(ValueError, match="shorter"):
        few.without("prior")


def test_a_missing_file_is_named(tmp_path):
    read_weights.cache_clear()
    with pytest.raises(UserError, match=r"none.json: cannot be read .*No such file.*make fit-linker"):
        read_weights(str(tmp_path / "none.json"))


def test_with_a_sentence_encoder_its_weights_are_the_default():
    without, with_encoder = weights_of(DisambiguateConfig()), weights_of(DisambiguateConfig(sentence_encoder="any"))
    assert without == read_weights() and not without.reads_meaning
    assert with_encoder == read_weights(str(SHIPPED_WITH_MEANING)) and with_encoder.reads_meaning
    assert json.loads(SHIPPED_WITH_MEANING.read_text())["sentence_encoder"]


def test_weights_and_sentence_encoder_belong_together(tmp_path):
    plain = written(tmp_path, GOOD)
    assert weights_of(DisambiguateConfig(weights=plain)).bias == -1.5
    change_nothing = (
        "they do not weigh 'meaning', so --sentence-encoder would change nothing; "
        "leave it out, or fit weights with it: make fit-linker SENTENCE_ENCODER=$"
    )
    with pytest.raises(UserError, match=change_nothing):
        weights_of(DisambiguateConfig(weights=plain, sentence_encoder="any"))
    reading = written(tmp_path, GOOD | {"weights": {"meaning": 1}})
    assert weights_of(DisambiguateConfig(weights=reading, sentence_encoder="any")).used == {"meaning"}
    with pytest.raises(UserError, match=f"--weights {reading}: they weigh 'meaning'; give the --sentence-encoder"):
        weights_of(DisambiguateConfig(weights=reading))
