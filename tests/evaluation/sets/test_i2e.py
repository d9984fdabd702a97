from pathlib import Path

import pytest

from evaluation.sets.i2e import VocabularyRow, read_vocabulary
from pipeline.schema import UserError


def test_an_entity_is_one_line_of_text():
    two_lines = VocabularyRow(entity_id="Q1", name="a\tname", description="of two\n lines", image_count=1)
    assert two_lines.text == "a name, of two lines"


def test_a_vocabulary_may_have_a_byte_order_mark_and_carriage_returns(tmp_path: Path):
    line = b'{"entity_id": "Q1", "name": "one", "description": null, "image_count": 3}'
    (tmp_path / "vocabulary.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n")
    assert read_vocabulary(tmp_path / "vocabulary.jsonl") == [
        VocabularyRow(entity_id="Q1", name="one", description="", image_count=3)
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1 is not valid JSON .*; give --option entities.vocabulary="),
        ("[1]", "line 1 is not a JSON object"),
        ('{"entity_id": "Q1", "name": "one"}', "KeyError: 'image_count'"),
        ('{"entity_id": "Q1", "name": "one", "image_count": 3}\n' * 2, "line 2: Q1 is a duplicate entity_id"),
    ],
)
def test_a_vocabulary_that_is_none_is_an_error(tmp_path: Path, content, message):
    (tmp_path / "vocabulary.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        read_vocabulary(tmp_path / "vocabulary.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_vocabulary(tmp_path / "none.jsonl")
