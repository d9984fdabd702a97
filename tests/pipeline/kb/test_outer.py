"""Longer names around a name of the base."""

from __future__ import annotations

import pytest

from pipeline.kb.function_words import function_words
from pipeline.kb.outer import LongerNames

KNOWN = {"Paris", "Rome", "Marks"}
ENGLISH = function_words("en")


def around(text: str, name: str, *tagged: str) -> str | None:
    """Returns the longer name around `name`; `tagged` are the tagger's spans."""
    spans = [(text.index(one), text.index(one) + len(one)) for one in tagged]
    start = text.index(name)
    found = LongerNames(text, ENGLISH, KNOWN.__contains__, spans).around(start, start + len(name))
    return None if found is None else text[slice(*found)]


@pytest.mark.parametrize(
    ("text", "name", "outer"),
    [
        ("a lake in Banff National Park", "Banff", "Banff National Park"),
        ("a lake in Banff National Park", "Park", "Banff National Park"),
        ("a lake in Banff National Park", "Banff National Park", None),
        ("a page of Lewis Carroll's book on logic", "Carroll", "Lewis Carroll"),
        ("a page of Lewis Carroll\u2019s Alice books", "Alice", None),  # a possessive ends a name
        ("the boot of a Citroen C3 from behind", "Citroen", "Citroen C3"),
        ("a cover for the Samsung Galaxy S23 and others", "Samsung", "Samsung Galaxy S23"),
        ("portrait of J. K. Rowling at home", "Rowling", "J. K. Rowling"),
        ("portrait of J.K. Rowling at home", "Rowling", "J.K. Rowling"),
        ("near the church of St. Louis in winter", "Louis", "St. Louis"),
        ("a portrait by Vincent van Gogh in oil", "Vincent", "Vincent van Gogh"),
        ("a portrait by Vincent van Gogh in oil", "Gogh", "Vincent van Gogh"),
        ("a man from Trinidad de la Santa in green", "Trinidad", "Trinidad de la Santa"),
        ("students at the University of Utah in winter", "University", "University of Utah"),
        ("a ticket for Lord of the Rings in May", "Lord", "Lord of the Rings"),
        ("a concert of Simon and Garfunkel in the park", "Simon", "Simon and Garfunkel"),
        ("a concert of Simon & Garfunkel in the park", "Garfunkel", "Simon & Garfunkel"),
        ("a concert of Simon and Garfunkel", "Simon", "Simon and Garfunkel"),
        ("a concert of Rome and Garfunkel in the park", "Rome", "Rome and Garfunkel"),  # one is no name of the base
        ("a concert of Garfunkel and Rome in the park", "Rome", "Garfunkel and Rome"),
        ("a model of the old Boeing 747", "Boeing", "Boeing 747"),
        ("a bottle of Jack Daniel-Smith on the table", "Jack", "Jack Daniel-Smith"),
        ("a glass of Coca-Cola on the table", "Coca", "Coca-Cola"),
        ("the village of L'Aquila Scalo at night", "Scalo", "L'Aquila Scalo"),
        ("the food hall of M&S Foods at night", "Foods", "M&S Foods"),
        ("a model of the Boeing 747 on the runway", "Boeing", "Boeing 747"),
        ("the new Golf 7, grey", "Golf", "Golf 7"),
        ("runners of the New York Marathon in the rain", "New York", "New York Marathon"),
    ],
)
def test_capitals_beside_each_other_are_one_name(text: str, name: str, outer: str | None) -> None:
    assert around(text, name) == outer


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a truck beside a lake in Norway", "Norway"),
        ("the summer of Paris, France and others", "Paris"),  # a comma
        ("from Paris to Rome by train", "Paris"),
        ("from Paris (Rome is later) by train", "Paris"),
        ("Paris and Rome by train", "Paris"),  # both are names
        ("Paris & Rome by train", "Rome"),
        ("the streets of New Rome and Paris by train", "Paris"),  # "and" joins single words only
        ("the games of Paris 2024 in summer", "Paris"),  # a year
        ("take the Paris 20 minutes early", "Paris"),  # an amount
        ("shops in Paris of all kinds", "Paris"),
        ("shops in Paris de la", "Paris"),
        ("it is in Paris. Old houses are there", "Paris"),
        ("it is in the UK. Paris is not", "Paris"),
        ("is it in Paris? Rome is not", "Rome"),
        ("the president of The Gambia on a visit", "Gambia"),  # an article begins no name
        ("seen in #Paris Texas by night and #Rome too", "Texas"),
        ("a concert of Simon and", "Simon"),
        ("a concert of Simon & others", "Simon"),
        ("the words of Duke of the la Rome in green", "Duke"),  # more than two small words
        ("the words of Lord of small Rings in green", "Lord"),
        ("the words of Lord the Rings in green", "Lord"),
        ("take the Paris 20 minutes", "Paris"),
        ("a photo for @Nike Paris by night", "Paris"),
    ],
)
def test_names_that_stand_alone_have_no_longer_one(text: str, name: str) -> None:
    assert around(text, name) is None


