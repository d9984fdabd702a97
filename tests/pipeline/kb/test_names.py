"""Names in running text, in the spellings that people use."""

from __future__ import annotations

import random
import string
from pathlib import Path

import pytest

from pipeline.kb import names
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.function_words import of_languages
from pipeline.kb.names import find_names, head, is_known, spellings
from pipeline.kb.normalise import WORD, fold_key, normalise_alias, normalise_piece
from pipeline.kb.store import Entity, KnowledgeBase

ENGLISH = of_languages(("en",))  # once, before the tests: reading it takes longer than any of them
BANGKOK = "\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e\u0e21\u0e2b\u0e32\u0e19\u0e04\u0e23"
NEW_ZEALAND = "\u30cb\u30e5\u30fc\u30b8\u30fc\u30e9\u30f3\u30c9"
LONG = "a very long name of quite a lot of words that goes on and on"
LABELS = (
    "New York City", "New York", "apple", "McDonald's", "Apple Inc.", "Wendy's", "Citro\u00ebn", "Nestl\u00e9",
    "South Africa", "USA", "H&M", "M&S", "Marks & Spencer", "J. R. R. Tolkien", "YouTube", "L'Or\u00e9al", "HEAD",
    NEW_ZEALAND, "\u30e9\u30f3\u30c9", "\u6771\u4eac", "\u76ee", "\u304b",
    BANGKOK, "\u092d\u093e\u0930\u0924",
    "H.I.S.", "The Who", "The Hague", "Sur la table", "Amsterdam", "US", "IT", "100", "X", "us", "SÃO", "Gap", "cherry",
    LONG, "United States of America", "7-Eleven", "C.D.",
    "10 000", "BP", "The Apple Inn", "CO2", "\u0645\u0635\u0631",
)  # fmt: skip


