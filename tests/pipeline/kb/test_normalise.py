"""Keys of names, and the keys of their variants."""

from __future__ import annotations

import pytest

from pipeline.kb.normalise import alias_variants, normalise_alias, strip_legal_suffix, variant_spellings


@pytest.mark.parametrize(
    ("key", "singulars"),
    [
        ("cars", ["car"]),
        ("cherries", ["cherry"]),
        ("churches", ["church", "churche"]),
        ("dishes", ["dish", "dishe"]),
        ("boxes", ["box", "boxe"]),
        ("glasses", ["glass", "glasse"]),
        ("heroes", ["hero", "heroe"]),
        ("roses", ["rose"]),
        ("gas", []),  # too short
        ("glass", []),
        ("cactus", []),
        ("tennis", []),
        ("car", []),
    ],
)
def test_singulars(key: str, singulars: list[str]) -> None:
    assert alias_variants(key) == singulars
    assert all(one.nouns_only and one.match == 0.6 for one in variant_spellings(key))


@pytest.mark.parametrize(
    ("key", "variants"),
    [
        ("the hague's", [("the hague", 0.9), ("hague", 0.9)]),
        ("girls'", [("girls", 0.9), ("girl", 0.6)]),
        ("the apple inc", [("apple inc", 0.9), ("the apple", 0.7)]),
        ("apple co., ltd.", [("apple", 0.7)]),
        ("apple group holdings", [("apple", 0.7), ("apple group holding", 0.6)]),
        ("inc", []),
        ("the ", []),  # nothing is left
        ("apple", []),
    ],
)
def test_variants_in_the_order_of_their_likeness(key: str, variants: list[tuple[str, float]]) -> None:
    assert [(one.key, one.match) for one in variant_spellings(key)] == variants


def test_a_legal_form_that_is_all_of_a_name_stays() -> None:
    assert strip_legal_suffix("co inc") == "co"
    assert strip_legal_suffix("x inc") == "x"
    assert strip_legal_suffix(", inc") == ", inc"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("  New\u2013York__City. ", "new york city"),
        ("\uff21\uff30\uff30\uff2c\uff25", "apple"),
        ("STRA\u00dfE", "strasse"),
        ("Wendy\u2019s `n\u02bc", "wendy's 'n"),
        ("(!!!)", "(!!!)"),
        ("-", "-"),
        (" \u3000", ""),
        ("\ud800", "?"),
    ],
)
def test_keys(name: str, key: str) -> None:
    assert normalise_alias(name) == key
