"""Records of a dump become entities; what is none is skipped with its reason."""

import gzip
import json
import marshal
import pathlib

import pytest

from pipeline.kb.build.parse_lines import LineParser, Parsed
from pipeline.kb.build.read_dump import Block
from pipeline.kb.build.wikidata_items import SKIPPED_KINDS, ItemReader, item_decoder, language_chain
from pipeline.schema import UserError

SAMPLE = pathlib.Path(__file__).parent.parent / "data" / "wikidata-dump-sample.json.gz"


def text(value, language="en"):
    return {"language": language, "value": value}


def statement(number, rank="normal", snaktype="value", **fields):
    value = {"entity-type": "item", "numeric-id": number, "id": f"Q{number}", **fields}
    datavalue = {"datavalue": {"value": value, "type": "wikibase-entityid"}} if snaktype == "value" else {}
    return {"mainsnak": {"snaktype": snaktype, **datavalue}, "rank": rank, "type": "statement"}


def item(**fields):
    return {"type": "item", "id": "Q1", "labels": {"en": text("a")}, **fields}


def read(record, languages=("en",)):
    decoded = item_decoder(languages).decode(json.dumps(record))
    return ItemReader(languages, SKIPPED_KINDS).read(decoded)


def parse(*lines):
    content = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return LineParser(["en"], SKIPPED_KINDS).parse(Block(1, content.encode()))


def test_only_statements_of_best_rank_with_a_value_count():
    claims = {
        "P31": [statement(5), statement(6, rank="preferred"), statement(7, rank="deprecated")],
        "P17": [statement(8), statement(9, rank="deprecated"), statement(0, snaktype="somevalue")],
        "P131": [statement(0, snaktype="novalue", rank="preferred"), statement(10)],
        "P361": [statement(11, rank="deprecated")],
        "P569": [{"mainsnak": {"snaktype": "value", "datavalue": {"value": {"time": "+1"}}}, "rank": "normal"}],
        "P50": [statement(12, id=None), {"mainsnak": {"snaktype": "value", "datavalue": {"value": "x"}}}],
    }
    _, record = read(item(claims=claims))
    # Of P131 the preferred statement says that there is none.
    assert (record.types, record.links) == ([6], [6, 8, 12])


def test_the_label_is_that_of_the_first_language_and_the_others_are_aliases():
    record = item(
        labels={"fr": text("Allemagne"), "de": text("Deutschland"), "mul": text("DE"), "en-gb": text("Germany")},
        descriptions={"fr": text("pays"), "en-gb": text("country")},
        aliases={"en": [text("Germany"), text("FRG")], "fr": [text("RFA"), text(" ")], "de": [text("BRD")]},
        sitelinks={"enwiki": {"site": "enwiki", "title": 'a "site": b'}, "frwiki": {"site": "frwiki", "title": "x"}},
    )
    entity_id, found = read(record, ("en", "fr"))
    assert language_chain(["en", "fr"]) == ("en", "mul", "en-gb", "en-ca", "en-us", "fr")
    assert (entity_id, found.label, found.description, found.popularity) == ("Q1", "DE", "country", 2.0)
    assert found.aliases == ["Germany", "Allemagne", "FRG", "RFA"]
    assert read(record, ("fr",))[1].label == "Allemagne"
    assert language_chain(["pt-br"]) == ("pt-br", "mul", "pt")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (item(claims={"P31": [statement(4167410)]}), "disambiguation page"),
        (item(claims={"P31": [statement(5), statement(13442814)]}), "scholarly article"),
        ({"type": "property", "id": "P1", "labels": {"en": text("x")}}, "property"),
        ({"type": "mediainfo", "id": "M1", "labels": [], "statements": []}, "mediainfo"),
        (item(labels=[]), "no label in en"),
        (item(labels={"en": text(" "), "de": text("b")}), "no label in en"),
    ],
)
def test_what_is_no_thing_is_skipped_with_its_reason(record, reason):
    assert read(record) == reason
    assert dict(parse(record).skipped) == {reason: 1}


def test_lexemes_of_any_form_and_items_without_claims_are_no_bad_lines():
    lexeme = {"type": "lexeme", "id": "L1", "lemmas": {"en": text("x")}, "claims": {"P31": 7}, "forms": []}
    parsed = parse("[", {**lexeme, "claims": []}, json.dumps(lexeme) + ",", item(), item(claims=[], aliases=[]), "]")
    assert (dict(parsed.skipped), parsed.num_bad, parsed.entries.num_entries) == ({"lexeme": 2}, 0, 2)
    assert [entry[1] for entry in marshal.loads(parsed.entries.packed)] == [4, 5]  # numbers of the lines


def test_bad_lines_are_counted_with_their_numbers():
    bad = item(labels={"en": {}})
    parsed = parse(
        item(), "{x", bad, item(id="P7"), '"Q1"', {"id": "Q2", "label": "b"}, {"id": "Q3", "redirect_to": "Q1"}
    )
    assert (parsed.num_lines, parsed.num_bad, parsed.entries.num_entries) == (7, 4, 2)
    assert parsed.bad == [
        (2, "not valid JSON; give a Wikidata JSON dump or kb_source.jsonl"),
        (3, "a damaged item (Object missing required field `value` - at `$.labels.en`)"),
        (4, "a damaged item (its id is 'P7')"),
        (5, "'Q1' is not an entity; give a Wikidata JSON dump or lines with at least id and label"),
    ]
    assert parsed.redirects == [("Q3", "Q1")]
    assert Parsed.from_bytes(parsed.to_bytes()) == parsed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps([item()], indent=2), "line 2 is '{': this is pretty-printed JSON, one field per line; write each"),
        (json.dumps({"entities": {"Q1": item()}}, indent=1), "line 1 is '{': this is pretty-printed JSON"),
        (json.dumps([item(), item()]), "line 1 holds a whole list of entities; write each entity on a line of its own"),
    ],
)
def test_json_of_another_layout_is_called_so(content, message):
    with pytest.raises(UserError, match=message):
        parse(content)


def test_a_real_sample_is_read_whole():
    content = gzip.decompress(SAMPLE.read_bytes())
    parsed = LineParser(["en", "ja"], SKIPPED_KINDS).parse(Block(1, content))
    assert (parsed.num_lines, parsed.num_bad, parsed.entries.num_entries, dict(parsed.skipped)) == (25, 0, 25, {})
    decoded = json.loads(content.split(b"\n")[1].rstrip(b","))
    _, scotland = read(decoded, ("en", "ja"))
    assert (scotland.label, scotland.popularity, scotland.aliases[0]) == ("Scotland", 223.0, "スコットランド")
    assert "Caledonia" in scotland.aliases  # which only British English has
    # Located in: the United Kingdom is preferred, Great Britain is not.
    places = [one["mainsnak"]["datavalue"]["value"]["numeric-id"] for one in decoded["claims"]["P131"]]
    ranks = [one["rank"] for one in decoded["claims"]["P131"]]
    assert ranks == ["preferred", "normal", "normal"]
    assert places[0] in scotland.links and places[1] not in scotland.links