@pytest.fixture(scope="module")
def kb(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeBase:
    path = str(tmp_path_factory.mktemp("kb"))
    with KnowledgeBaseWriter(path) as writer:
        for number, label in enumerate(LABELS):
            writer.add(Entity(entity_id=f"Q{number}", label=label))
        writer.commit(source="x", source_sha256="")
    return KnowledgeBase.open(path)


def found(text: str, kb: KnowledgeBase) -> list[str]:
    return [text[start:end] for start, end in find_names(text, kb)]


def split_tokens(text: str, kb: KnowledgeBase) -> list[names.Token]:
    """Returns the words of `text`, all cut that may be."""
    words, parts = names.split_words(text, kb)
    return [token for place, word in enumerate(words) for token in parts.get(place, [word])]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Night in New York City, New York", ["New York City", "New York"]),  # the longest
        ("New York, City of New", ["New York"]),
        ("two apples_and-apple.png", ["apples", "apple"]),
        ("new_york-city_64px", ["new_york-city"]),
        ("seven cherries", ["cherries"]),
        (LONG + " and", [LONG]),
        ("a very long name of quite a lot of apples", ["apples"]),
        ("7-Eleven at night", ["7-Eleven"]),
    ],
)
def test_the_longest_name_wins_whatever_its_number_of_words(text: str, expected: list[str], kb: KnowledgeBase) -> None:
    assert found(text, kb) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lunch at wendys today", ["wendys"]),
        ("lunch at Wendy\u2019s today", ["Wendy\u2019s"]),
        ("a Citroen in the rain", ["Citroen"]),
        ("a CITROEN in the rain", ["CITROEN"]),
        ("nestle water", ["nestle"]),
        ("Loreal and L'Oreal", ["Loreal", "L'Oreal"]),
        ("#SouthAfrica #SouthAfricaTravel2024", ["SouthAfrica", "SouthAfrica"]),
        ("#SouthAfrica Inc. and #usa2024", ["SouthAfrica Inc.", "usa"]),
        ("#YouTube #USAToday", ["YouTube", "USA"]),  # the base knows YouTube joined
        ("the U.S.A. in May", ["U.S.A."]),
        ("H & M, H&M, h & m", ["H & M", "H&M", "h & m"]),
        ("M&S food hall", ["M&S"]),
        ("Marks and Spencer", ["Marks and Spencer"]),
        ("Marks and Sparks", []),
        ("books by J.R.R. Tolkien and by JRR Tolkien", ["J.R.R. Tolkien", "JRR Tolkien"]),
    ],
)
def test_accents_apostrophes_dots_and_joined_words_do_not_matter(
    text: str, expected: list[str], kb: KnowledgeBase
) -> None:
    assert found(text, kb) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Nestl\u00e9\u00b9 chocolate, Amsterdam\u00b2", ["Nestl\u00e9", "Amsterdam"]),  # footnotes
        ("\u2460Amsterdam", ["Amsterdam"]),
        ("CO\u2082 and CO2", ["CO\u2082", "CO2"]),
        ("Wendy\u00b4s, Wendy\u2032s and L\u00b4Or\u00e9al", ["Wendy\u00b4s", "Wendy\u2032s", "L\u00b4Or\u00e9al"]),
        ("\u0645\u0635\u0640\u0640\u0631, \u0645\u0650\u0635\u0652\u0631",
         ["\u0645\u0635\u0640\u0640\u0631", "\u0645\u0650\u0635\u0652\u0631"]),
    ],
)  # fmt: skip
def test_footnotes_vowel_signs_and_any_apostrophe_do_not_matter(
    text: str, expected: list[str], kb: KnowledgeBase
) -> None:
    assert found(text, kb) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{NEW_ZEALAND}\u306e\u56fd\u65d7", [NEW_ZEALAND]),
        ("\u591c\u306e\u6771\u4eac\u30bf\u30ef\u30fc", ["\u6771\u4eac"]),
        ("\u76ee\u304b", ["\u76ee"]),  # one Han sign may be a name, one kana may not
        (f"\u0e44\u0e1b{BANGKOK}\u0e01\u0e31\u0e19", [BANGKOK]),
        ("\u092d\u093e\u0930\u0924 \u0915\u093e", ["\u092d\u093e\u0930\u0924"]),  # vowel signs belong to their letters
    ],
)  # fmt: skip
def test_scripts_without_spaces_are_searched_within_their_runs(
    text: str, expected: list[str], kb: KnowledgeBase
) -> None:
    assert found(text, kb) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("his group of friends", []),  # not H.I.S., by way of "his"
        ("a trip with H.I.S. or H.I.S Group", ["H.I.S.", "H.I.S Group"]),
        ("it's who we're", []),
        ("tell us inc nothing", []),
        ("it is US, made in the US", ["US", "US"]),  # the base has the acronym
        ("MADE IN THE US, IT IS", []),  # all in capitals: it may be the word
        ("it is IT that is at BP", ["IT", "BP"]),
        ("it is the who band", []),
        ("a concert of The Who in The Hague", ["The Who", "The Hague"]),
        ("the apple", ["apple"]),
        ("des fleurs sur la table", []),
        ("shopping at Sur La Table with des fleurs", ["Sur La Table"]),
        ("a table from sur la table, the shop", ["sur la table"]),  # the text is in English
        ("100 X x 10 000", []),
        ("the g.c.d. of two", []),
        ("heads of state", []),  # a plural of a brand
        ("Apple's core, Gap's sale", ["Apple", "Gap"]),
    ],
)
def test_function_words_figures_letters_and_plurals_of_names_are_no_names(
    text: str, expected: list[str], kb: KnowledgeBase
) -> None:
    assert found(text, kb) == expected


def test_the_dot_of_an_abbreviation_belongs_to_the_name_and_an_article_does_not(kb: KnowledgeBase) -> None:
    assert found("The Apple Inc. logo of New York.", kb) == ["Apple Inc.", "New York"]
    assert found("Apple Group. New", kb) == ["Apple Group"]


@pytest.mark.parametrize(
    "form",
    "incorporated corporation holdings holding limited company group gmbh corp inc ltd llc plc ag sa se nv ab oy bv kg"
    " co".split(),
)
def test_a_name_is_found_with_any_legal_form_behind_it(form: str, kb: KnowledgeBase) -> None:
    assert found(f"the BP {form} building", kb) == [f"BP {form}"]


