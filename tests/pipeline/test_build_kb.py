"""`build_kb` reads the project's own lines and real dumps of Wikidata."""

import bz2
import dataclasses
import gzip
import hashlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile

import pytest

from pipeline.build_kb import BuildKbConfig, build_kb
from pipeline.kb.bag_of_words import hash_word
from pipeline.kb.store import KnowledgeBase
from pipeline.kb.usage import name_key
from pipeline.schema import UserError

SAMPLE = pathlib.Path(__file__).parent / "data" / "wikidata-dump-sample.json.gz"
EXCERPT = pathlib.Path(__file__).parent / "data" / "wikidata-excerpt.json.gz"


def test_a_wikidata_dump_becomes_a_base(tmp_path):
    manifest = build_kb(BuildKbConfig(source=str(EXCERPT), output=str(tmp_path)))
    kb = KnowledgeBase.open(str(tmp_path))
    assert manifest["num_entities"] == len(kb) == 5
    dog = kb.entity("Q144")
    assert (dog.label, dog.description, dog.popularity) == ("dog", "domestic animal", 252.0)
    assert dog.types == ("Q502895", "Q213907")
    assert "Q39201" in dog.links  # subclass of: pet
    assert kb.entries("computer printer") == [("Q82", 1.0, "common")]
    assert kb.entries("♕") == [("Q139", 1.0, "proper")]


def test_the_source_hash_is_that_of_the_file(tmp_path):
    manifest = build_kb(BuildKbConfig(source=str(EXCERPT), output=str(tmp_path)))
    assert manifest["source_sha256"] == hashlib.sha256(EXCERPT.read_bytes()).hexdigest()


@pytest.mark.parametrize(("suffix", "opener"), [(".json", open), (".json.bz2", bz2.open)])
def test_compression_does_not_change_the_base(tmp_path, suffix, opener):
    source = tmp_path / f"dump{suffix}"
    with opener(source, "wb") as file:
        file.write(gzip.decompress(EXCERPT.read_bytes()))
    original = build_kb(BuildKbConfig(source=str(EXCERPT), output=str(tmp_path / "a")))
    other = build_kb(BuildKbConfig(source=str(source), output=str(tmp_path / "b")))
    assert original["hash"] == other["hash"]


def test_lines_of_the_demo_become_a_base(tmp_path):
    source = tmp_path / "kb_source.jsonl"
    lines = [
        {"id": "emoji:1f34e", "label": "red apple", "aliases": ["apple"], "types": ["fruit"], "popularity": 2.5},
        {"id": "old:1", "redirect_to": "emoji:1f34e"},
    ]
    source.write_text("\n".join(map(json.dumps, lines)))
    build_kb(BuildKbConfig(source=str(source), output=str(tmp_path / "kb")))
    kb = KnowledgeBase.open(str(tmp_path / "kb"))
    assert kb.entity("old:1").types == ("fruit",)
    assert kb.manifest["num_redirects"] == 1


def test_several_processes_make_the_same_base_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.kb.build.read_dump._BLOCK_BYTES", 200_000)
    source = tmp_path / "dump.json"
    source.write_bytes(gzip.decompress(SAMPLE.read_bytes()))
    config = BuildKbConfig(source=str(source), output=str(tmp_path / "one"), languages="en,fr,ja", processes=1)
    one = build_kb(config)
    two = build_kb(dataclasses.replace(config, output=str(tmp_path / "two"), processes=2))
    assert (one["num_entities"], one["hash"]) == (25, two["hash"])
    kb = KnowledgeBase.open(str(tmp_path / "two"))
    assert (
        [entry.entity_id for entry in kb.entries("エストニア")]
        == ["Q191"]
        == [e.entity_id for e in kb.entries("estonie")]
    )
    assert kb.manifest["languages"] == ["en", "fr", "ja"]


def test_a_parsing_process_that_is_killed_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.kb.build.parse_source._parse", _end_this_process)
    config = BuildKbConfig(source=str(EXCERPT), output=str(tmp_path / "kb"), processes=2)
    with pytest.raises(UserError, match="excerpt.json.gz, a process of the build ended by itself; memory may be short"):
        build_kb(config)


def _end_this_process(block):
    os._exit(1)


