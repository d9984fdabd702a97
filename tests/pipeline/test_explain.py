"""Why rows of a small mined set ended as they did."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import SelectLabelsConfig, UnitConfig
from pipeline.data_card import DataCardConfig, write_data_card
from pipeline.explain import main
from pipeline.linking.weights import read_weights
from pipeline.report.explanation import explain_row, limits_of
from pipeline.report.explanation_text import explanation_lines, number_text, shown
from pipeline.report.find_rows import FoundRow
from pipeline.report.reasons import MEANINGS
from pipeline.schema import EVIDENCE, UserError
from tests.fakes import write_knowledge_base
from tests.pipeline.mined_set import SCRIPT, mine

LEAST = read_weights().probability_min


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the set; tests read it only."""
    return mine(tmp_path_factory.mktemp("mined"))


@pytest.fixture
def copied(mined: Path, tmp_path: Path) -> Path:
    """A copy of the set that a test may damage."""
    shutil.copytree(mined, tmp_path / "i2e")
    return tmp_path / "i2e"


def explained(data: Path, *image_ids: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Returns what the command prints as JSON."""
    main(["--data", str(data), "--json", "--image", *image_ids])
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def text_of(data: Path, *image_ids: str, capsys: pytest.CaptureFixture[str]) -> str:
    main(["--data", str(data), "--image", *image_ids])
    return capsys.readouterr().out


def error_of(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Returns what the command, which must fail, prints as its error."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("units", [UnitConfig(), UnitConfig(unit_rows=3)], ids=["together", "split"])
def test_rows_of_units_of_several_files_and_of_parts_of_files_are_found(
    mined: Path, units: UnitConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = mine(mined.parent, output="cut", units=units)
    capsys.readouterr()
    for image_id in ("c", "j", "n"):
        expected, found = (explained(set_, image_id, capsys=capsys) for set_ in (mined, cut))
        assert [(one["shard"], one["row"], one["outcome"]) for one in found] == [
            (one["shard"], one["row"], one["outcome"]) for one in expected
        ]


def test_each_step_of_a_kept_row_is_told_with_its_numbers(mined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = explained(mined, "c", capsys=capsys)
    assert (row["outcome"], row["text"], row["row"], row["shard"]) == ("kept", "E1|E2 and E2", 2, "pairs-0.tar")
    assert (row["width_px"], row["height_px"]) == (16, 16)
    first, second = row["mentions"]
    assert (first["surface"], first["start"], first["end"]) == ("E1|E2", 0, 5)
    assert (first["finder"], first["finder_score"]) == ("tagger", 0.8)
    # The likeliest first, though the linker had E2 first.
    assert [(one["entity_id"], one["probability"], one["similarity"]) for one in first["candidates"]] == [
        ("E1", 0.7, 0.7),
        ("E2", 0.2, 0.7),
    ]
    assert (first["candidates"][0]["name"], first["candidates"][0]["description"]) == ("Entity 1", "the 1")
    assert first["candidates"][0]["evidence"]["prior"] == 0.5
    assert (first["chosen"], first["probability"], first["similarity"]) == ("E1", 0.7, 0.7)
    assert first["nil_probability"] == pytest.approx(0.1)  # 1 - 0.7 - 0.2
    # E1 is on a, b and c; E2 on c and g: class ids fall by count.
    assert first["label"] == {"outcome": "kept", "class_id": 0, "images_of_class": 3}
    assert second["label"] == {"outcome": "kept", "class_id": 1, "images_of_class": 2}


def test_the_text_form_has_the_same_numbers(mined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.strip() for line in text_of(mined, "c", capsys=capsys).splitlines()]
    assert lines[:3] == ["c: kept", "input     pairs-0.tar, row 2, 16 x 16 px", "text      E1|E2 and E2"]
    assert 'mention 1  "E1|E2", characters 0 to 5, found by the tagger, score 0.8000' in lines
    of_first = lines[: next(place for place, line in enumerate(lines) if line.startswith("mention 2"))]
    cells = {line.split("   ")[0].strip(): line.split() for line in of_first}
    assert cells["candidate"][1:] == [">", "E1", "E2"]
    assert cells["similarity"][1:] == ["0.7000", "0.7000"]
    assert (
        "choice      E1 (Entity 1), probability 0.7000; together the candidates have 0.9000, "
        f"at least {LEAST} is needed (--probability-min)" in lines
    )
    assert "picture     similarity 0.7000, threshold 0.2000 (--min-similarity): it suits the picture" in lines
    assert "label       class 0 (images: 3)" in lines


@pytest.mark.parametrize(
    ("image_id", "end", "label"),
    [
        ("d", ("dropped", "find_mentions", "no_mention"), None),
        ("e", ("dropped", "read", "missing_text"), None),
        ("f", ("dropped", "disambiguate", "all_nil"), None),
        ("l", ("dropped", "propose_candidates", "no_candidate"), None),
        ("n", ("failed", "find_mentions", "timeout"), None),
        ("h", ("dropped", "build_vocabulary", "rare_entity"), ("build_vocabulary", "rare_entity")),
        ("i", ("dropped", "select_labels", "low_similarity"), ("select_labels", "low_similarity")),
        ("k", ("dropped", "deduplicate", "duplicate_image"), ("deduplicate", "duplicate_image")),
        ("m", ("dropped", "select_labels", "low_probability"), ("select_labels", "low_probability")),
    ],
)
def test_rows_that_were_not_kept_are_told_with_stage_and_reason(
    mined: Path, capsys: pytest.CaptureFixture[str], image_id: str, end: tuple[str, str, str], label: Any
) -> None:
    (row,) = explained(mined, image_id, capsys=capsys)
    assert (row["outcome"], row["stage"], row["reason"]) == end
    assert row["meaning"] == MEANINGS.get(end[2], "")
    labels = [mention["label"] for mention in row["mentions"] if "label" in mention]
    assert [(one["outcome"], one["stage"], one["reason"]) for one in labels] == (
        [("rejected", *label)] if label else []
    )
    assert f"{image_id}: {end[0]} at {end[1]}: {end[2]}" in text_of(mined, image_id, capsys=capsys)


@pytest.mark.parametrize(
    ("image_id", "line"),
    [
        ("d", "mentions  none"),
        ("e", "mentions  none were looked for"),
        ("l", "candidates  none: no entity of the knowledge base has this name"),
        (
            "f",
            "choice      none: together the candidates have 0.6000, "
            f"at least {LEAST} is needed (--probability-min); the likeliest, E1 (Entity 1), 0.4000",
        ),
        (
            "i",
            "picture     similarity 0.1000, threshold 0.2000 (--min-similarity): too low",
        ),
        (
            "m",
            "label       rejected at select_labels: low_probability (the link is less sure than --min-probability, "
            "which is 0.5)",
        ),
        (
            "h",
            "label       rejected at build_vocabulary: rare_entity (the entity has fewer images than "
            "--min-images-per-entity, which is 2)",
        ),
        ("k", "same picture in a"),
    ],
)
def test_the_text_form_says_what_was_decisive(
    mined: Path, capsys: pytest.CaptureFixture[str], image_id: str, line: str
) -> None:
    assert line in [one.strip() for one in text_of(mined, image_id, capsys=capsys).splitlines()]


def test_of_two_mentions_of_one_entity_the_surer_one_gives_the_label(
    mined: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = explained(mined, "g", capsys=capsys)
    assert row["mentions"][0]["label"] == {"outcome": "same_entity", "mention": 1}
    assert row["mentions"][1]["label"]["class_id"] == 1
    assert "given by mention 2, which means the same entity more surely" in text_of(mined, "g", capsys=capsys)


def test_rows_that_share_an_id_are_all_told(mined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = explained(mined, "a", capsys=capsys)
    assert [(row["shard"], row["row"], row["reason"]) for row in rows] == [
        ("pairs-0.tar", 0, None),
        ("pairs-1.tar", 1, "duplicate_id"),
    ]


def test_several_ids_are_told_in_their_order_and_an_unknown_one_does_not_hide_them(
    mined: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--data", str(mined), "--json", "--image", "h", "zz", "b"])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert [row["image_id"] for row in json.loads(printed.out)] == ["h", "b"]
    assert printed.err.startswith(f"error: --image zz is not among the 15 rows of {mined}; the nearest ids are ")


def test_a_floor_is_named_where_it_decided(mined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Of E1 (90, 80, 70, 10) the best 4 pass whatever their similarity; of E2 (70, 60, 15; 61 of the second a) as well.
    folder = mined.parent
    shutil.copytree(mined / "annotations", folder / "floor" / "annotations")
    floor = mine(folder, select=SelectLabelsConfig(min_similarity=0.2, entity_floor=4), output="floor")
    text = text_of(floor, "j", capsys=capsys)
    assert (
        "similarity 0.1500, threshold 0.2000 (--min-similarity): below it, but among the 4 best labels of its entity "
        "(--entity-floor)" in text
    )
    # k has the picture of a and the same entity, so i is the fifth of E1: 90, 90, 80, 70, 10.
    assert (
        "similarity 0.1000, threshold 0.2000 (--min-similarity): too low, and not among the 4 best labels of its "
        "entity (--entity-floor)" in text_of(floor, "i", capsys=capsys)
    )


def test_a_threshold_that_a_share_chose_is_named_as_such(mined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = mined.parent
    shutil.copytree(mined / "annotations", folder / "share" / "annotations")
    share = mine(folder, select=SelectLabelsConfig(keep_share=0.9), output="share")
    # Likely labels: 90 80 70 70 60 65 10 15 90 61; nine of ten are kept by the threshold 0.15.
    assert "threshold 0.1500 (which keeps --keep-share 0.9): too low" in text_of(share, "i", capsys=capsys)


def test_a_threshold_of_an_earlier_set_is_named_as_such(mined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = mined.parent
    shutil.copytree(mined / "annotations", folder / "continued" / "annotations")
    share = SelectLabelsConfig(keep_share=0.9)
    continued = mine(folder, select=share, output="continued", from_set=str(mined))
    # 0.2 is that of the earlier set; the share would give 0.15, as above.
    expected = "threshold 0.2000 (of the set that this one continues, --from-set): too low"
    assert expected in text_of(continued, "i", capsys=capsys)
    card = write_data_card(DataCardConfig(data=str(continued), output=str(folder / "card")))
    assert "It is that of the set which this one continues (--from-set)." in Path(card).read_text()
    given = SelectLabelsConfig(min_similarity=0.1)
    given_again = mine(folder, select=given, output="continued", from_set=str(mined))
    assert "threshold 0.1000 (--min-similarity): it suits" in text_of(given_again, "i", capsys=capsys)


def test_ids_are_listed_by_how_rows_ended_when_none_is_given(mined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--data", str(mined)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["kept", "4", "a,", "b,", "c"]
    assert "dropped at select_labels: low_similarity" in lines[lines.index("    " + MEANINGS["low_similarity"]) - 1]
    main(["--data", str(mined), "--json"])
    ends = json.loads(capsys.readouterr().out)
    assert {"outcome": "failed", "stage": "find_mentions", "reason": "timeout", "rows": 1, "image_ids": ["n"]} in ends
    assert sum(end["rows"] for end in ends) == 15


def test_evidence_of_any_name_is_shown_with_what_it_contributes(mined: Path) -> None:
    manifest = json.loads((mined / "manifest.json").read_text())
    shipped = read_weights()
    assert manifest["linker"]["bias"] == shipped.bias
    assert manifest["linker"]["weights"] == dict(zip(EVIDENCE, shipped.of_evidence, strict=True))
    evidence = {"prior": -0.5, "graph": 0.25, "unknown": 3.0, "empty": None}
    candidate = {
        "entity_id": "E1",
        "prior": 0.6,
        "case": "proper",
        "evidence": evidence,
        "score": 0.8,
        "similarity": None,
    }
    row = explain_row(
        found_row(candidate, outer_start=0, outer_end=9),
        manifest={**manifest, "linker": {"bias": -1.5, "weights": {"prior": 2.0, "graph": 4.0, "empty": 1.0}}},
        vocabulary={},
        name_of=lambda entity_id: ("", ""),
    )
    assert limits_of(manifest)["probability_min"] == manifest["linker"]["probability_min"] == shipped.probability_min
    older = {**manifest, "linker": {"bias": -1.5}}
    older["config"]["annotate"]["disambiguate"]["probability_min"] = 0.5
    assert limits_of(older)["probability_min"] == 0.5
    (shown_candidate,) = row["mentions"][0]["candidates"]
    assert shown_candidate["evidence"] == {
        "prior": 0.6, "case": "proper", "evidence.prior": -0.5, "evidence.graph": 0.25, "evidence.unknown": 3.0,
        "evidence.empty": None,
    }  # fmt: skip
    # 2 x -0.5, 4 x 0.25; with the bias -1.5 they sum to -1.5. What has no weight contributes nothing.
    assert shown_candidate["contributions"] == {"evidence.prior": -1.0, "evidence.graph": 1.0}
    assert shown_candidate["sum"] == -1.5
    assert row["mentions"][0]["outer"] == [0, 9]
    lines = [" ".join(line.split()) for line in explanation_lines(row)]
    assert lines.index("prior 0.6000") < lines.index("evidence") < lines.index("prior x 2 -0.5000 = -1.000")
    assert "graph x 4 0.2500 = +1.000" in lines and "unknown 3.0000" in lines
    assert "bias -1.500" in lines and "sum (that of NIL is 0) -1.500" in lines
    assert "evidence that is 0 for all of them: empty" in lines
    assert 'outer "New Yorks", characters 0 to 9' in lines


def test_candidates_stand_four_to_a_table(mined: Path) -> None:
    record = dict(found_row({}).record)
    record["linked"] = [
        {
            **record["linked"][0],
            "candidates": [{"entity_id": f"E{n}", "score": 0.1, "similarity": None} for n in range(6)],
        }
    ]
    row = explain_row(
        FoundRow(record=record, ledger=None), manifest=None, vocabulary={}, name_of=lambda entity_id: ("", "")
    )
    lines = [" ".join(line.split()) for line in explanation_lines(row)]
    assert "candidate 1 to 4 of 6 E0 E1 E2 E3" in lines and "candidate 5 to 6 of 6 E4 E5" in lines


def test_characters_that_a_terminal_obeys_are_written_out(mined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown("a\x1b[31mb\nc\u202ed é") == "a\\x1b[31mb\\nc\\u202ed é"
    assert SCRIPT in text_of(mined, "b", capsys=capsys)


def test_numbers_that_are_nearly_one_do_not_look_like_one() -> None:
    assert [number_text(value) for value in (None, 1.0, 0.99996, 0.9999, 3, True)] == [
        "-", "1.0000", "0.999960", "0.9999", "3", "True",
    ]  # fmt: skip


def test_a_very_long_text_is_cut_in_the_text_form_only() -> None:
    found = found_row({"entity_id": "E1", "score": 0.5, "similarity": None}, text="New Yorks" + "x" * 5000)
    row = explain_row(found, manifest=None, vocabulary={}, name_of=lambda entity_id: ("", ""))
    assert len(row["text"]) == 5009
    line = next(line for line in explanation_lines(row) if line.startswith("  text"))
    assert line.endswith("x … (5009 characters in all)") and len(line) < 2100


def test_a_set_whose_run_ended_with_an_error_is_explained_without_thresholds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="1 of 15 rows failed"):
        mine(tmp_path, max_failed_share=0.01)
    capsys.readouterr()
    main(["--data", str(tmp_path / "i2e"), "--kb", str(tmp_path / "kb"), "--image", "i"])
    printed = capsys.readouterr()
    assert "i: dropped at select_labels: low_similarity" in printed.out
    assert "picture     similarity 0.1000; no threshold is known" in printed.out
    assert (
        printed.err == f"note: {tmp_path}/i2e is unfinished (manifest.json is missing): its thresholds are not known\n"
    )


def test_a_set_that_was_only_annotated_is_explained_as_far(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copied / "ledger")
    (copied / "manifest.json").unlink()
    main(["--data", str(copied), "--image", "i"])
    printed = capsys.readouterr()
    assert printed.out.startswith("i: annotated\n")
    assert "label       not known: the set is not assembled" in printed.out
    assert "is not assembled: how rows ended is known only as far as they were annotated" in printed.err
    assert "note: where the knowledge base lies is not known; give --kb: only entities of the vocabulary" in printed.err


def test_without_its_knowledge_base_names_come_from_the_vocabulary(
    mined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(mined, tmp_path / "i2e")
    manifest = json.loads((tmp_path / "i2e" / "manifest.json").read_text())
    assert manifest["kb"] == str(mined.parent / "kb")
    manifest["kb"] = str(tmp_path / "gone")
    (tmp_path / "i2e" / "manifest.json").write_text(json.dumps(manifest))
    main(["--data", str(tmp_path / "i2e"), "--json", "--image", "g"])
    printed = capsys.readouterr()
    # E2 is a class, E3 is not.
    candidates = json.loads(printed.out)[0]["mentions"][0]["candidates"]
    assert [(one["entity_id"], one["name"]) for one in candidates] == [("E2", "Entity 2"), ("E3", "")]
    assert "note: the knowledge base of the set is not there (" in printed.err
    assert error_of("--data", str(mined), "--image", "g", "--kb", str(tmp_path / "gone"), capsys=capsys).startswith(
        f"error: {tmp_path}/gone: no finished knowledge base there"
    )


def test_another_knowledge_base_is_noted(mined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_knowledge_base(tmp_path / "kb", num_entities=2)
    main(["--data", str(mined), "--image", "g", "--kb", str(tmp_path / "kb")])
    assert capsys.readouterr().err == (
        f"note: the knowledge base {tmp_path}/kb is not the one that the set was mined with: names may differ\n"
    )


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda set_: shutil.rmtree(set_), "does not exist; give the folder that python -m pipeline.build_i2e wrote"),
        (lambda set_: (shutil.rmtree(set_), set_.mkdir()), r"holds no set \(manifest.json and annotations/"),
        (lambda set_: (shutil.rmtree(set_), set_.write_text("")), "is a file; give the folder"),
        (lambda set_: shutil.rmtree(set_ / "annotations"), "the annotations of the set are gone: .*/annotations has"),
        (
            lambda set_: (set_ / "annotations" / "pairs-1.parquet").unlink(),
            "annotations lacks 1 of 2 files, pairs-1.parquet first; run",
        ),
        (
            lambda set_: (set_ / "ledger" / "pairs-1.parquet").unlink(),
            "ledger lacks 1 of 2 files, pairs-1.parquet first; run",
        ),
        (lambda set_: damage(set_ / "annotations" / "pairs-0.parquet"), "pairs-0.parquet cannot be read as Parquet"),
        (lambda set_: damage(set_ / "ledger" / "pairs-0.parquet"), "pairs-0.parquet cannot be read as Parquet"),
        (lambda set_: (set_ / "manifest.json").write_text("{"), "manifest.json is not valid JSON"),
        (lambda set_: (set_ / "manifest.json").write_text("[]"), "is not that of an Image-to-Entities set"),
        (
            lambda set_: (set_ / "manifest.json").write_text('{"kind": "i2e", "format_version": 7}'),
            "has format version 7, this program reads 1",
        ),
        (lambda set_: (set_ / "vocabulary.jsonl").write_text('{"E1"\n'), "vocabulary.jsonl, line 1, cannot be read"),
    ],
)  # fmt: skip
def test_a_damaged_set_ends_with_one_line_that_names_the_file(
    copied: Path, capsys: pytest.CaptureFixture[str], spoil: Any, message: str
) -> None:
    spoil(copied)
    error = error_of("--data", str(copied), "--image", "i", capsys=capsys)
    assert error.count("\n") == 1
    assert re.search(message, error), error


def test_tables_that_do_not_hold_the_same_row_are_an_error(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / "annotations" / "pairs-0.parquet"
    rows = pq.read_table(path)
    pq.write_table(pa.concat_tables([rows.slice(1), rows.slice(0, 1)]), path)
    error = error_of("--data", str(copied), "--image", "i", capsys=capsys)
    assert "pairs-0.parquet has row 8 of i where row 9 of j" in error
    pq.write_table(rows.slice(0, 3), path)
    assert "pairs-0.parquet has 3 rows, and row 8 is needed" in error_of(
        "--data", str(copied), "--image", "i", capsys=capsys
    )


def test_every_reason_of_the_documentation_has_a_meaning() -> None:
    page = (Path(__file__).parents[2] / "docs" / "mining.md").read_text(encoding="utf-8")
    table = page.split("| stage | reason |")[1].split("\n\n")[0]
    reasons = {reason for line in table.splitlines()[2:] for reason in re.findall(r"`(\w+)`", line.split("|")[2])}
    assert len(reasons) >= 19 and reasons <= MEANINGS.keys()


def test_an_empty_id_and_a_remote_set_are_refused(mined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--image is empty; give the id" in error_of("--data", str(mined), "--image", "", capsys=capsys)
    assert "gs://bucket/i2e: the set must lie on a local disk" in error_of(
        "--data", "gs://bucket/i2e", "--image", "a", capsys=capsys
    )


def test_neither_beam_nor_tensorflow_nor_torch_is_loaded_to_explain(mined: Path) -> None:
    program = (
        "import sys; from pipeline.explain import main; "
        f"main(['--data', {str(mined)!r}, '--image', 'c']); "
        "print(sorted({'apache_beam', 'tensorflow', 'torch', 'jax'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def found_row(candidate: dict[str, Any], *, text: str = "New Yorks", **further: Any) -> FoundRow:
    """Returns a row, not assembled, whose one mention "New York" has one candidate."""
    linked = {
        "start": 0, "end": 8, "surface": "New York", "finder": "tagger", "mention_score": 0.5, "chosen": None,
        "probability": 0.2, "candidates": [candidate] if candidate else [], **further,
    }  # fmt: skip
    record = {
        "image_id": "a", "shard": "s.tar", "row": 0, "text": text, "width": 0, "height": 0, "outcome": "annotated",
        "stage": None, "reason": None, "linked": [linked],
    }  # fmt: skip
    return FoundRow(record=record, ledger=None)
