"""Names of entities become keys with priors, case classes and P(link | alias)."""

import numpy as np
import pytest

from pipeline.kb.build.alias_table import Meaning, case_of, names_of, priors
from pipeline.kb.build.anchors import Anchor, read_anchors
from pipeline.kb.build.link_probability import LinkProbability, WordCase, check_languages, word_case
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.store import Entity, KnowledgeBase
from pipeline.schema import UserError

APPLE = Entity(entity_id="Q312", label="Apple Inc.", aliases=("AAPL",), popularity=3.0)
FRUIT = Entity(entity_id="Q89", label="apple", description="fruit of the apple tree", popularity=1.0)


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("Apple", "proper"),
        ("iPhone", "proper"),
        ("apple", "common"),
        ("NASA", "acronym"),
        ("AT&T", "acronym"),
        ("H.I.S.", "acronym"),
        ("A", "proper"),
        ("NEW YORK", "proper"),
        ("東京", "proper"),
        ("7", "proper"),
    ],
)
def test_a_name_is_proper_an_acronym_or_common(name, case):
    assert case_of(name) == case


def test_names_that_normalise_to_nothing_are_left_out():
    names = names_of("Apple Inc.", ("  ", "\u3000", "x" * 600, "APPLE"), 1.0)
    # (1 + 1) * 1 for the label, * 0.4 for the name without its legal form; "APPLE" has the key of the latter.
    assert names == [("apple inc", 2.0, "proper"), ("apple", 0.8, "proper")]


def test_priors_mix_anchors_with_popularity_and_sum_to_one():
    meanings = [Meaning(5, 3.0, 0, 0), Meaning(6, 1.0, 2, 8), Meaning(7, 0.0, 0, 1)]
    # 9 anchors and one that popularity spreads 3 to 1: (0 + 0.75) / 10, (8 + 0.25) / 10, (1 + 0) / 10.
    expected = [(6, 0.825, 2), (7, 0.1, 0), (5, 0.075, 0)]
    assert priors(meanings) == [(entity, pytest.approx(prior), case) for entity, prior, case in expected]
    assert priors([Meaning(7, 0.0, 0, 2)]) == [(7, 1.0, 0)]


def test_links_to_what_the_base_lacks_leave_less_for_what_it_has():
    # Of 19 links 10 mean something else: (9 + 1) / (19 + 1).
    assert priors([Meaning(5, 3.0, 0, 9)], num_outside=10) == [(5, 0.5, 0)]
    assert priors([Meaning(5, 3.0, 0, 0)], num_outside=1) == [(5, 0.5, 0)]
    assert priors([Meaning(5, 0.0, 0, 3)], num_outside=9) == [(5, 0.25, 0)]


def test_a_frequent_small_word_is_hardly_a_name_a_capital_or_rare_one_is():
    counts = WordCase()
    for description in ["country west of Brazil", "Brazil, a state", "herb like thyme", "river in Brazil"]:
        counts.add(np.array([word_case(word) for word in description.split()[1:]], "<u4").tobytes())
    probability = LinkProbability(["en"], counts)
    his, brazil, thyme = 0.003235936569296281, 3.8018939632056124e-05, 1.1748975549395304e-06  # wordfreq's
    assert probability("his") == pytest.approx(1 / (1 + his / 1e-6))
    # Twice with a capital; the one at the beginning of a description does not count.
    assert probability("brazil") == pytest.approx((2 + 2 / (1 + brazil / 1e-6)) / 4)
    assert probability("thyme") == pytest.approx((2 / (1 + thyme / 1e-6)) / 3)
    assert probability("zorblax") == 1.0
    assert probability("his thyme") == pytest.approx(1 / (1 + his * thyme / 1e-6))
    # 3 + 5 p of 3 + 7 + 5
    assert probability("zorblax", linked=3, unlinked=7) == pytest.approx(8 / 15)


def test_scripts_without_capitals_are_names_at_least_half_of_the_time():
    assert LinkProbability(["ja"], WordCase())("日本") == 0.5
    assert LinkProbability(["en"], WordCase())("東京タワー") == 1.0
    assert LinkProbability(["xx"], WordCase())("his") == 1.0  # a language without frequencies


