from collections.abc import Sequence

import pytest

from evaluation.linking.gold import GoldMention, GoldText
from evaluation.linking.metrics import Link, linking_scores, text_counts

TEXT = "Georgia beach, Banff National Park, his group"
#       0       8      15                   36


def mention(start: int, end: int, ids: Sequence[str], kind: str = "name") -> GoldMention:
    return GoldMention(start=start, end=end, entity_ids=frozenset(ids), kind=kind)


def labelled(text_id: str = "a", group: str = "g", mentions: Sequence[GoldMention] | None = None) -> GoldText:
    if mentions is None:
        mentions = (mention(0, 7, ["Q230", "Q1428"]), mention(8, 13, ["emoji:beach"], "noun"), mention(15, 34, []))
    return GoldText(text_id=text_id, text=TEXT, group=group, half="", kind="", mentions=tuple(mentions))


def counts(*links: tuple[int, int, str]) -> dict[str, int]:
    names = "name.right name.links name.found name.mentions noun.right noun.links noun.found noun.mentions"
    made = [Link(start=start, end=end, entity_id=entity_id) for start, end, entity_id in links]
    found = text_counts(labelled(), made)
    return dict(zip([*names.split(), "nil.refused", "nil.mentions"], found, strict=True))


def test_a_link_to_any_of_the_labelled_ids_is_right() -> None:
    found = counts((0, 7, "Q1428"), (8, 13, "emoji:beach"))
    assert (found["name.right"], found["name.links"], found["name.found"], found["name.mentions"]) == (1, 1, 1, 1)
    assert (found["noun.right"], found["noun.links"], found["noun.found"], found["noun.mentions"]) == (1, 1, 1, 1)
    assert (found["nil.refused"], found["nil.mentions"]) == (1, 1)


def test_part_of_a_longer_name_that_the_base_lacks_is_a_wrong_link_and_no_refusal() -> None:
    found = counts((15, 20, "Q1"))
    assert (found["name.right"], found["name.links"], found["nil.refused"]) == (0, 1, 0)


def test_a_link_where_nothing_is_named_counts_by_how_it_is_written() -> None:
    found = counts((36, 39, "Q2"))  # "his"
    assert (found["noun.right"], found["noun.links"], found["name.links"]) == (0, 1, 0)
    capital = text_counts(labelled(mentions=()), [Link(start=21, end=29, entity_id="Q3")])  # "National"
    assert capital[:2] == [0, 1] and capital[4:6] == [0, 0]


def test_a_wrong_entity_and_a_missed_mention_count_against_precision_and_recall() -> None:
    found = counts((0, 7, "Q5547323"))
    assert (found["name.right"], found["name.links"], found["name.found"], found["name.mentions"]) == (0, 1, 0, 1)
    assert (found["noun.found"], found["noun.mentions"], found["noun.links"]) == (0, 1, 0)


def test_a_link_over_two_mentions_counts_for_the_one_that_it_shares_most_with() -> None:
    # "rgia beach": 4 characters of the name, 5 of the noun.
    found = counts((3, 13, "emoji:beach"))
    assert (found["noun.right"], found["noun.links"], found["name.links"]) == (1, 1, 0)
    # "Georgia be": 7 of the name, 2 of the noun. The noun's entity does not make it right.
    found = counts((0, 10, "emoji:beach"))
    assert (found["name.right"], found["name.links"], found["noun.links"]) == (0, 1, 0)


def test_scores_are_shares_of_all_texts_with_what_they_rest_on() -> None:
    texts = [labelled("a", "g"), labelled("b", "g"), labelled("c", "h")]
    links = {
        "a": [Link(start=0, end=7, entity_id="Q230")],
        "b": [Link(start=0, end=7, entity_id="Q9"), Link(start=15, end=20, entity_id="Q1")],
    }
    found = linking_scores(texts, links)
    # Links of names: one right of three. Names in the base: one found of three. Beyond the base: two refused of three.
    assert (found["name.precision"].numerator, found["name.precision"].denominator) == (1, 3)
    assert found["name.precision"].value == pytest.approx(1 / 3)
    assert (found["name.recall"].numerator, found["name.recall"].denominator) == (1, 3)
    assert found["nil.refused"].value == pytest.approx(2 / 3)
    # No noun was linked: precision has nothing to rest on, recall is 0 of 3.
    assert "noun.precision" not in found and found["noun.recall"].value == 0.0


def test_intervals_draw_groups_and_not_texts() -> None:
    right = [Link(start=0, end=7, entity_id="Q230")]
    texts = [labelled(str(number), f"g{number // 10}") for number in range(40)]
    # Recall of names is 1 in the articles g0 and g1, 0 in g2 and g3.
    found = linking_scores(texts, {str(number): right for number in range(20)})["name.recall"]
    assert found.value == 0.5
    # Of four groups drawn, half right: Bin(4, 1/2) / 4 has its 2.5 and 97.5 % points at 0 and 1, since P(0) = 1/16.
    assert (found.low, found.high) == (0.0, 1.0)
    by_text = linking_scores([labelled(str(n), str(n)) for n in range(40)], {str(n): right for n in range(20)})
    # Of forty texts: 0.5 +- 1.96 * sqrt(0.25 / 40) = 0.5 +- 0.155.
    assert by_text["name.recall"].low == pytest.approx(0.345, abs=0.03)
    assert by_text["name.recall"].high == pytest.approx(0.655, abs=0.03)


def test_equal_seeds_give_equal_intervals() -> None:
    texts = [labelled(str(number), str(number)) for number in range(9)]
    links = {"3": [Link(start=0, end=7, entity_id="Q230")], "4": [Link(start=0, end=7, entity_id="Q230")]}
    assert linking_scores(texts, links) == linking_scores(texts, links)