def test_redirects_skipped_kinds_bad_lines_and_duplicates_are_counted_and_printed(tmp_path, capsys):
    dog = {"type": "item", "id": "Q144", "labels": {"en": {"language": "en", "value": "dog"}}}
    value = {"entity-type": "item", "numeric-id": 5, "id": "Q5"}
    human = {"P31": [{"mainsnak": {"snaktype": "value", "datavalue": {"value": value}}, "rank": "normal"}]}
    records = [dog, {**dog, "id": "Q23", "claims": human}, {**dog, "id": "Q144"}, {"type": "lexeme", "id": "L1"}]
    source = tmp_path / "dump.json"
    source.write_text("\ufeff[\n" + ",\n".join([*map(json.dumps, records), "{"]) + "\n]\n")
    (tmp_path / "redirects.tsv").write_text("Q2\tQ1\nQ1\tQ144\nQ8\tQ9\nQ9\tQ8\n")
    config = BuildKbConfig(
        source=str(source), output=str(tmp_path / "kb"), skipped_kinds=("Q5",), max_bad_share=0.2,
        redirects=str(tmp_path / "redirects.tsv"),
    )  # fmt: skip
    manifest = build_kb(config)
    counts = {name: manifest[name] for name in ("num_entities", "num_duplicate_ids", "num_bad_lines", "num_redirects")}
    assert counts == {"num_entities": 1, "num_duplicate_ids": 1, "num_bad_lines": 1, "num_redirects": 2}
    assert manifest["skipped"] == {"instance of Q5": 1, "lexeme": 1}
    assert KnowledgeBase.open(str(tmp_path / "kb")).entity("Q2").label == "dog"
    assert capsys.readouterr().out.splitlines() == [
        "skipped: 1 instance of Q5, 1 lexeme",
        "warning: 1 of 5 lines cannot be used and were skipped:",
        f"  {source}, line 6: not valid JSON; give a Wikidata JSON dump or kb_source.jsonl",
        "warning: 1 entities have the id of an earlier one and were skipped",
        "warning: redirects that lead in a circle were left out: Q8 -> Q9 -> Q8",
    ]
    with pytest.raises(
        UserError, match="1 of 5 lines cannot be used, above the share 0.19 of --max-bad-share; the fir"
    ):
        build_kb(dataclasses.replace(config, max_bad_share=0.19))


def test_many_bad_lines_end_the_build_before_the_end(tmp_path):
    source = tmp_path / "dump.json.gz"
    with gzip.open(source, "wt") as file:
        file.write("nonsense\n" * 300_000)
    source.write_bytes(source.read_bytes()[:-10])  # what is after the first bad lines is not reached
    config = BuildKbConfig(source=str(source), output=str(tmp_path / "kb"))
    with pytest.raises(UserError, match=r"of \d\d\d,\d\d\d lines cannot be used, above the share 0.001 .* line 1: not"):
        build_kb(config)
    assert list((tmp_path / "kb").iterdir()) == []


