"""The knowledge base keeps what it was given, and says so when it was given nothing."""

import concurrent.futures
import json
import math

import pytest

from pipeline.kb.bag_of_words import hash_word
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.flat_files import FLAT_FILES
from pipeline.kb.normalise import alias_variants, normalise_alias, strip_legal_suffix
from pipeline.kb.store import Entity, KnowledgeBase
from pipeline.schema import UserError

GEORGIA = Entity(entity_id="Q230", label="Georgia", description="country in the Caucasus", popularity=3.0)
STATE = Entity(entity_id="Q1428", label="State of Georgia", aliases=("Georgia",), popularity=4.0)
APPLE = Entity(entity_id="Q312", label="Apple Inc.", description="technology company", popularity=9.0)


def write(path, *entities, redirects=()):
    with KnowledgeBaseWriter(str(path)) as writer:
        for entity in entities:
            writer.add(entity)
        for entity_id, target in redirects:
            writer.add_redirect(entity_id, target)
        return writer.commit(source="source.jsonl", source_sha256="0" * 64)


def test_an_entity_comes_back_as_it_was_written(tmp_path):
    entity = Entity(
        entity_id="Q17", label="日本", description="country", aliases=("Japan",), types=("country",), links=("Q230",)
    )
    write(tmp_path, entity)
    kb = KnowledgeBase.open(str(tmp_path))
    assert kb.entity("Q17") == entity
    assert list(kb) == [entity]
    assert kb.entries("日本") == [("Q17", 1.0, "proper")]


def test_priors_of_an_alias_are_popularity_times_kind_and_sum_to_one(tmp_path):
    write(tmp_path, GEORGIA, STATE)
    # Label: (1 + 3) * 1 = 4. Alias: (1 + 4) * 0.4 = 2. Shares 4/6 and 2/6.
    assert KnowledgeBase.open(str(tmp_path)).entries("georgia") == [
        ("Q230", pytest.approx(4 / 6), "proper"),
        ("Q1428", pytest.approx(2 / 6), "proper"),
    ]


def test_a_name_that_is_label_and_alias_in_two_spellings_weighs_as_the_label(tmp_path):
    # Label: (1 + 3) * 1 = 4, whatever its aliases; the other entity's alias: (1 + 4) * 0.4 = 2.
    twice = Entity(entity_id="Q230", label="Georgia", aliases=("GEORGIA", "georgia Ltd"), popularity=3.0)
    write(tmp_path, twice, STATE)
    kb = KnowledgeBase.open(str(tmp_path))
    assert kb.entries("georgia") == [
        ("Q230", pytest.approx(4 / 6), "proper"),
        ("Q1428", pytest.approx(2 / 6), "proper"),
    ]
    assert kb.entries("georgia ltd") == [("Q230", 1.0, "proper")]


def test_a_company_is_found_without_its_legal_suffix(tmp_path):
    write(tmp_path, APPLE)
    assert KnowledgeBase.open(str(tmp_path)).entries("apple") == [("Q312", 1.0, "proper")]


def test_a_word_is_as_rare_as_the_documents_that_hold_it_and_an_unknown_one_weighs_nothing(tmp_path):
    target = Entity(entity_id="Q1", label="Target", description="retailer", types=("shop",), links=("Q30",))
    states = Entity(entity_id="Q30", label="United States", description="country")
    write(tmp_path, target, states, GEORGIA)
    kb = KnowledgeBase.open(str(tmp_path))
    # Of 3 documents, 2 hold "country" and 1 holds "retailer": ln(1 + 1.5 / 2.5), ln(1 + 2.5 / 1.5).
    assert kb.rarity(hash_word("country")) == pytest.approx(math.log(1 + 1.5 / 2.5))
    assert kb.rarity(hash_word("retailer")) == pytest.approx(math.log(1 + 2.5 / 1.5))
    unknown = ["zorblax", *(f"word{chr(97 + i)}{i}" for i in range(200))]
    assert not any(kb.rarity(hash_word(word)) for word in unknown)
    assert hash_word("state") in kb.document("Q1")


def test_an_unknown_or_overlong_name_means_nothing(tmp_path):
    write(tmp_path, APPLE)
    kb = KnowledgeBase.open(str(tmp_path))
    assert kb.entries("pear") == kb.entries("") == kb.entries("x" * 5000) == []


def test_a_redirect_leads_to_its_target(tmp_path):
    write(tmp_path, GEORGIA, redirects=[("Q999", "Q230")])
    assert KnowledgeBase.open(str(tmp_path)).entity("Q999") == GEORGIA


def test_a_redirect_from_an_entity_or_to_none_is_left_out(tmp_path):
    manifest = write(tmp_path, GEORGIA, APPLE, redirects=[("Q230", "Q312"), ("Q999", "Q404"), ("Q998", "Q312")])
    kb = KnowledgeBase.open(str(tmp_path))
    assert manifest["num_redirects"] == 1 and kb.entity("Q230") == GEORGIA and kb.entity("Q998") == APPLE
    with pytest.raises(KeyError, match="Q999"):
        kb.entity("Q999")


def test_of_too_many_namesakes_the_likeliest_are_kept_with_their_shares_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.kb.build.alias_table.MEANINGS_MAX", 2)
    entities = [Entity(entity_id=f"Q{n}", label="Editorial", popularity=float(n)) for n in (1, 2, 3, 4)]
    write(tmp_path, *entities)
    found = KnowledgeBase.open(str(tmp_path)).entries("editorial")
    assert [entry.entity_id for entry in found] == ["Q4", "Q3"] and sum(entry.prior for entry in found) < 0.8