@pytest.mark.parametrize("end", ["Inc", "Ltd", "Co", "Corp", "Bros", "Jr", "SR", "A.B", "H.I.S"])
def test_the_dot_of_an_abbreviation_at_the_end_belongs_to_the_name(end: str, tmp_path: Path) -> None:
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        for number, label in enumerate((f"Apple {end}", "Disco", "Bros Bar", "A.B Bar", end + "x")):
            writer.add(Entity(entity_id=f"Q{number}", label=label))
        writer.commit(source="x", source_sha256="")
    kb = KnowledgeBase.open(str(tmp_path))
    text = f"the Apple {end}. of today, a Disco. And a Bros Bar. And an A.B Bar. And {end}x."
    assert found(text, kb) == [f"Apple {end}.", "Disco", "Bros Bar", "A.B Bar", end + "x"]


@pytest.mark.parametrize(
    "text", ["", " ", "\x00\x01", "\u10d0\u10d1\u10d2 \u12a0", "\ud800 \udfff", "!!! ...", "a\ud800b"]
)
def test_a_text_without_a_word_that_the_base_knows_has_no_names(text: str, kb: KnowledgeBase) -> None:
    assert found(text, kb) == []


def test_half_of_a_surrogate_pair_beside_a_name_does_no_harm(kb: KnowledgeBase) -> None:
    assert found("apple\ud800New York \udc00", kb) == ["apple", "New York"]
    assert not is_known("\ud800", kb)


def test_spellings_are_the_name_itself_then_what_matches_less(kb: KnowledgeBase) -> None:
    assert [(one.key, one.match, one.nouns_only) for one in spellings("The Apples Inc.", kb)] == [
        ("the apples inc", 1.0, False),
        ("apples inc", 0.9, False),
        ("the apples", 0.7, False),
        ("\x01the apples inc", 0.8, False),
    ]
    assert [(one.key, one.match, one.nouns_only) for one in spellings("Wendy's", kb)] == [
        ("wendy's", 1.0, False),
        ("wendy", 0.9, False),
        ("wendys", 0.8, False),
        ("\x01wendys", 0.8, False),
    ]
    assert [(one.key, one.match, one.nouns_only) for one in spellings("apples", kb)] == [
        ("apples", 1.0, False),
        ("apple", 0.6, True),
        ("\x01apples", 0.8, False),
    ]
    assert [(one.key, one.match) for one in spellings("SouthAfrica Inc", kb)] == [
        ("southafrica inc", 1.0), ("southafrica", 0.7), ("\x01southafrica inc", 0.8),
        ("south africa inc", 0.8), ("south africa", 0.7), ("\x01south africa inc", 0.8),
    ]  # fmt: skip
    assert [one.key for one in spellings("us inc", kb)] == ["us inc", "\x01us inc"]  # without "us"


def test_a_name_is_known_in_any_spelling(kb: KnowledgeBase) -> None:
    assert all(is_known(name, kb) for name in ("apples", "Apple's", "WENDYS", "Citroen", "SouthAfrica", "The Gap"))
    assert not any(is_known(name, kb) for name in ("heads", "appl", "", "New"))


def test_a_key_is_made_up_of_the_pieces_of_the_text(kb: KnowledgeBase) -> None:
    """The search adds up normalised words; that must be what the writer of the base does with the whole name."""
    draw = random.Random(0)
    letters = string.ascii_letters + "\u00e9\u00c9\u00df\u0130\u1e9e\uff21\u30ac\u6771\u0e01\u0e31\ufb01 -_.'&\u2019,"
    for _ in range(3000):
        text = "".join(draw.choices(letters, k=12))
        tokens = split_tokens(text, kb)
        if tokens:
            joined = "".join(token.before * bool(place) + token.key for place, token in enumerate(tokens))
            whole = normalise_alias(text[tokens[0].start : tokens[-1].end])
            # A word that is written without blanks gets them.
            assert (joined if " " in text else joined.replace(" ", "")) == (
                whole if " " in text else whole.replace(" ", "")
            ), text


