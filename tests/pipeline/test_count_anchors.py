"""`count_anchors` writes what `build_kb --anchors` reads."""

import subprocess
import sys

import pytest

from pipeline.count_anchors import CountAnchorsConfig, count_anchors
from pipeline.kb.build import runs
from pipeline.kb.build.anchors import read_anchors
from pipeline.schema import UserError
from pipeline.wiki import disk_tables

DUMP = """<mediawiki>
  <page><title>USA</title><ns>0</ns><redirect title="United States" /><revision><text>x</text></revision></page>
  <page><title>Texas</title><ns>0</ns>
    <revision><text>A state of the [[USA|US]], [[US (film)|US]] and [[Mexico]].</text></revision></page>
  <page><title>Music</title><ns>0</ns><revision><text>They told us, and us alone.</text></revision></page>
</mediawiki>"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "dump.xml").write_text(DUMP)
    (tmp_path / "titles.tsv").write_text("United States\tQ30\n")
    return tmp_path


def test_a_dump_is_counted_through_its_redirects(files):
    config = CountAnchorsConfig(
        dump=str(files / "dump.xml"), titles=str(files / "titles.tsv"), output=str(files / "out" / "anchors.tsv")
    )
    assert count_anchors(config) == (2, 4)
    assert [(one.alias, one.entity_id, one.num_uses) for one in read_anchors(config.output)] == [
        ("Mexico", "enwiki:Mexico", 1),  # not in the table, but a base may have something of this name
        ("US", "Q30", 1),
        ("US", "enwiki:US (film)", 1),
        ("us", "", 2),
    ]


def test_an_aside_counts_for_no_other_entity(files):
    text = "A [[Texas]] ranger, [[Mexico|Texas]], [[Texas (film)|Texas]], [[Texas, Ohio|Texas]], [[Mexico|texas]]."
    page = f"<page><title>Music</title><ns>0</ns><revision><text>{text}</text></revision></page>"
    (files / "dump.xml").write_text(f"<mediawiki>{page}</mediawiki>")
    (files / "titles.tsv").write_text("Texas\tQ1439\n")
    config = CountAnchorsConfig(
        dump=str(files / "dump.xml"), titles=str(files / "titles.tsv"), output=str(files / "anchors.tsv")
    )
    count_anchors(config)
    assert [(one.alias, one.entity_id, one.num_uses) for one in read_anchors(config.output)] == [
        ("Texas", "Q1439", 1),
        ("Texas", "enwiki:Texas (film)", 1),
        ("Texas", "enwiki:Texas, Ohio", 1),
    ]


def test_the_counts_are_the_same_when_little_fits_memory(files, monkeypatch):
    config = CountAnchorsConfig(
        dump=str(files / "dump.xml"), titles=str(files / "titles.tsv"), output=str(files / "anchors.tsv")
    )
    count_anchors(config)
    first = (files / "anchors.tsv").read_bytes()
    for limit in ("_COUNTS_HELD", "_PAIRS_HELD", "_ROWS_AT_ONCE"):
        monkeypatch.setattr(disk_tables, limit, 1)
    monkeypatch.setattr(runs, "_FAN_IN", 2)
    count_anchors(config)
    assert (files / "anchors.tsv").read_bytes() == first
    assert sorted(one.name for one in files.iterdir()) == ["anchors.tsv", "dump.xml", "titles.tsv"]


def test_a_file_of_redirects_is_followed_too(files):
    (files / "redirects.tsv").write_text("US (film)\tUnited States\n")
    config = CountAnchorsConfig(
        dump=str(files / "dump.xml"),
        titles=str(files / "titles.tsv"),
        redirects=str(files / "redirects.tsv"),
        output=str(files / "anchors.tsv"),
    )
    count_anchors(config)
    assert [(one.entity_id, one.num_uses) for one in read_anchors(config.output)] == [
        ("enwiki:Mexico", 1),
        ("Q30", 2),
        ("", 2),
    ]


def test_titles_of_another_dump_are_an_error(files):
    (files / "titles.tsv").write_text("Bern\tQ70\n")
    config = CountAnchorsConfig(
        dump=str(files / "dump.xml"), titles=str(files / "titles.tsv"), output=str(files / "anchors.tsv")
    )
    with pytest.raises(UserError, match="titles.tsv: no link is to one of its titles; give the titles of this dump"):
        count_anchors(config)
    assert not (files / "anchors.tsv").exists()


def test_the_excerpts_first_half_is_the_default(tmp_path):
    config = CountAnchorsConfig(output=str(tmp_path / "anchors.tsv"))
    count_anchors(config)
    found = {(one.alias, one.entity_id): one.num_uses for one in read_anchors(config.output)}
    assert found["Georgia", "Q1428"] == 6  # of the state
    assert ("Georgia", "Q230") not in found  # the country is linked in the second half alone


def test_the_command_says_one_line_for_a_missing_dump(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pipeline.count_anchors",
        "--dump",
        "none.xml.bz2",
        "--output",
        f"{tmp_path}/a.tsv",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: none.xml.bz2 cannot be read (No such file or directory); give a dump of MediaWiki pages "
        "(.xml or .xml.bz2)"
    )