AMOUNTS = (
    "3-wick", "12\u2010pack", "10-20-piece", "9,99", "4.50", "12:30", "1/2", "50%", "50 %", "50 \u20ac", "50\u20ac",
    "50$", "7 \xa3",
    "20\xb0", "5\u2032", "50mm", "12pcs", "5\xb5m", "4x4", "4x100", "18-55mm", "7g", "10-20 %",
    "4\xd74", "4 \xd7 4", "4 x 4", "5\xd7",
    "12/24", "50there",
)  # fmt: skip


@pytest.mark.parametrize("amount", AMOUNTS)
def test_an_amount_behind_a_name_is_no_part_of_it(amount: str) -> None:
    assert around(f"the new Paris {amount} in green", "Paris") is None
    assert around(f"the new Paris {amount}", "Paris") is None
    assert around(f"the new Paris Hilton {amount} in green", "Paris") == "Paris Hilton"
    assert around(f"THE PARIS {amount}", "PARIS", f"PARIS {amount}") is None  # the tagger's


@pytest.mark.parametrize(
    "number",
    [
        "747",
        "747-8",
        "3000",
        "320i",
        "5s",
        "S23",
        "320D",
        "911",
        "50 $9",
        "7-Series",
        "4X",
        "3\u2160",
        "320/325",
        "1st",
        "2nd",
        "3rd",
        "20th",
        "5er",
        "49ers",
    ],
)
def test_the_number_of_a_model_is_no_amount(number: str) -> None:
    model = number.removesuffix(" $9").removesuffix("-Series").removesuffix("/325")
    found = around(f"the new Paris {number} in green", "Paris")
    assert found is not None
    assert found.startswith(f"Paris {model}")


@pytest.mark.parametrize("name", ["20th Century Paris", "49ers Paris", "4x4 Paris", "50mm Paris"])
def test_a_figure_that_begins_a_name_of_the_tagger_is_a_part_of_it(name: str) -> None:
    assert around(f"the logo of {name} in gold", "Paris", name) == name


def test_an_ordinal_or_a_plural_that_ends_a_name_of_the_tagger_is_a_part_of_it() -> None:
    assert around("a Paris 49ers game in town", "Paris", "Paris 49ers") == "Paris 49ers"
    assert around("a Paris 49ers game in town", "Paris", "Paris 49ers game") == "Paris 49ers"


def test_a_small_figure_behind_a_name_is_no_part_of_it() -> None:
    for figure in ("\u2461", "\xb2", "\xbd"):
        assert around(f"a picture of Paris {figure} in town", "Paris") is None
        assert around(f"a picture of Paris {figure} in town", "Paris", f"Paris {figure}") is None
    assert around("the crown of Paris \u216b in town", "Paris", "Paris \u216b") == "Paris \u216b"


@pytest.mark.parametrize(
    ("name", "longer"),
    [
        ("van Gogh", "van Gogh Museum"),
        ("adidas", "adidas Originals"),
        ("The Who", "The Who Tour"),
        ("Paris 2024", "Old Paris 2024"),
        ("Toyota 4x4", "Old Toyota 4x4"),
        ("Toyota 4x4", "Toyota 4x4 Club"),
        ("4x4", "4x4 Club"),
        ("House of", "Old House of"),
        ("Louis vuitton", "Old Louis vuitton"),
    ],
)
def test_words_of_the_name_of_the_base_are_a_part_of_the_longer_one(name: str, longer: str) -> None:
    assert around(f"we love the {longer} here", name, longer) == longer