def test_tokens_of_a_hashtag_are_its_parts_unless_the_base_has_it(kb: KnowledgeBase) -> None:
    def tokens(text: str) -> list[tuple[int, int, str, str]]:
        return [tuple(token) for token in split_tokens(text, kb)]

    assert tokens("a, #SouthAfrica2") == [
        (0, 1, "a", ""), (4, 9, "south", ", #"), (9, 15, "africa", " "), (15, 16, "2", " ")
    ]  # fmt: skip
    assert [token[2] for token in tokens("#USAToDay #YouTube #youTUBE's #Wendys #ABC")] == [
        "usa", "to", "day", "youtube", "youtube", "s", "wendys", "abc"
    ]  # fmt: skip
    assert tokens("SouthAfrica") == [(0, 11, "south africa", "")]
    assert tokens("NorthAfrica") == [(0, 11, "northafrica", "")]
    assert [token[2] for token in tokens("#iPad #inAfrica")] == ["ipad", "in", "africa"]
    assert tokens(", a") == [(2, 3, "a", ", ")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a SouthAfrica trip, SouthAfrica's coast", ["SouthAfrica", "SouthAfrica"]),  # its parts are a name
        ("SouthAfrica_map.png", ["SouthAfrica"]),
        ("a SouthAmsterdam trip", []),  # its parts are none
        ("SouthAmsterdam.png", ["Amsterdam"]),  # but they are words of a file name
        ("amsterdam2019.jpg, IMG_2019Amsterdam.jpg".replace(", ", ","), ["amsterdam", "Amsterdam"]),
        ("amsterdam2019 in May", []),
        ("MyAmsterdam", []),  # one word is no file name
        ("#southafrica #SOUTHAFRICA @southafrica @SouthAfrica",
         ["southafrica", "SOUTHAFRICA", "southafrica", "SouthAfrica"]),
        ("#southafrica2019 @SouthAmsterdam", []),  # neither a name nor words
        ("southafrica in May", []),
        ("southafrica.jpg", ["southafrica"]),
        ("#newyorkcity #newyorkcitytrip #tripnewyork", ["newyorkcity"]),  # a name is all of the word
        ("#newyork #theapple", []),  # too short for several words; an article is no part of a name
        ("#jrrtolkien #nestle #amsterdam", ["jrrtolkien", "nestle", "amsterdam"]),
        ("#gapgapgap #thegap", []),
        ("#southafrikaa #\ud800southafrica #", []),
    ],
)  # fmt: skip
def test_a_name_may_be_written_without_blanks(text: str, expected: list[str], kb: KnowledgeBase) -> None:
    assert found(text, kb) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("McDonald's", ["McDonald's"]),
        ("McDonald's_Paris.jpg", ["McDonald's", "Paris"]),
        ("Airbus_A380.jpg", ["Airbus_A380"]),
        ("airbus-a380-rome.jpg", ["airbus-a380", "rome"]),
        ("Airbus_A380\u3001\u6771\u4eac", ["Airbus_A380", "\u6771\u4eac"]),
        ("JPMorgan-Chase", ["JPMorgan-Chase"]),
        ("JPMorgan-Paris.jpg", ["Morgan", "Paris"]),  # in no name as it is
        ("JPMorgan-Chase_romeTrip2.jpg", ["JPMorgan-Chase", "rome"]),  # one word is cut, the other is not
        ("romeTrip2_JPMorgan-Chase", ["rome", "JPMorgan-Chase"]),
        ("MacBook_Air.png", ["MacBook_Air"]),
        ("PlayStation_5.jpg", ["PlayStation_5"]),
        ("LaGuardia_Airport.jpg", ["LaGuardia_Airport"]),
        ("Galaxy_S23.jpg", ["Galaxy_S23"]),
        ("DeLorean_DMC-12.jpg", ["DeLorean_DMC-12"]),
        ("DuPont_Circle.jpg", ["DuPont_Circle"]),
        ("BigRome_Paris.jpg", ["Rome", "Paris"]),
        ("the #JPMorgan-Chase tower", ["JPMorgan-Chase"]),
        ("#JPMorganChase #LaGuardiaAirport", ["JPMorganChase", "LaGuardiaAirport"]),  # cut otherwise than by capitals
    ],
)
def test_a_word_is_cut_only_if_it_is_in_no_name_as_it_is(text: str, expected: list[str], tmp_path: Path) -> None:
    labels = (
        "McDonald's", "Airbus A380", "JPMorgan Chase", "Morgan", "Chase", "MacBook Air", "Play", "Station",
        "PlayStation 5", "LaGuardia Airport", "Galaxy S23", "DeLorean DMC-12", "DuPont Circle", "Rome", "Paris",
        "\u6771\u4eac",
    )  # fmt: skip
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        for number, label in enumerate(labels):
            writer.add(Entity(entity_id=f"Q{number}", label=label))
        writer.commit(source="x", source_sha256="")
    assert found(text, KnowledgeBase.open(str(tmp_path))) == expected


