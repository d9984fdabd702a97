import pytest

from pipeline.schema import entity_text


@pytest.mark.parametrize(
    ("name", "description", "text"),
    [
        ("dog", "domestic animal", "dog, domestic animal"),
        ("dog", "", "dog"),
        ("dog", "  ", "dog"),
        (" New  York\u00a0", "city\nin the United States ", "New York, city in the United States"),
    ],
)
def test_the_text_of_an_entity_is_its_name_and_description_with_single_blanks(
    name: str, description: str, text: str
) -> None:
    assert entity_text(name, description) == text
