"""The composed texts of a demo become labelled texts."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import composed_sets
from infra.composed_sets import composed_texts
from pipeline.schema import ImageText


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def row(key: str, half: str, *mentions: tuple[int, int, str | None]) -> dict[str, object]:
        named = [
            {"start": start, "end": end, "entity_id": one, "kind": "flag", "ambiguous": False, "has_context": False}
            for start, end, one in mentions
        ]
        picture = mentions[0][2] if mentions else None
        return {
            "key": key, "picture_entity_id": picture, "kind": "flag", "mentions": named, "half": half, "strays": []
        }  # fmt: skip

    rows = [
        row("a", "fit", (0, 4, "Q70")),
        row("b", "measure", (8, 12, "emoji:1"), (0, 4, None)),
        row("c", "measure"),
    ]
    (tmp_path / "corpus").mkdir()
    mention = pa.struct(
        [
            ("start", pa.int64()),
            ("end", pa.int64()),
            ("entity_id", pa.string()),
            ("kind", pa.string()),
            ("ambiguous", pa.bool_()),
            ("has_context", pa.bool_()),
        ]
    )
    stray = pa.struct([("start", pa.int64()), ("end", pa.int64())])
    schema = pa.schema(
        [
            ("key", pa.string()),
            ("picture_entity_id", pa.string()),
            ("kind", pa.string()),
            ("mentions", pa.list_(mention)),
            ("half", pa.string()),
            ("strays", pa.list_(stray)),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "corpus" / "truth.parquet")
    (tmp_path / "corpus" / "pairs-0.tar").touch()
    texts = {"a": "Bern", "b": "Thun at dawn", "c": "logo"}
    pairs = [ImageText(image_id=key, image=b"", text=text, shard="", row=0) for key, text in texts.items()]
    monkeypatch.setattr(composed_sets, "read_shard", lambda path: pairs)
    return tmp_path


def test_a_half_is_read_with_what_its_texts_name(demo: Path) -> None:
    first, second = composed_texts(demo, half="measure")
    assert (first.text_id, first.text, first.group) == ("b", "Thun at dawn", "emoji:1")
    assert [(one.start, one.end, set(one.entity_ids), one.kind) for one in first.mentions] == [
        (0, 4, set(), "name"),
        (8, 12, {"emoji:1"}, "noun"),
    ]
    assert (second.text_id, second.group, second.mentions) == ("c", "c", ())
    assert [one.text_id for one in composed_texts(demo, half="fit")] == ["a"]


def test_fewer_texts_are_drawn_by_their_keys(demo: Path) -> None:
    # SHA-256 of "c" begins with 2e, that of "b" with 3e.
    assert [one.text_id for one in composed_texts(demo, half="measure", most=1)] == ["c"]