def test_only_a_text_with_a_word_that_may_be_cut_is_searched_twice(
    kb: KnowledgeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[list[str]] = []
    search = names._Search
    monkeypatch.setattr(
        names,
        "_Search",
        lambda text, tokens, kb: searched.append([one.key for one in tokens]) or search(text, tokens, kb),
    )
    found("southafrica_map.png", kb)
    assert searched == [["south africa", "map", "png"]]
    found("NorthAfrica_map.png", kb)
    assert searched[1:] == [["northafrica", "map", "png"], ["north", "africa", "map", "png"]]


def test_a_name_with_an_accent_is_no_noun_without_it_but_one_with_an_apostrophe_may_be(tmp_path: Path) -> None:
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        for number, label in enumerate(("R\u00e9union", "Levi's", "A.B", "H & M", "L'Or\u00e9al")):
            writer.add(Entity(entity_id=f"Q{number}", label=label))
        writer.commit(source="x", source_sha256="")
    kb = KnowledgeBase.open(str(tmp_path))
    for surface, names_only in (
        ("R\u00e9union", True), ("L'Or\u00e9al", True), ("Levi's", False), ("A.B", False), ("H & M", False),
    ):  # fmt: skip
        folded = [one for one in spellings(surface, kb) if one.key.removeprefix("\x01") == fold_key(surface.lower())]
        assert [one.names_only for one in folded] == [names_only] * 2, surface


def test_of_the_ways_to_part_a_word_the_one_that_goes_on_longest_without_a_blank_is_taken(tmp_path: Path) -> None:
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        for number, label in enumerate(
            ("The Rapist", "Ther Apist", "No Where Man", "Caf\u00e9 de Flore", "ab cd ef gh")
        ):
            writer.add(Entity(entity_id=f"Q{number}", label=label))
        writer.commit(source="x", source_sha256="")
    kb = KnowledgeBase.open(str(tmp_path))
    assert [token.key for token in split_tokens("#therapist #nowhereman #cafedeflore #abcdefgh", kb)] == [
        "ther apist", "no where man", "cafe de flore", "ab cd ef gh"
    ]  # fmt: skip
    assert [one.key for one in spellings("cafedeflore", kb)] == ["cafedeflore", "\x01cafedeflore", "\x01cafe de flore"]
    assert [one.match for one in spellings("nowhereman", kb)] == [1.0, 0.8, 0.8]
    assert is_known("Nowhereman", kb)
    assert not is_known("nowherema", kb)


def test_a_word_that_the_base_has_and_several_words_are_not_parted_further(tmp_path: Path) -> None:
    labels = ("Therapist", "Ther Apist", "Caf\u00e9 de Flore", "Caf\u00e9deflore", "New York City")
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        for number, label in enumerate(labels):
            writer.add(Entity(entity_id=f"Q{number}", label=label))
        writer.commit(source="x", source_sha256="")
    kb = KnowledgeBase.open(str(tmp_path))
    assert "ther apist" not in [one.key for one in spellings("therapist", kb)]
    assert "new york city" not in [one.key for one in spellings("new yorkcity", kb)]
    assert [one.key for one in spellings("cafedeflore", kb)][1:] == ["\x01cafedeflore", "\x01cafe de flore"]
    assert [token.key for token in split_tokens("#therapist #cafedeflore", kb)] == ["therapist", "cafedeflore"]


def test_a_long_word_takes_time_by_its_length_alone(kb: KnowledgeBase, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(kb, "is_prefix", lambda key: not asked.append(key))  # as if names went on in every way
    monkeypatch.setattr(names, "_JOINED_WAYS_MAX", 4)
    assert split_tokens("#" + "ab" * 500, kb)[0].key == "ab" * 500
    assert len(asked) < 1000 * 8


def test_function_words_are_those_of_the_languages_of_the_base(kb: KnowledgeBase, tmp_path: Path) -> None:
    assert names.own_words(kb) is ENGLISH
    with KnowledgeBaseWriter(str(tmp_path), languages=("fr", "en")) as writer:
        writer.add(Entity(entity_id="Q1", label="Sur"))
        writer.commit(source="x", source_sha256="")
    french = KnowledgeBase.open(str(tmp_path))
    assert names.own_words(french) is of_languages(("fr", "en"))
    assert found("Sur", french) == []


def test_the_search_ends_where_no_name_of_the_base_goes_on(kb: KnowledgeBase, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(kb, "is_prefix", lambda key: bool(asked.append(key)))
    assert found("z\u00f6rb " * 200, kb) == []
    assert len(asked) == 3 * 200  # the word itself, and folded in both places


@pytest.mark.parametrize(
    ("key", "folded"),
    [
        ("wendy's", "wendys"),
        ("citro\u00ebn", "citroen"),
        ("s\u00f8strene \u0142\u00f3d\u017a", "sostrene lodz"),
        ("u.s.a", "usa"),
        ("version 2.0", "version 2.0"),
        ("h & m", "h&m"),
        ("marks and spencer", "marks&spencer"),
        ("marks and", "marks&"),  # as far as it goes: a beginning stays a beginning
        ("sandy andes", "sandy andes"),
        ("j. r. r. tolkien", "jrr tolkien"),
        ("\u30ac\u30b9", "\u30ac\u30b9"),  # voiced kana stay
        ("\u0439\u0451", "\u0438\u0435"),
        ("plain", "plain"),
    ],
)
def test_folding(key: str, folded: str) -> None:
    assert fold_key(key) == folded


def test_words_keep_their_marks() -> None:
    text = "Cafe\u0301 \u0939\u093f\u0928\u094d\u0926\u0940 \u0e23\u0e38\u0e07 \uff76\uff9e\u301c\u2764\ufe0f 1\u20e3"
    assert WORD.findall(text) == [
        "Cafe\u0301", "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0e23\u0e38", "\u0e07", "\uff76\uff9e", "1"
    ]  # fmt: skip


def test_pieces_are_folded_and_separators_are_one_blank() -> None:
    assert [normalise_piece(piece) for piece in ("Stra\u00dfe", " - ", "_", "\u2019", ", ", "\uff06", "`")] == [
        "strasse", " ", " ", "'", ", ", "&", "'"
    ]  # fmt: skip


def test_a_long_text_is_cut_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "TEXT_CHARS_MAX", 10)
    assert head("0123456789") == "0123456789"
    assert head("01234 6789") == "01234 6789"
    assert head("01234 6789X") == "01234"  # within a word
    assert head("01234 6789X 2345 789") == "01234"
    assert head("01234 6789 X") == "01234 6789"  # after one
    assert head("0123 56789X") == "0123 56789"  # the last blank is too far ahead
    assert head("\u6771" * 12) == "\u6771" * 10


def test_the_longest_aliases_fit(kb: KnowledgeBase, tmp_path: Path) -> None:
    label = "x " * 249 + "x"  # 499 bytes
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        writer.add(Entity(entity_id="Q1", label=label))
        writer.commit(source="x", source_sha256="")
    other = KnowledgeBase.open(str(tmp_path))
    assert found(label + " x " + label, other) == [label, label]
