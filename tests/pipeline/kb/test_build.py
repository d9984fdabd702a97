"""The parts of a build: runs that are sorted outside memory, redirects, arrays that are gathered."""

import itertools
import random

import numpy as np
import pytest

from pipeline.kb.build import runs, write_store
from pipeline.kb.build.flat_writer import FlatWriter, gather_rows, read_array
from pipeline.kb.build.rarities import places_of
from pipeline.kb.build.redirects import follow, read_redirects
from pipeline.kb.build.runs import Runs
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.flat_files import FLAT_FILES
from pipeline.kb.records import decode_alias, encode_alias, full_id, item_number, short_id
from pipeline.kb.store import Entity, KnowledgeBase
from pipeline.schema import UserError


@pytest.mark.parametrize("num_items", [1, 3, 1000])
def test_runs_come_back_in_order_whatever_fits_memory_and_leave_no_file(tmp_path, monkeypatch, num_items):
    monkeypatch.setattr(runs, "_FAN_IN", 3)
    monkeypatch.setattr(runs, "_CHUNK", 2)
    items = [(bytes([n % 7]), n, ("x", 0.5)) for n in range(60)]
    random.Random(0).shuffle(items)
    sorter = Runs(str(tmp_path), "items", num_items=num_items)
    for start in range(0, 60, 4):
        sorter.extend(iter(items[start : start + 4]))
    assert sorter.num_added == 60
    assert list(sorter.merged()) == sorted(items)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("num_parts", "least"), [(1, 1), (2, 2), (3, 3), (50, 4)])
def test_runs_can_be_merged_by_parts_of_their_keys(tmp_path, monkeypatch, num_parts, least):
    monkeypatch.setattr(runs, "_CHUNK", 2)
    monkeypatch.setattr(runs, "_CHUNKS_PER_MARK", 2)
    # There are 7 keys, so that each fills several chunks, and 4 marks in each run.
    items = [(bytes([3 + n % 7]), n) for n in range(60)]
    written = [runs.write_run(str(tmp_path / str(k)), sorted(items[k::4])) for k in range(4)]
    assert [run.num_items for run in written] == [15, 15, 15, 15]
    parts = runs.split_keys(written, num_parts)
    assert least <= len(parts) <= min(num_parts, 7)
    merged = [list(runs.merge(written, keys)) for keys in parts]
    assert all(merged) and sum(merged, []) == sorted(items)


def test_runs_of_a_part_count_from_its_own_first_entity(tmp_path):
    run = runs.write_run(str(tmp_path / "run"), [(b"a", 0, "x"), (b"b", 2, "y")])
    assert list(runs.merge([run._replace(shift=10)])) == [(b"a", 10, "x"), (b"b", 12, "y")]


def test_the_base_is_the_same_when_little_fits_memory(tmp_path, monkeypatch):
    entities = [
        Entity(
            entity_id=f"Q{n}" if n % 3 else f"own:{n}",
            label=f"Name {n % 40}",
            description=f"thing number {n}",
            aliases=(f"alias {n}", "Shared"),
            types=("Q1", "kind", "own:3"),
            links=(f"Q{n + 1}", "own:6", "Q99999"),
            popularity=float(n),
        )
        for n in range(1, 200)
    ]

    def build(name, order):
        with KnowledgeBaseWriter(str(tmp_path / name)) as writer:
            for entity in order:
                writer.add(entity)
            return writer.commit(source="s", source_sha256="0")

    first = build("a", entities)
    monkeypatch.setattr(runs, "_FAN_IN", 3)
    monkeypatch.setattr(runs, "_CHUNK", 2)
    monkeypatch.setattr(runs, "_CHUNKS_PER_MARK", 2)
    for limit in ("_BATCH", "_ENTRIES_HELD", "_POSTINGS_HELD", "_PART"):
        monkeypatch.setattr(write_store, limit, 7)
    monkeypatch.setattr("pipeline.kb.build.rarities._CHUNK", 11)
    assert build("b", entities[::-1])["hash"] == first["hash"]
    kb = KnowledgeBase.open(str(tmp_path / "b"))
    assert sorted(kb, key=lambda one: one.entity_id) == sorted(entities, key=lambda one: one.entity_id)
    assert len(kb.entries("shared")) == 199