def test_small_words_at_the_ends_of_a_name_of_the_tagger_are_no_part_of_it() -> None:
    assert around("an old Paris motorcycle in town", "Paris", "old Paris motorcycle") is None
    assert around("an old Paris motorcycle in town", "motorcycle", "Paris motorcycle") is None
    assert around("an old Paris iRome clock in town", "Paris", "old Paris iRome clock") == "Paris iRome"
    assert around("an old paris clock in Town", "paris", "paris clock") == "paris clock"  # it has no capital
    assert around("AN OLD PARIS CLOCK in town", "PARIS", "PARIS CLOCK") == "PARIS CLOCK"  # in capitals
    assert around("old rome paris", "rome", "old rome") == "old rome"


@pytest.mark.parametrize(
    ("text", "outer"),
    [
        ("es ist die K\u00fcste von Paris im Winter", None),
        ("es ist die alte sch\u00f6ne Stadt von Paris im Winter", None),
        ("Die Stadt von Paris im Winter und mehr", None),
        ("es ist die Stadt von Paris Nord im Winter", "Stadt von Paris Nord"),  # it is not all
        ("es ist Ludwig von Paris im Winter", "Ludwig von Paris"),
        ("ein Bild mit Ludwig von Paris im Winter", "Ludwig von Paris"),
        ("im Haus von Anna ist Ludwig von Paris hier", "Ludwig von Paris"),  # the last "von" counts
        ("es ist die alte Frau mit Ludwig Anton von Paris hier", "Ludwig Anton von Paris"),
    ],
)
def test_von_behind_a_german_noun_with_an_article_is_an_of(text: str, outer: str | None) -> None:
    assert around(text, "Paris") == outer


@pytest.mark.parametrize(
    "article", "der die das des dem den ein eine einer eines einem einen im am zum zur vom beim ins ans".split()
)
def test_each_german_article_makes_a_noun(article: str) -> None:
    assert around(f"hier {article} Stadt von Paris mit uns", "Paris") is None


def test_the_first_word_of_a_sentence_counts_only_within_the_name_itself() -> None:
    assert around("Visit Norway in the long summer", "Norway") is None
    assert around("Paris Hilton on a long red carpet", "Paris") == "Paris Hilton"
    assert around("Paris Hilton on a long red carpet", "Hilton") is None
    assert around("Old Lewis Carroll on a long red carpet", "Carroll") == "Lewis Carroll"
    assert around("Demographics of Angola in the long run", "Angola") is None
    assert around("Visit 747 in the long run", "747") is None
    assert around("so it is. Visit Norway in the long summer", "Norway") is None
    assert around("so it is! \u201cVisit Norway in the summer", "Norway") is None
    assert around("see it by Mr. Visit Norway in the summer", "Norway") == "Mr. Visit Norway"


def test_what_follows_an_of_is_named_by_itself_if_it_is_all() -> None:
    assert around("a visit of the King of Norway in summer", "Norway") is None
    assert around("a visit of the King of the Norway in summer", "Norway") is None
    assert around("a visit of the King of Norway Lake in summer", "Norway") == "King of Norway Lake"
    assert around("a visit of the King of Norway in summer", "King") == "King of Norway"
    assert around("on sur le Drapeau de la Suisse avec nous", "Suisse") is None


@pytest.mark.parametrize("of", "of de del dell della des di da do dos das du".split())
def test_each_word_for_of_stands_within_a_name_and_names_what_follows_by_itself(of: str) -> None:
    text = f"a visit of the King {of} Norway in summer"
    assert (around(text, "King"), around(text, "Norway")) == (f"King {of} Norway", None)


@pytest.mark.parametrize(
    "particle", "der den la le les el los las van von zu zur ten ter al ibn bin y".split()
)  # fmt: skip
def test_each_particle_stands_within_a_name(particle: str) -> None:
    text = f"a portrait by Vincent {particle} Gogh in oil"
    assert (around(text, "Vincent"), around(text, "Gogh")) == (f"Vincent {particle} Gogh",) * 2


@pytest.mark.parametrize("article", ["The", "A", "An", "La", "Le", "Les", "El"])
def test_an_article_with_a_capital_begins_no_name(article: str) -> None:
    assert around(f"a visit of {article} Gambia on a day", "Gambia") is None