def test_anchors_make_priors_new_names_and_link_probabilities(tmp_path):
    path = tmp_path / "anchors.tsv"
    path.write_text(
        "Apple\tQ312\t6\nApple\tQ89\t1\nAPPLE\tQ312\t1\nApple\tQ404\t2\napple\t\t15\n\ncupertino firm\told\t4\n",
        encoding="utf-8-sig",
    )
    with KnowledgeBaseWriter(str(tmp_path / "kb"), anchors=str(path)) as writer:
        for entity in (APPLE, FRUIT):
            writer.add(entity)
        writer.add_redirect("old", "Q312")
        writer.commit(source="source", source_sha256="0")
    kb = KnowledgeBase.open(str(tmp_path / "kb"))
    apple = kb.alias("apple")
    # Weights: (1 + 3) * 0.4 = 1.6 without the legal form, (1 + 1) * 1 = 2. Anchors: 7, 1, and 2 of what is not there.
    assert [entry.entity_id for entry in apple.entries] == ["Q312", "Q89"]
    assert [entry.prior for entry in apple.entries] == pytest.approx(
        [(7 + 1.6 / 3.6) / 11, (1 + 2 / 3.6) / 11], rel=1e-6
    )
    assert [entry.is_name for entry in apple.entries] == [True, False]
    # Linked 10 times, those of the entity that the base lacks included, and not 15 times; once small in a description.
    before = (0 + 2 / (1 + 3.90e-05 / 1e-6)) / 3
    assert apple.link_probability == pytest.approx((10 + 5 * before) / 30, rel=0.01)
    assert kb.entries("cupertino firm") == [("Q312", 1.0, "common")]
    assert kb.alias("pear") is None


def test_anchors_are_read_with_their_spelling(tmp_path):
    path = tmp_path / "anchors.tsv"
    path.write_bytes("\ufeffNew  York\tQ60\t3\r\nnew york\t\t2\n".encode())
    assert list(read_anchors(str(path))) == [
        Anchor("New  York", "new york", "Q60", 3),
        Anchor("new york", "new york", "", 2),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Apple\tQ312\n", r"anchors.tsv, line 1: 2 columns; give lines of: alias <tab> entity id <tab> count"),
        (b"a\tQ1\t1\n \tQ1\t2\n", "line 2: the alias ' ' normalises to 0 bytes; give a name of 1 to 500$"),
        (b"Apple\tQ312\t0\n", "line 1: the count is '0'; give a whole number from 1 to 1000000000000$"),
        (b"Apple\tQ312\t1.5\n", "line 1: the count is '1.5'; give a whole number"),
        (b"Apple\tQ312\t\xc2\xb2\n", "line 1: the count is '²'; give a whole number"),
        (b"\xff\xfeA\tQ1\t1\n", "anchors.tsv: not UTF-8 .* at byte 0"),
    ],
)
def test_a_damaged_file_of_anchors_is_named_with_its_line(tmp_path, content, message):
    path = tmp_path / "anchors.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_anchors(str(path)))


def test_a_missing_file_of_anchors_is_named(tmp_path):
    with pytest.raises(UserError, match="none.tsv: No such file or directory; give --anchors an existing file"):
        list(read_anchors(str(tmp_path / "none.tsv")))


@pytest.mark.parametrize(
    ("languages", "message"),
    [
        ([], "--languages is empty"),
        (["en", ""], "'' is not the code of a language"),
        (["English!"], "'English!' is not the code"),
        (["en", "en"], "en,en names a language twice"),
    ],
)
def test_languages_that_are_none_are_refused(languages, message):
    with pytest.raises(UserError, match=message):
        check_languages(languages)


def test_a_name_that_careless_writers_spell_otherwise_has_that_key_too():
    found = names_of("Citroën", ("Citroen", "'"), 1.0)
    # The folded key stands apart, so "citroen" itself remains the alias.
    assert [(one.key, one.weight) for one in found] == [
        ("citroën", 2.0), ("\x01citroen", 2.0), ("citroen", 0.8), ("'", 0.8)
    ]  # fmt: skip


def test_a_folded_key_is_as_often_a_name_as_the_word():
    probability = LinkProbability(["en"], WordCase())
    assert probability("\x01his") == probability("his") < 0.01


def test_an_entity_with_a_proper_label_has_no_common_nouns():
    cases = {name.key: name.case for name in names_of("Central Pattana", ["central", "CPN"], 1.0)}
    assert cases == {"central pattana": "proper", "central": "proper", "cpn": "acronym"}
    cases = {name.key: name.case for name in names_of("laser printer", ["printer", "Laserjet"], 1.0)}
    assert cases == {"laser printer": "common", "printer": "common", "laserjet": "proper"}