def test_a_base_stays_until_another_is_whole(tmp_path):
    write(tmp_path, GEORGIA)
    with pytest.raises(UserError, match="holds no entity, at least 1 is needed"):
        write(tmp_path)
    kb = KnowledgeBase.open(str(tmp_path))
    assert kb.entity("Q230") == GEORGIA
    kb.close()
    write(tmp_path, APPLE)
    again = KnowledgeBase.open(str(tmp_path))
    assert [one.entity_id for one in again] == ["Q312"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["data.mdb", "manifest.json", *FLAT_FILES])


def test_the_hash_follows_the_content_and_not_the_order(tmp_path):
    first = write(tmp_path / "a", GEORGIA, STATE)
    second = write(tmp_path / "b", STATE, GEORGIA)
    third = write(tmp_path / "c", STATE)
    assert first["hash"] == second["hash"] != third["hash"]
    assert (first["num_entities"], third["num_entities"]) == (2, 1)


def test_an_empty_base_is_refused_and_leaves_none_behind(tmp_path):
    with pytest.raises(UserError, match="holds no entity, at least 1 is needed"):
        write(tmp_path)
    with pytest.raises(UserError, match="manifest.json is missing"):
        KnowledgeBase.open(str(tmp_path))


def test_a_missing_base_names_the_command_that_writes_one(tmp_path):
    with pytest.raises(UserError, match="python -m pipeline.build_kb") as caught:
        KnowledgeBase.open(str(tmp_path / "none"))
    assert "\n" not in str(caught.value)


def test_a_base_of_another_version_is_refused(tmp_path):
    manifest = write(tmp_path, GEORGIA)
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(UserError, match="format 99, this program reads 6"):
        KnowledgeBase.open(str(tmp_path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "words").unlink(), r"is damaged \(\[Errno 2\] No such file.*words'\); write it with"),
        (
            lambda path: (path / "numbers").write_bytes(b"12345"),
            r"damaged \(numbers has 5 bytes, which is no whole num",
        ),
    ],
)
def test_a_base_whose_files_are_damaged_is_refused(tmp_path, damage, message):
    write(tmp_path, GEORGIA)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        KnowledgeBase.open(str(tmp_path))


def test_threads_look_names_up_at_once(tmp_path):
    write(tmp_path, GEORGIA, STATE, APPLE)
    kb = KnowledgeBase.open(str(tmp_path))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: (len(kb.entries("georgia")), kb.entity("Q312").label), range(400)))
    assert set(found) == {(2, "Apple Inc.")}


def test_of_entities_with_the_same_id_the_first_counts(tmp_path):
    other = Entity(entity_id="Q230", label="Aaland")
    manifest = write(tmp_path, GEORGIA, APPLE, other, GEORGIA)
    kb = KnowledgeBase.open(str(tmp_path))
    assert (manifest["num_entities"], manifest["num_duplicate_ids"], len(list(kb))) == (2, 2, 2)
    assert kb.entity("Q230") == GEORGIA and not kb.has_alias("aaland")


def test_a_blank_label_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Q1: the label is blank"):
        write(tmp_path, Entity(entity_id="Q1", label=" "))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("  New\tYork ", "new york"),
        ("Coca-Cola", "coca cola"),
        ("McDonald’s", "mcdonald's"),
        ("ＡＢＣ", "abc"),  # full width
        ("Straße", "strasse"),
        ("東京都", "東京都"),
        ("İstanbul", "i̇stanbul"),
        ("!!!", "!!!"),
        ("(Apple).", "apple"),
        ("", ""),
    ],
)
def test_names_are_normalised_and_no_script_is_lost(name, key):
    assert normalise_alias(name) == key


def test_two_names_without_latin_letters_never_meet():
    assert len({normalise_alias(name) for name in ("東京", "大阪", "北海道", "!!!", "???")}) == 5


def test_legal_suffixes_fall_one_after_the_other_and_never_leave_nothing():
    assert strip_legal_suffix("foo holdings, inc.") == "foo"
    assert strip_legal_suffix("inc") == "inc"


def test_variants_are_possessive_article_and_singular():
    assert alias_variants("apple's") == ["apple"]
    assert alias_variants("the hague") == ["hague"]
    assert alias_variants("cherries") == ["cherry"]
    assert alias_variants("bus") == []


def test_a_prefix_is_the_beginning_of_a_name_or_a_name(tmp_path):
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        writer.add(Entity(entity_id="Q1", label="New York City"))
        writer.commit(source="x", source_sha256="")
    kb = KnowledgeBase.open(str(tmp_path))
    assert all(map(kb.is_prefix, ("n", "new y", "new york city")))
    assert not any(map(kb.is_prefix, ("", "m", "new x", "new york city ", "o", "x" * 600)))


def test_a_sample_is_spread_evenly_over_the_base_and_never_larger(tmp_path):
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        for entity_id in ("a", "Q3", "Q20", "b", "Q1"):
            writer.add(Entity(entity_id=entity_id, label="x"))
        writer.commit(source="x", source_sha256="")
    base = KnowledgeBase.open(str(tmp_path))
    # In the order of the base, Q1, Q3, Q20, a, b, places 0, 5 // 3 = 1 and 10 // 3 = 3.
    assert base.sample(3) == ["Q1", "Q3", "a"]
    assert base.sample(9) == ["Q1", "Q3", "Q20", "a", "b"]
