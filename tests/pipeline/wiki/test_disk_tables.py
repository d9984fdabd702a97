"""Tables and counts that lie on disk."""

import pytest

from pipeline.wiki import disk_tables
from pipeline.wiki.disk_tables import Counts, Table


@pytest.mark.parametrize("num_held", [1, 2, 100])
def test_a_table_has_the_values_of_each_key_in_the_order_in_which_they_came(tmp_path, monkeypatch, num_held):
    monkeypatch.setattr(disk_tables, "_PAIRS_HELD", num_held)
    with Table(str(tmp_path), "titles") as table:
        table.add([("Bern", "Q70"), ("Zürich", "Q72")])
        table.add([("Bern", "Q1"), ("Aarau", "Q14274"), ("Bern", "Q70"), ("Bern", "Q2")])
        assert table.get("Bern") == ("Q70", "Q1", "Q70", "Q2") and table.last("Bern") == "Q2"
        assert table.get("Zürich") == ("Q72",) and table.last("Aarau") == "Q14274"
        assert table.get("Basel") == () and table.last("Basel") is None
        assert table.get("") == ()


def test_a_key_that_is_too_long_is_left_out(tmp_path):
    with Table(str(tmp_path), "titles") as table:
        table.add([("x" * 511, "Q1"), ("x" * 512, "Q2")])
        assert table.get("x" * 511) == ("Q1",) and table.get("x" * 512) == ()


def test_an_unknown_key_that_passes_the_filter_has_no_values(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_tables, "_NUM_BITS", 8)  # all keys share eight bits
    with Table(str(tmp_path), "titles") as table:
        table.add([(f"title {n}", f"Q{n}") for n in range(100)])
        assert table.get("title 7") == ("Q7",) and table.get("title 100") == ()


@pytest.mark.parametrize("num_held", [1, 2, 100])
def test_counts_are_added_up_whatever_fits_memory(tmp_path, monkeypatch, num_held):
    monkeypatch.setattr(disk_tables, "_COUNTS_HELD", num_held)
    counts = Counts(str(tmp_path), "links")
    counts.add([("b", "y"), ("a", "x"), ("b", "x")])
    counts.add([("b", "x"), ("b", "x")])
    assert list(counts.counted()) == [(("a", "x"), 1), (("b", "x"), 3), (("b", "y"), 1)]
    assert list(tmp_path.iterdir()) == []
