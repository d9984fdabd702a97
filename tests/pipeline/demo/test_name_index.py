from pipeline.demo.name_index import NameIndex

INDEX = NameIndex(
    {"century": {"Q1": 1.0}, "his": {"Q2": 1.0}, "wave": {"Q3": 1.0}, "dog": {"emoji:1": 1.0}, "x": {"Q4": 1.0}},
    types=["wild animal"],
    brands=["Q1", "Q2", "Q3", "Q4"],
)


def test_a_name_is_known_in_the_plural_and_has_one_form_in_the_base():
    assert INDEX.meanings("Waves") == {"Q3"} and INDEX.name_of("Waves") == "wave"
    assert INDEX.meanings("surf") == set() and INDEX.name_of("Surf") == "surf"


def test_stray_words_are_brands_and_neither_function_words_nor_letters():
    text = "his century x of waves"
    assert [text[start:end] for start, end in INDEX.stray_words(text)] == ["century", "waves"]
    assert INDEX.stray_words("surf") == []


def test_a_text_that_may_name_a_thing_has_no_stray_words():
    assert INDEX.stray_words("the century of the dog") is None


def test_types_are_known_in_singular_and_plural():
    assert INDEX.is_type("Wild animals") and not INDEX.is_type("animal")
