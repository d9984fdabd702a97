import random

from pipeline.demo.captions import Piece
from pipeline.demo.name_index import NameIndex
from pipeline.demo.packages import Packages
from pipeline.demo.strays import Strays, cut_out

# Nova is a brand of the half "measure", Summit of the half "fit", by the seed 0; dog is an emoji.
NAMES = {"nova": {"Q900": 1.0}, "summit": {"Q903": 1.0}, "dog": {"emoji:1f415": 1.0}, "turkey": {"Q43": 1.0}}


def draws(strays: Strays, half: str) -> set[str]:
    rng = random.Random(0)
    return {"".join(p.text if p.role == "text" else f"[{p.text}]" for p in strays.draw(half, rng)) for _ in range(400)}


def test_phrases_come_from_examples_from_usual_words_and_from_longer_names(packages):
    strays = Strays(Packages(packages), NameIndex(NAMES, brands=["Q900", "Q903"]), seed=0)
    of_fit, of_measure = draws(strays, "fit"), draws(strays, "measure")
    assert {"reach the [summit] early", "a very faint [summit]", "[Summit Pay] edition", "near [Summit Town]"} <= of_fit
    assert {"a faint [nova]", "my new [nova]", "works with [Nova Desk]", "[Nova Bay] travel guide"} <= of_measure
    assert not any("nova" in phrase.casefold() for phrase in of_fit)
    assert not any("summit" in phrase.casefold() for phrase in of_measure)
    # A dog may be meant, "a Nova" is the brand, and what kills or dictates is no matter for captions; the base has
    # Nova Land as Turkey; Nova-X is one word; and "a nova over the summit" has a name of each half.
    unwanted = ("dog", "kill", "sold", "Republic", "Land", "Nova-X", " over ")
    assert not any(word in phrase for phrase in of_measure | of_fit for word in unwanted)
    assert strays.counts() == {"examples": 3, "words": 2, "longer_names": 4}


def test_a_longer_name_that_the_base_has_is_no_stray(packages):
    names = NAMES | {"nova bay": {"Q904": 1.0}, "summit pay": {"Q905": 1.0}}
    strays = Strays(Packages(packages), NameIndex(names, brands=["Q900", "Q903"]), seed=0)
    assert strays.counts()["longer_names"] == 2


def test_a_base_without_brands_has_no_stray_phrases(packages):
    strays = Strays(Packages(packages), NameIndex({}), seed=0)
    assert strays.draw("fit", random.Random(0)) == []


def test_pieces_are_cut_at_the_spans():
    assert cut_out("a nova, a summit", [(2, 6), (10, 16)], "stray_word") == [
        Piece(text="a "),
        Piece(text="nova", role="stray_word"),
        Piece(text=", a "),
        Piece(text="summit", role="stray_word"),
    ]
