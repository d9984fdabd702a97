"""The data card of a small mined set, whose numbers are worked out by hand."""

from __future__ import annotations

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import SelectLabelsConfig
from pipeline.data_card import DataCardConfig, main, write_data_card
from pipeline.report import card_counts
from pipeline.report.card import funnel
from pipeline.report.card_counts import BIN_WIDTH, EntityCounts, NameCounts, bin_of, similarities_of_chosen
from pipeline.report.card_figures import DROPPED, GOOD, log_edges
from pipeline.report.card_samples import data_uri, pick_entities, shards_in_order
from pipeline.report.html_page import document, escape, table
from tests.evaluation.browser import painted_by_a_browser, shown_by_a_browser
from tests.fakes import png
from tests.pipeline.mined_set import SCRIPT, SCRIPT_NAME, mine


class Page(HTMLParser):
    """The tags of a page, its addresses, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "data", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the set, with its card beside it; tests read it only."""
    folder = mine(tmp_path_factory.mktemp("mined"))
    main(["--data", str(folder)])
    return folder


@pytest.fixture
def copied(mined: Path, tmp_path: Path) -> Path:
    """A copy of the set that a test may damage."""
    shutil.copytree(mined, tmp_path / "i2e")
    return tmp_path / "i2e"


@pytest.fixture(scope="module")
def card(mined: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((mined.with_name("i2e-card") / "data_card.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def page(mined: Path) -> Path:
    return mined.with_name("i2e-card") / "data_card.html"


def error_of(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_the_funnel_says_what_became_of_each_row(card: dict[str, Any]) -> None:
    # 15 rows: e has no text; d has no name, n fails; l has no candidate; f is NIL; i, j and m end at the filter;
    # k and the second a are duplicates; h is the only one of E3. a, b, c and g are left.
    assert card["totals"] == {"rows": 15, "images": 4, "labels": 5, "entities": 2}
    assert [(one["stage"], one["dropped"], one["failed"], one["left"]) for one in card["funnel"]] == [
        ("read", 1, 0, 14),
        ("find_mentions", 1, 1, 12),
        ("propose_candidates", 1, 0, 11),
        ("disambiguate", 1, 0, 10),
        ("select_labels", 3, 0, 7),
        ("deduplicate", 2, 0, 5),
        ("build_vocabulary", 1, 0, 4),
    ]
    assert [(one["reason"], one["rows"]) for one in card["funnel"][4]["reasons"]] == [
        ("low_similarity", 2),
        ("low_probability", 1),
    ]
    assert card["funnel"][1]["reasons"][1] == {
        "reason": "timeout",
        "outcome": "failed",
        "rows": 1,
        "meaning": "the row took longer than --stall-timeout-sec",
    }


def test_stages_stand_in_the_order_of_the_pipeline_and_unknown_ones_last() -> None:
    rows = {("kept", "", ""): 3, ("dropped", "own_stage", "odd"): 1, ("dropped", "deduplicate", "duplicate_id"): 2}
    assert [(one["stage"], one["left"]) for one in funnel(rows)] == [("deduplicate", 4), ("own_stage", 3)]


def test_labels_and_entities_are_counted_by_what_became_of_them(card: dict[str, Any], mined: Path) -> None:
    assert card["labels"] == {
        "kept": 5, "low_similarity": 2, "low_probability": 1, "duplicate_id": 1, "duplicate_image": 1, "rare_entity": 1,
    }  # fmt: skip
    with open(mined.with_name("i2e-card") / "entities.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["entity_id"], row["name"], row["linked"], row["kept"], row["rejected_by_filter"]) for row in rows] == [
        ("E1", "Entity 1", "6", "3", "1"),  # a, b, c; i; k; m
        ("E2", "Entity 2", "4", "2", "1"),  # c, g; j; the second a
        ("E3", SCRIPT_NAME, "1", "0", "0"),  # h
    ]
    # E1: 0.9, 0.8, 0.7, 0.1, 0.9 and 0.63, whose sum is 4.03. One of six is rejected by the filter.
    assert rows[0]["mean_similarity"] == f"{4.03 / 6:.6g}" and rows[0]["share_rejected_by_filter"] == f"{1 / 6:.6g}"
    assert (rows[0]["duplicate_image"], rows[0]["low_probability"], rows[2]["rare_entity"]) == ("1", "1", "1")


def test_the_report_on_the_filter_names_the_entities_that_lose_most(card: dict[str, Any]) -> None:
    report = card["filter"]
    assert (report["entities_linked"], report["entities_with_rejections"], report["entities_rejected_whole"]) == (
        3,
        2,
        0,
    )
    assert [(one["entity_id"], one["rejected_by_filter"]) for one in report["most_rejected"]] == [("E1", 1), ("E2", 1)]


def test_similarities_are_in_bins_with_the_threshold(card: dict[str, Any]) -> None:
    stated = card["similarities"]
    assert (stated["threshold"], stated["threshold_source"], stated["first_bin_starts_at"]) == (0.2, "given", 0.1)

    def values(end: str) -> list[float]:
        return [round(0.1 + place * 0.01, 2) for place, count in enumerate(stated[end]) for _ in range(count)]

    assert values("kept") == [0.6, 0.7, 0.7, 0.8, 0.9]  # c carries two
    assert values("rejected_by_filter") == [0.1, 0.15]
    assert values("rejected_elsewhere") == [0.61, 0.63, 0.65, 0.9]


def test_head_and_tail_and_statistics_of_images_per_entity(card: dict[str, Any]) -> None:
    assert [(one["class_id"], one["entity_id"], one["images"]) for one in card["head"]] == [(0, "E1", 3), (1, "E2", 2)]
    assert card["tail"] == []  # the head has all
    assert card["images_per_entity"] == {
        "least": 2, "median": 2.5, "mean": 2.5, "most": 3, "share_of_largest_tenth": 0.6,
    }  # fmt: skip
    assert card["entities_per_image"] == {"1": 3, "2": 1}


def test_ambiguous_names_are_split_by_entity(tmp_path: Path) -> None:
    names = NameCounts()
    surfaces = ["Apple"] * 3 + ["apple"] * 4 + ["Shell"] * 2 + ["Georgia", " georgia"] + ["Turkey"] * 5
    chosen = ["Q312"] * 3 + ["Q89"] * 3 + [None] + ["Q1"] * 2 + ["Q230", "Q1428"] + ["Q43"] * 5
    names.add(pa.array(surfaces), pa.array(chosen))
    # Apple: 3 of 6 links go to the rarer entity; Georgia: 1 of 2. Ties of entities are by id.
    assert names.most_ambiguous(5) == [
        ("apple", [("Q312", 3), ("Q89", 3)], 1),
        ("georgia", [("Q1428", 1), ("Q230", 1)], 0),
    ]
    assert names.most_ambiguous(1) == names.most_ambiguous(5)[:1] and names.num_ambiguous == 2


def test_rare_names_make_place_when_there_are_too_many() -> None:
    names = NameCounts(num_names_max=4)
    names.add(pa.array(["often"] * 9 + ["b", "c", "d"]), pa.array(["E1"] * 5 + ["E2"] * 4 + ["E1"] * 3))
    assert names.num_forgotten == 0
    names.add(pa.array(["e", "e"]), pa.array(["E1", "E1"]))
    # Of five names the rarer two go: b and c, with one mention each.
    assert names.num_forgotten == 2 and names.most_ambiguous(9) == [("often", [("E1", 5), ("E2", 4)], 0)]


def test_entities_and_reasons_of_any_number_are_counted() -> None:
    counts = EntityCounts()
    ids = [f"E{number}" for number in range(3000)]
    counts.add(pa.array(ids), pa.array([f"reason {number % 30}" for number in range(3000)]), np.full(3000, np.nan))
    counts.add(pa.array(["E2999", "E7"]), pa.array(["kept", "low_similarity"]), np.array([0.5, np.nan]))
    assert len(counts) == 3000 and counts.most_rejected()[0] == "E7"
    assert counts.of("E2999")["linked"] == 2 and counts.of("E2999")["kept"] == counts.of("E2999")["reason 29"] == 1
    assert counts.of("E2999")["mean_similarity"] == 0.5 and counts.of("E7")["mean_similarity"] is None
    assert counts.of("none")["linked"] == 0 and counts.of("none")["share_rejected_by_filter"] == 0
    counts.add(pa.array([], pa.string()), pa.array([], pa.string()), np.zeros(0))
    assert len(counts) == 3000


def test_the_similarity_of_a_mention_is_that_of_its_chosen_candidate() -> None:
    candidate = pa.struct([("entity_id", pa.string()), ("similarity", pa.float64())])
    candidates = pa.array(
        [
            [("E1", 0.1), ("E2", 0.2)],
            [],
            [("E3", None)],
            None,
            [("E4", 0.4), ("E5", 0.5)],
        ],
        pa.list_(candidate),
    )
    chosen = pa.array(["E2", None, "E3", None, None])
    np.testing.assert_array_equal(similarities_of_chosen(chosen, candidates), [0.2, np.nan, np.nan, np.nan, np.nan])


def test_bins_start_at_round_numbers() -> None:
    starts = bin_of(np.array([-1.0, 0.29, 0.2899, 0.0, 1.0])) * BIN_WIDTH - 1
    np.testing.assert_allclose(starts, [-1.0, 0.29, 0.28, 0.0, 0.99], atol=1e-9)
    assert log_edges(5).tolist() == [1, 2, 5, 10] and log_edges(1).tolist() == [1, 2]


def test_samples_are_of_the_right_rows_with_their_pictures(card: dict[str, Any], page: Path) -> None:
    of_reasons = {one["reason"]: one["images"] for one in card["samples"]["of_reasons"]}
    assert {reason: sorted(image["image_id"] for image in images) for reason, images in of_reasons.items()} == {
        "missing_text": ["e"], "no_mention": ["d"], "timeout": ["n"], "no_candidate": ["l"], "all_nil": ["f"],
        "low_probability": ["m"], "low_similarity": ["i", "j"], "duplicate_id": ["a"], "duplicate_image": ["k"],
        "rare_entity": ["h"],
    }  # fmt: skip
    (low,) = (image for image in of_reasons["low_similarity"] if image["image_id"] == "i")
    assert low["links"] == [{"text": "E1", "entity_id": "E1", "name": "Entity 1", "similarity": 0.1}]
    assert of_reasons["all_nil"][0]["names_without_entity"] == ["E1|E2?"]
    of_entities = {
        one["entity_id"]: sorted(image["image_id"] for image in one["images"]) for one in card["samples"]["of_entities"]
    }
    assert of_entities == {"E1": ["a", "b", "c"], "E2": ["c", "g"]}
    text = page.read_text(encoding="utf-8")
    # The pictures of c (in the set) and of i (in the input) are grey squares of their own; e has none.
    for shade in (70, 10):
        assert (data_uri(png(shade)) or "missing") in text
    assert text.count('<div class="gap"></div>') == 1


def test_samples_stay_within_their_number_and_are_the_same_again(mined: Path, tmp_path: Path, page: Path) -> None:
    write_data_card(DataCardConfig(data=str(mined), output=str(tmp_path / "card")))
    for name in ("data_card.html", "data_card.json", "entities.csv"):
        assert (tmp_path / "card" / name).read_bytes() == page.with_name(name).read_bytes()
    names = [f"pairs-{number}" for number in range(9)]
    assert shards_in_order(names) == shards_in_order(reversed(names)) != names


def test_a_shard_that_is_read_in_small_parts_gives_the_same_card(
    mined: Path, tmp_path: Path, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card_counts, "_ROWS_PER_BATCH", 3)
    write_data_card(DataCardConfig(data=str(mined), output=str(tmp_path / "card")))
    assert (tmp_path / "card" / "entities.csv").read_text() == page.with_name("entities.csv").read_text()
    parts, whole = (
        json.loads(path.read_text())
        for path in (tmp_path / "card" / "data_card.json", page.with_name("data_card.json"))
    )
    for groups in (parts["samples"].values(), whole["samples"].values()):
        for group in groups:
            for one in group:
                one["images"].sort(key=lambda image: (image["shard"], image["row"]))
    assert parts == whole


def test_a_dozen_entities_come_from_head_middle_and_tail() -> None:
    by_count = [f"E{number}" for number in range(100)]
    chosen = pick_entities(by_count, 12)
    assert len(chosen) == 12 and chosen[:4] == by_count[:4] and chosen[-4:] == by_count[-4:]
    assert chosen == sorted(chosen, key=by_count.index)
    assert pick_entities(by_count[:12], 12) == by_count[:12] and pick_entities([], 12) == []


def test_texts_and_names_are_escaped_and_nothing_is_fetched(page: Path) -> None:
    shown = Page(page.read_text(encoding="utf-8"))
    assert "script" not in shown.tags and "audio" not in shown.tags
    assert f"E1 {SCRIPT}" in shown.text and SCRIPT_NAME in shown.text
    assert all(address.startswith(("data:", "#")) for address in shown.addresses)
    assert escape("<a href='x'>\"&\ud800") == "&lt;a href=&#x27;x&#x27;&gt;&quot;&amp;?"
    assert "&lt;b&gt;" in table(("<b>",), [("<i>",)]) and "&lt;i&gt;" in table(("<b>",), [("<i>",)])
    assert "<title>&lt;t&gt;" in document("<t>", "<s>", [])


def test_a_browser_paints_the_figures_and_asks_the_network_for_nothing(page: Path, tmp_path: Path) -> None:
    shown = shown_by_a_browser(page, tmp_path)
    figures = re.findall(r'<img class="figure" alt="([^"]*)"', shown)
    assert figures == [
        "Rows left after each stage",
        "Images per entity, logarithmic",
        "Similarities of picture and entity, with the threshold",
        "Entities per image",
    ]
    painted = painted_by_a_browser(page, tmp_path, width_px=1200, height_px=1200)
    colours = {colour: count for count, colour in painted.getcolors(maxcolors=1 << 24) or []}

    def area_px(colour: str) -> int:
        return colours.get(tuple(bytes.fromhex(colour.removeprefix("#"))), 0)  # type: ignore[call-overload, no-any-return]

    # The funnel is on the first screen: bars of rows that are left, and of rows that were dropped.
    assert area_px(GOOD) > 10_000 and area_px(DROPPED) > 1_000


def test_a_floor_and_a_share_are_told(tmp_path: Path) -> None:
    set_ = mine(tmp_path, select=SelectLabelsConfig(keep_share=0.9, entity_floor=3))
    main(["--data", str(set_)])
    text = Page((tmp_path / "i2e-card" / "data_card.html").read_text(encoding="utf-8")).text
    assert "It keeps 90.0 % of the labels (--keep-share). The 3 best labels of each entity pass" in text


def test_inputs_that_moved_are_read_from_another_folder_and_missing_ones_cost_the_pictures_alone(
    mined: Path, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    for one in manifest["inputs"]:
        one["path"] = one["path"].replace(str(mined.parent), str(tmp_path / "gone"))
    (copied / "manifest.json").write_text(json.dumps(manifest))
    main(["--data", str(copied)])
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path}/i2e-card/data_card.html\n"
    assert printed.err.count("\n") == 1
    assert re.match(
        f"note: no pictures of rows that were not kept from 2 of 2 input files: {tmp_path}/gone/pairs-[01].tar cannot "
        "be read .*; or give --input-folder\n",
        printed.err,
    )
    text = (tmp_path / "i2e-card" / "data_card.html").read_text(encoding="utf-8")
    assert (data_uri(png(70)) or "missing") in text and (data_uri(png(10)) or "missing") not in text
    main(["--data", str(copied), "--input-folder", str(mined.parent)])
    assert not capsys.readouterr().err
    assert (data_uri(png(10)) or "missing") in (tmp_path / "i2e-card" / "data_card.html").read_text(encoding="utf-8")


def test_inputs_on_a_file_system_that_is_not_there_cost_the_pictures_alone(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    for one in manifest["inputs"]:
        one["path"] = "nowhere://bucket/" + Path(one["path"]).name
    (copied / "manifest.json").write_text(json.dumps(manifest))
    main(["--data", str(copied)])
    printed = capsys.readouterr()
    assert re.match("note: no pictures of rows .* from 2 of 2 input files: .*nowhere://bucket/pairs-", printed.err)
    assert (copied.with_name("i2e-card") / "data_card.html").exists()


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 4 :] = bytes(len(content) - len(content) // 4)
    path.write_bytes(content)


def drop_column(path: Path, name: str) -> None:
    pq.write_table(pq.read_table(path).drop_columns([name]), path)


def drop_row(path: Path) -> None:
    rows = pq.read_table(path)
    pq.write_table(rows.slice(1), path)


def swap_rows(path: Path) -> None:
    """Swaps the first two rows, which are kept."""
    rows = pq.read_table(path)
    pq.write_table(pa.concat_tables([rows.slice(1, 1), rows.slice(0, 1), rows.slice(2)]), path)


SHARD = "i2e-train.tfrecord-00000"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda set_: shutil.rmtree(set_), "--data .* does not exist; give the folder that python"),
        (lambda set_: (shutil.rmtree(set_), set_.mkdir()), "holds no set"),
        (lambda set_: (set_ / "manifest.json").unlink(), r"holds no finished set \(manifest.json is missing\): its"),
        (lambda set_: shutil.rmtree(set_ / "annotations"), "the annotations of the set are gone"),
        (lambda set_: shutil.rmtree(set_ / "ledger"), "ledger lacks 2 of 2 files, pairs-0.parquet first; run"),
        (lambda set_: (set_ / "vocabulary.jsonl").unlink(), "vocabulary.jsonl is missing or empty; run"),
        (lambda set_: damage(set_ / "annotations" / "pairs-1.parquet"), "annotations/pairs-1.parquet cannot be read"),
        (lambda set_: damage(set_ / "ledger" / "pairs-0.parquet"), "ledger/pairs-0.parquet cannot be read as Parquet"),
        (lambda set_: drop_column(set_ / "ledger" / "pairs-0.parquet", "labels"), "has no column 'labels': it was"),
        (lambda set_: drop_row(set_ / "ledger" / "pairs-0.parquet"), "pairs-0.parquet has 9 rows, and .* has 10; run"),
        (
            lambda set_: [drop_row(set_ / folder / "pairs-0.parquet") for folder in ("ledger", "annotations")],
            "the ledger has 14 rows, and manifest.json states 15; run",
        ),
        (lambda set_: (set_ / SHARD).unlink(), f"{SHARD} cannot be read"),
        (
            lambda set_: [swap_rows(set_ / folder / "pairs-0.parquet") for folder in ("ledger", "annotations")],
            f"{SHARD} has a where the ledger has b; run|{SHARD} has b where the ledger has a; run",
        ),
    ],
)  # fmt: skip
def test_a_set_that_is_not_whole_ends_with_one_line_that_names_the_file(
    copied: Path, capsys: pytest.CaptureFixture[str], spoil: Any, message: str
) -> None:
    spoil(copied)
    error = error_of("--data", str(copied), capsys=capsys)
    assert error.count("\n") == 1 and error.startswith("error: ") and re.search(message, error), error
    assert not copied.with_name("i2e-card").exists()


def test_an_output_that_cannot_be_written_ends_with_one_line(
    mined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    error = error_of("--data", str(mined), "--output", str(tmp_path / "file" / "card"), capsys=capsys)
    assert error == f"error: --output {tmp_path}/file/card lies below a file; choose another --output\n"