def test_pretty_printed_json_is_called_so(tmp_path):
    source = tmp_path / "dump.json"
    source.write_text(json.dumps([{"type": "item", "id": "Q1"}], indent=2))
    for processes in (1, 2):
        with pytest.raises(UserError, match="dump.json, line 2 is '{': this is pretty-printed JSON"):
            build_kb(BuildKbConfig(source=str(source), output=str(tmp_path / "kb"), processes=processes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": ""}, "--languages: '' is not the code of a language"),
        ({"processes": -1}, "--processes is -1; the least allowed is 0"),
        ({"max_bad_share": 1.5}, "--max-bad-share is 1.5; give a value from 0.0 to 1.0"),
        ({"skipped_kinds": ("P31",)}, "--skipped-kinds: 'P31' is not the id of an item; give ids such as Q4167410"),
        ({"redirects": "none.tsv"}, "none.tsv: no such file; give --redirects an existing file"),
        ({"anchors": "none.tsv"}, "none.tsv: no such file; give --anchors an existing file"),
    ],
)
def test_an_option_out_of_range_is_named_before_the_source_is_read(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        build_kb(BuildKbConfig(source="none", output=str(tmp_path), **options))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "line 1: not valid JSON"),
        ('"Q1"', "line 1: 'Q1' is not an entity; give a Wikidata JSON dump"),
        ("[" * 100_000, "line 1: not valid JSON"),
        ("", "holds no entity"),
        ('{"id": "Q1"}', "kb_source.jsonl, line 1: the field 'label' is missing or blank; give a text$"),
        ('{"id": "Q1", "label": " "}', "line 1: the field 'label' is missing or blank; give a text$"),
        ('{"label": "a"}', "line 1: the field 'id' is missing or blank; give a text$"),
        (
            '{"id": "Q1", "label": "a"}\n{"id": "Q2", "lable": "b"}',
            "/kb_source.jsonl, line 2: the field 'label' is missing or blank; unknown field 'lable'$",
        ),
        (
            '{"id": "Q1", "lable": "b", "alias": []}',
            "line 1: the field 'label' is missing or blank; unknown fields 'lable', 'alias'$",
        ),
        ('{"id": "Q1", "label": 7}', "line 1: label is 7; give a text"),
        ('{"id": "Q1", "label": "\\ud800"}', "line 1: label is .*; give a text"),
        ('{"id": 1, "label": "a"}', "line 1: id is 1; give a text of 1 to 500 bytes"),
        ('{"id": "", "redirect_to": "Q2"}', "line 1: id is ''; give a text of 1 to 500 bytes"),
        ('{"id": "Q1", "redirect_to": null}', "line 1: redirect_to is None; give a text"),
        ('{"id": "Q1", "label": "a"}\n{"id": "Q2", "label": "b", "description": ["c"]}', "line 2: .* in description"),
        ('{"id": "Q1", "label": "a", "aliases": "Apple"}', "line 1: aliases is 'Apple'; give a list"),
        ('{"id": "Q1", "label": "a", "aliases": [null]}', "line 1: None in aliases; give a text"),
        ('{"id": "Q1", "label": "a", "types": [""]}', "line 1: types is ''; give a text of 1 to 500 bytes"),
        ('{"id": "Q1", "label": "a", "links": [5]}', "line 1: links is 5; give a text of 1 to 500 bytes"),
        ('{"id": "Q1", "label": "a", "popularity": "x"}', "line 1: popularity is 'x'; give a number, at least 0"),
        ('{"id": "Q1", "label": "a", "popularity": -1}', "line 1: popularity is -1; give a number"),
        ('{"id": "Q1", "label": "a", "popularity": Infinity}', "line 1: popularity is inf; give a number"),
        (
            '{"type": "item", "id": "Q1", "labels": {"en": {"value": "a"}}, "claims": {"P31": [7]}}',
            r"line 1: a damaged item \(Expected `object`, got `int` - at `\$.claims.P31\[0\]`\)$",
        ),
        (
            '{"type": "item", "id": "Q1", "labels": {"en": {}}, "claims": {}}',
            r"line 1: a damaged item \(Object missing required field `value` - at `\$.labels.en`\)$",
        ),
    ],
    ids=lambda value: value[:40],
)
def test_a_damaged_source_is_named_with_its_line(tmp_path, content, message):
    source = tmp_path / "kb_source.jsonl"
    source.write_text(content)
    with pytest.raises(UserError, match=message):
        build_kb(BuildKbConfig(source=str(source), output=str(tmp_path / "kb")))


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_dump_that_is_damaged_is_an_error_and_leaves_no_base(tmp_path, damage):
    source = tmp_path / "dump.json.gz"
    whole = EXCERPT.read_bytes()
    # Bytes of 255 in the middle are no valid code: zlib gives up there.
    source.write_bytes(whole[:20_000] if damage == "cut" else whole[:20_000] + b"\xff" * 100 + whole[20_100:])
    with pytest.raises(UserError, match="dump.json.gz"):
        build_kb(BuildKbConfig(source=str(source), output=str(tmp_path / "kb")))
    assert not (tmp_path / "kb" / "manifest.json").exists()


def test_the_command_says_one_line_for_a_missing_source(tmp_path):
    command = [sys.executable, "-m", "pipeline.build_kb", "--source", "none.jsonl", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "error: none.jsonl: No such file or directory; give --source an existing dump or kb_source.jsonl\n"
    )


def test_the_texts_of_tars_tell_how_names_are_used(tmp_path):
    with tarfile.open(tmp_path / "pairs.tar", "w") as tar:
        for number, text in enumerate(["dog, kennel", "a kennel", "dog, leash"]):
            for suffix, content in (("png", b"no picture is opened"), ("txt", text.encode())):
                member = tarfile.TarInfo(f"p{number}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    config = BuildKbConfig(source=str(EXCERPT), output=str(tmp_path / "kb"), texts=str(tmp_path / "*.tar"), num_texts=2)
    assert build_kb(config)["num_texts"] == 2
    usage = KnowledgeBase.open(str(tmp_path / "kb")).usage
    words = [hash_word("kennel"), hash_word("leash")]  # the leash is in the third text
    assert usage.seen_share("Q144", words, name_key("hound")) == 0.5


def test_missing_texts_are_reported_before_the_source_is_read(tmp_path):
    (tmp_path / "broken.jsonl").write_text("{")
    config = BuildKbConfig(
        source=str(tmp_path / "broken.jsonl"), output=str(tmp_path / "kb"), texts=str(tmp_path / "*.tar")
    )
    with pytest.raises(UserError, match=r"--texts .*\*.tar matches no file; give the path or glob"):
        build_kb(config)
    with pytest.raises(UserError, match=r"--texts .* is a folder; give its shards"):
        build_kb(dataclasses.replace(config, texts=str(tmp_path)))