def test_sorted_files_are_removed_as_soon_as_they_are_merged_and_duplicates_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_FAN_IN", 2)
    for limit in ("_ENTRIES_HELD", "_POSTINGS_HELD", "_PART", "_BATCH"):
        monkeypatch.setattr(write_store, limit, 3)
    left = []

    def usage(kb):
        folder = tmp_path / "unfinished"
        left.extend(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        return ()

    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        for n in (*range(20), *range(20)):  # each id twice
            writer.add(Entity(entity_id=f"Q{n + 1}", label=f"Name {n} {len(writer._entry_runs)}"))
        manifest = writer.commit(source="s", source_sha256="0", usage=usage)
    assert (manifest["num_entities"], manifest["num_duplicate_ids"]) == (20, 20)
    of_base = {*FLAT_FILES, "data.mdb", "lock.mdb"}
    assert set(left) - of_base == {"references", "references.offsets", "other_references"}


def test_redirects_are_followed_through_chains_and_cycles_are_reported():
    redirects = {"Q1": "Q2", "Q2": "Q3", "Q4": "Q5", "Q5": "Q6", "Q6": "Q5", "Q7": "Q7", "Q8": "Q404", "Q9": "Q3"}
    found, cycles = follow({**redirects, "Q3": "Q9"}, lambda entity_id: entity_id == "Q3")
    assert found == {"Q1": "Q3", "Q2": "Q3", "Q9": "Q3"}
    assert cycles == ["Q5 -> Q6 -> Q5", "Q7 -> Q7"]


def test_a_file_of_redirects_is_read(tmp_path):
    path = tmp_path / "redirects.tsv"
    path.write_bytes("\ufeffQ1\tQ2\r\n\nQ3\tQ2\n".encode())
    assert list(read_redirects(str(path))) == [("Q1", "Q2"), ("Q3", "Q2")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Q1\tQ2\nQ1 Q2\n", "redirects.tsv, line 2: 'Q1 Q2' are not two ids; give lines of: old id <tab> new id"),
        (b"Q1\t\n", "line 1: 'Q1' are not two ids"),
        (b"Q1\tQ2 \n", "line 1: .* are not two ids"),
        (b"Q1\t\xff\n", "redirects.tsv: not UTF-8"),
    ],
)
def test_a_damaged_file_of_redirects_is_named_with_its_line(tmp_path, content, message):
    path = tmp_path / "redirects.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_redirects(str(path)))


@pytest.mark.parametrize(
    ("entity_id", "number"),
    [("Q1", 1), ("Q4294967295", 4294967295), ("Q4294967296", None), ("Q01", None), ("Q", None), ("Q0", None)]
    + [("P1", None), ("Q1a", None), ("Q²", None), ("emoji:1f34e", None)],
)
def test_an_id_is_a_number_only_in_its_one_form(entity_id, number):
    assert item_number(entity_id) == number
    assert full_id(short_id(entity_id)) == entity_id


def test_aliases_are_stored_in_few_bytes():
    one = encode_alias(0.5, [(7, 1.0, 2)])
    assert len(one) == 6 and decode_alias(one) == (0.5, [(7 | 2 << 30, 1.0)])
    two = encode_alias(0.25, [(7, 0.75, 0), ((1 << 30) - 1, 0.25, 1)])
    assert len(two) == 2 + 2 * 8 and decode_alias(two) == (0.25, [(7, 0.75), ((1 << 30) - 1 | 1 << 30, 0.25)])


def test_rows_are_written_and_gathered(tmp_path):
    rows = [b"", b"\x01\0\0\0", b"\x02\0\0\0\x03\0\0\0"]
    with FlatWriter(str(tmp_path), "words") as writer:
        for row in itertools.islice(itertools.cycle(rows), 30_001):
            writer.append(row)
    offsets = read_array(str(tmp_path), "words.offsets")
    assert offsets.tolist()[:5] == [0, 0, 1, 3, 3] and len(offsets) == 30_002
    values = read_array(str(tmp_path), "words")
    assert gather_rows(values, offsets[[2, 0, 1]], np.array([2, 0, 1])).tolist() == [2, 3, 1]
    assert gather_rows(values, offsets[:0], np.array([], int)).tolist() == []


def test_places_are_those_of_equal_numbers():
    places, found = places_of(np.array([2, 5, 9]), np.array([9, 1, 5, 10]))
    assert found.tolist() == [True, False, True, False] and places[found].tolist() == [2, 1]
    assert places_of(np.array([]), np.array([1]))[1].tolist() == [False]
