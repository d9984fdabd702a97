"""A base of the links of articles, merged with the demo's."""

import json

from evaluation.linking.wikipedia_base import base_of, is_kept, write_merged_base
from pipeline.wiki.articles import Article, read_markup

GEORGIA = {"id": "Q230", "label": "Georgia", "description": "country", "aliases": ["Sakartvelo"], "types": ["country"]}


def write(tmp_path, markup, **kwargs):
    source = tmp_path / "demo.jsonl"
    source.write_text(json.dumps(GEORGIA) + '\n{"id": "old", "redirect_to": "Q230"}\n')
    articles = [Article(title="Tbilisi", redirect="", paragraphs=tuple(read_markup(markup)))]
    base = write_merged_base(articles, source, tmp_path / "merged", **kwargs)
    return base, [json.loads(line) for line in base.source.read_text().splitlines()]


def test_what_is_linked_is_an_entity_and_the_tables_titles_are_those_of_the_demo(tmp_path):
    base, lines = write(
        tmp_path, "[[Georgia (country)|Georgia]], [[Mercury (planet)|Mercury]] x2: [[Mercury (planet)]]"
    )
    mercury = ["enwiki:Mercury (planet)"]
    assert lines[:2] == [GEORGIA | {"links": mercury}, {"id": "old", "redirect_to": "Q230"}]
    assert lines[2:] == [
        {
            "id": "enwiki:Mercury (planet)",
            "label": "Mercury",
            "description": "planet",
            "aliases": [],
            "types": ["planet"],
            "popularity": 2.0,
            "links": ["Q230"],  # beside it; the article Tbilisi is no entity, since nothing links it
        }
    ]
    assert base.anchors.read_text() == (
        "Georgia\tQ230\t1\nMercury\tenwiki:Mercury (planet)\t1\nMercury (planet)\tenwiki:Mercury (planet)\t1\n"
    )
    assert base.entities_of("Georgia (country)") == ("Q230",)
    assert base.entities_of("Mercury (planet)") == ("enwiki:Mercury (planet)",)
    assert base.entities_of("Mercury (element)") == ()


def test_spellings_of_a_title_are_one_entity(tmp_path):
    base, lines = write(tmp_path, "[[Adriatic]] [[Adriatic Sea]]")
    assert [line["id"] for line in lines[2:]] == ["enwiki:Adriatic Sea"]
    assert base.entities_of("Adriatic") == ("enwiki:Adriatic Sea",)


def test_an_entity_links_the_articles_that_link_it_and_what_is_linked_beside_it_most_often_first(tmp_path):
    _, lines = write(tmp_path, "[[Tbilisi]]\n\n[[River]] [[Lake]] [[Sea]] [[Nile]]\n\n[[River]] [[Nile]]")
    links = {line["id"]: line["links"] for line in lines[2:]}
    assert links["enwiki:River"] == ["enwiki:Tbilisi", "enwiki:Nile", "enwiki:Lake", "enwiki:Sea"]
    assert links["enwiki:Tbilisi"] == []


def test_a_paragraph_of_many_links_ties_none_of_them(tmp_path):
    _, lines = write(tmp_path, " ".join(f"[[City {number}]]" for number in range(61)))
    assert all(line["links"] == [] for line in lines[2:])


def test_entities_that_are_left_out_are_neither_in_the_base_nor_named_by_texts(tmp_path):
    markup = "[[Georgia (country)|Georgia]] " + " ".join(f"[[City {number}]]" for number in range(40))
    ids = ["Q230", *(f"enwiki:City {number}" for number in range(40))]
    base, lines = write(tmp_path, markup, kept_share=0.5)
    kept = [one for one in ids if is_kept(one, 0.5)]
    assert 10 < len(kept) < 30  # 20 are expected
    assert {line["id"] for line in lines if "label" in line} == set(kept) == base.entity_ids
    assert [base.entities_of(f"City {n}") for n in range(40)] == [
        ((f"enwiki:City {n}",) if is_kept(f"enwiki:City {n}", 0.5) else ()) for n in range(40)
    ]
    assert [line.split("\t")[1] for line in base.anchors.read_text().splitlines()] == sorted(kept, key=str.casefold)
    assert len(base.all_anchors.read_text().splitlines()) == 41


def test_the_demos_base_alone_knows_no_other_entity(tmp_path):
    source = tmp_path / "demo.jsonl"
    source.write_text(json.dumps(GEORGIA))
    base = base_of(source)
    assert base.entities_of("Georgia (country)") == ("Q230",)
    assert base.entities_of("Georgia (U.S. state)") == () and base.entities_of("Mercury (planet)") == ()


def test_a_label_is_written_as_most_links_write_it(tmp_path):
    markup = (
        "the [[planet]] and a [[planet]]. [[Planet]], and [[Mars]] or [[mars]]; [[Water (classical element)|water]]"
    )
    _, lines = write(tmp_path, markup)
    assert [line["label"] for line in lines[2:]] == ["Mars", "planet", "water"]