@pytest.mark.parametrize("sign", ["-", "\u2010", "'", "\u2019", "&", ".", ". ", " "])
def test_signs_that_join_the_parts_of_a_name(sign: str) -> None:
    name = f"J{sign}Aquila"
    assert around(f"the village of {name} at night", "Aquila") == name


@pytest.mark.parametrize("year", ["1500", "1998", "2024"])
def test_a_year_is_no_part_of_a_name(year: str) -> None:
    assert around(f"the games of Paris {year} in summer", "Paris") is None


@pytest.mark.parametrize("number", ["1499", "2100", "199", "20244"])
def test_other_numbers_behind_a_name_are_a_part_of_it(number: str) -> None:
    assert around(f"take the Paris {number} minutes early", "Paris") is None  # an amount
    assert around(f"the model of Paris {number} in green", "Paris") == f"Paris {number}"


@pytest.mark.parametrize(
    "text", ["BANFF NATIONAL PARK", "Banff National Park", "banff national park", "In Banff National Park Today"]
)
def test_where_capitals_say_nothing_no_name_is_longer(text: str) -> None:
    assert around(text, "national park" if text.islower() else text.split()[-1]) is None


def test_a_longer_name_of_the_tagger_counts_in_any_text() -> None:
    assert around("BANFF NATIONAL PARK", "PARK", "BANFF NATIONAL PARK") == "BANFF NATIONAL PARK"
    assert around("A TRIP TO BANFF PARK WITH US IN 2024", "PARK", "BANFF PARK WITH US IN 2024") == "BANFF PARK"
    assert around("THE BANFF PARK", "BANFF", "THE BANFF") is None  # nothing is left around it
    assert around("A MAP OF BANFF", "BANFF", "MAP OF BANFF") is None  # it is all that follows an "of"
    assert around("img_banff_park.jpg", "banff", "img_banff_park") is None
    assert around("OLD SHOES - BANFF PARK", "SHOES", "SHOES - BANFF") is None
    assert around("WITH THE 2024", "THE", "WITH THE 2024") == "WITH THE"
    assert around("the 2024", "the", "the 2024") is None
    text = "a night in the old Banff National Park Lodge"
    assert around(text, "Banff", "Banff National Park") == "Banff National Park Lodge"


def test_of_several_longer_names_of_the_tagger_the_longest_around_the_name_counts() -> None:
    text = "OLD BANFF NATIONAL PARK LODGE"
    assert around(text, "PARK", "NATIONAL PARK LODGE", "OLD BANFF NATIONAL PARK") == "OLD BANFF NATIONAL PARK"
    assert around(text, "BANFF", "BANFF NATIONAL", "BANFF NATIONAL PARK", "PARK LODGE") == "BANFF NATIONAL PARK"


def test_a_part_of_a_word_in_katakana_is_within_that_word() -> None:
    new_zealand = "\u30cb\u30e5\u30fc\u30b8\u30fc\u30e9\u30f3\u30c9"
    assert around(f"\u6771\u4eac\u306e{new_zealand}\u306e", "\u30e9\u30f3\u30c9") == new_zealand
    assert around(f"\u306e{new_zealand}", "\u30cb\u30e5\u30fc") == new_zealand
    assert around(f"\u306e{new_zealand}\u306e", new_zealand) is None
    assert around("\u6771\u4eac\u30bf\u30ef\u30fc\u306e", "\u6771\u4eac\u30bf") == "\u6771\u4eac\u30bf\u30ef\u30fc"
    assert around(f"{new_zealand}\u6771\u4eac", "\u6771\u4eac") is None


def test_the_dot_of_an_abbreviation_is_within_the_name() -> None:
    assert around("made by the Old Apple Inc. of today", "Apple Inc.") == "Old Apple Inc."
    assert around("made by the Apple Inc. of today", "Apple Inc.") is None
    assert around("made by the Old Apple\u682a\u5f0f of today", "Apple\u682a\u5f0f") is None  # goes on beyond it


def test_a_name_right_behind_a_capitalised_word_is_no_part_of_it() -> None:
    assert around("Apple\u682a is a sign of the firm", "\u682a") is None
    assert around("seen here: Apple\u30b9\u30c8\u30a2 is a shop", "\u30b9\u30c8") == "\u30b9\u30c8\u30a2"
