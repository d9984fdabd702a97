from collections import Counter
from collections.abc import Sequence

import pytest

from evaluation.linking.gold import GoldMention, GoldText
from evaluation.linking.metrics import Link, linking_scores, text_counts, wikipedia_scores

TEXT = "Georgia beach, Banff National Park, his group"
#       0       8      15                   36


def mention(start: int, end: int, ids: Sequence[str], kind: str = "name") -> GoldMention:
    return GoldMention(start=start, end=end, entity_ids=frozenset(ids), kind=kind)


def labelled(text_id: str = "a", group: str = "g", mentions: Sequence[GoldMention] | None = None) -> GoldText:
    if mentions is None:
        mentions = (mention(0, 7, ["Q230", "Q1428"]), mention(8, 13, ["emoji:beach"], "noun"), mention(15, 34, []))
    return GoldText(text_id=text_id, text=TEXT, group=group, half="", kind="", mentions=tuple(mentions))


def counts(*links: tuple[int, int, str]) -> Counter[str]:
    return Counter(text_counts(labelled(), [Link(start=start, end=end, entity_id=one) for start, end, one in links]))


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
    assert capital == {"name.links": 1, "name.right": 0}


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


def test_of_two_mentions_that_a_link_shares_as_much_with_the_first_counts() -> None:
    # "rgia beac": 4 characters of either.
    mentions = (mention(0, 7, ["Q230"]), mention(8, 13, ["emoji:beach"], "noun"))
    found = text_counts(labelled(mentions=mentions), [Link(start=3, end=12, entity_id="Q230")])
    assert (found["name.links"], found["name.right"], found["noun.links"]) == (1, 1, 0)


def test_links_that_only_touch_a_mention_do_not_overlap_it() -> None:
    # The comma and blank between "beach" and "Banff": 13 to 15.
    found = counts((13, 15, "Q1"))
    assert (found["name.links"], found["noun.links"], found["nil.refused"]) == (1, 0, 1)
    assert (found["noun.found"], found["noun.mentions"]) == (0, 1)


def test_one_of_several_links_over_a_mention_finds_it() -> None:
    found = counts((0, 3, "Q5"), (3, 7, "Q230"))
    assert (found["name.links"], found["name.right"], found["name.found"], found["name.mentions"]) == (2, 1, 1, 1)


def test_another_seed_draws_other_groups() -> None:
    texts = [labelled(str(number), str(number)) for number in range(30)]
    right, wrong = Link(start=0, end=7, entity_id="Q230"), Link(start=0, end=7, entity_id="Q1")
    links = {str(number): [right] + [wrong] * (number**3 % 97) for number in range(30)}
    by_seed = [linking_scores(texts, links, seed=seed)["name.precision"] for seed in range(4)]
    assert len({(one.low, one.high) for one in by_seed}) > 1
    assert linking_scores(texts, links)["name.precision"] == by_seed[0]
    everywhere = {"Georgia": 2, "beach": 1, "Banff National Park": 1}
    others = [wikipedia_scores(texts, links, everywhere.__getitem__, seed=seed) for seed in range(4)]
    assert wikipedia_scores(texts, links, everywhere.__getitem__) == others[0]


def test_intervals_are_of_the_draws_that_have_cases() -> None:
    # One of 3 groups has a link; draws without that group, (2/3)^3 = 30 % of them, have no precision.
    texts = [labelled(name, name) for name in "abc"]
    found = linking_scores(texts, {"a": [Link(start=0, end=7, entity_id="Q230")]})["name.precision"]
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


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


def test_links_count_by_the_kind_of_their_entity_and_mentions_by_that_of_theirs() -> None:
    kinds = {"Q230": "place", "Q1428": "place", "emoji:beach": "concept", "Q9": "brand"}
    made = [Link(start=0, end=7, entity_id="Q9"), Link(start=8, end=13, entity_id="emoji:beach")]
    found = linking_scores([labelled()], {"a": made}, kind_of=kinds.__getitem__)
    values = {name: (one.numerator, one.denominator) for name, one in found.items()}
    assert values == {
        "name.precision": (0, 1),
        "name.recall": (0, 1),
        "noun.precision": (1, 1),
        "noun.recall": (1, 1),
        "nil.refused": (1, 1),
        "brand.precision": (0, 1),  # Georgia, linked to a brand
        "place.recall": (0, 1),  # both places that it may be are one mention
        "concept.precision": (1, 1),
        "concept.recall": (1, 1),
    }


def test_names_of_wikipedia_links_end_right_wrong_or_without_a_link() -> None:
    # Georgia: two candidates. beach: one. Banff National Park: outside, but known. his: outside and known, lower case.
    # group: the base has no such name, so it counts for nothing.
    mentions = (
        mention(0, 7, ["Q230"]),
        mention(8, 13, ["emoji:beach"], "noun"),
        mention(15, 34, []),
        mention(36, 39, [], "noun"),
        mention(40, 45, [], "noun"),
    )
    sizes = {"Georgia": 2, "beach": 1, "Banff National Park": 1, "his": 3, "group": 0}
    texts = [labelled("a", mentions=mentions), labelled("b", mentions=mentions)]
    links = {
        "a": [Link(start=0, end=7, entity_id="Q230"), Link(start=15, end=20, entity_id="Q1")],
        "b": [Link(start=0, end=7, entity_id="Q1428"), Link(start=40, end=45, entity_id="Q1")],
    }
    found = wikipedia_scores(texts, links, sizes.__getitem__)
    assert {name: (one.numerator, one.denominator) for name, one in found.items()} == {
        "ambiguous.accuracy": (1, 2),  # right in a, wrong in b
        "unambiguous.accuracy": (0, 2),
        "in_base.refused": (2, 4),  # the beach of either text
        "outside.nil": (3, 4),  # all but Banff in a
        "outside_names.nil": (1, 2),
    }
