"""Sources are read as they are published, in bounded memory, and what is damaged is named."""

import bz2
import gzip
import hashlib
import resource

import pytest
import zstandard

from pipeline.kb.build import read_dump
from pipeline.kb.build.read_dump import Block, DumpFile
from pipeline.schema import UserError

LINES = b"".join(b"%d\n" % number for number in range(200_000))
COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard.ZstdCompressor().compress}


def joined(blocks):
    return b"".join(block.content for block in blocks)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("suffix", COMPRESS)
def test_all_lines_come_with_their_numbers_hash_and_progress(tmp_path, monkeypatch, suffix, num_threads):
    monkeypatch.setattr(read_dump, "_BLOCK_BYTES", 1000)
    monkeypatch.setattr(read_dump, "_READ_BYTES", 700)
    path = tmp_path / f"dump.json{suffix}"
    # Two compressed files behind each other are one, as parallel compressors write them.
    path.write_bytes(COMPRESS[suffix](LINES[:500_000]) + COMPRESS[suffix](LINES[500_000:]))
    done = []
    file = DumpFile(str(path), num_threads=num_threads, progress=done.append)
    blocks = list(file.blocks())
    assert joined(blocks) == LINES and len(blocks) > 5
    # Line n holds the number n - 1.
    assert all(int(block.content.split(b"\n")[0]) == block.first_line - 1 for block in blocks)
    assert file.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sum(done) == path.stat().st_size and min(done) >= 0


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_compressed_file_that_is_cut_off_or_none_is_named(tmp_path, suffix, num_threads):
    path = tmp_path / f"dump.json{suffix}"
    for content in (COMPRESS[suffix](LINES)[:-2000], b"{}\n" * 1000):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"dump.json{suffix}: .*; repair the source and build again"):
            list(DumpFile(str(path), num_threads=num_threads).blocks())


def test_a_byte_order_mark_is_dropped_and_utf_16_is_refused(tmp_path):
    path = tmp_path / "kb.jsonl"
    path.write_bytes(b"\xef\xbb\xbfa\nb")
    assert list(DumpFile(str(path)).blocks()) == [Block(1, b"a\nb")]
    path.write_text("a\nb", encoding="utf-16")
    with pytest.raises(UserError, match="kb.jsonl: is UTF-16; convert it to UTF-8"):
        list(DumpFile(str(path)).blocks())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\n" + b"x" * 5000 + b"\nb\nc\n", [Block(1, b"a\n"), Block(2, b""), Block(3, b"b\nc\n")]),
        (b"a\n" + b"x" * 5000, [Block(1, b"a\n"), Block(2, b"")]),
        (b"x" * 5000 + b"\n" + b"y" * 5000 + b"\n", [Block(1, b""), Block(2, b"")]),
    ],
)
def test_a_line_above_the_limit_is_left_out_and_the_next_keep_their_numbers(tmp_path, monkeypatch, content, expected):
    for name, size in (("LINE_BYTES_MAX", 2000), ("_BLOCK_BYTES", 100), ("_READ_BYTES", 50)):
        monkeypatch.setattr(read_dump, name, size)
    path = tmp_path / "dump.json"
    path.write_bytes(content)
    blocks = [block for block in DumpFile(str(path)).blocks()]
    assert [block for block in blocks if not block.content] == [block for block in expected if not block.content]
    assert joined(blocks) == joined(expected)
    assert blocks[-1].first_line + max(blocks[-1].content.count(b"\n"), 1) == content.count(b"\n") + 1 + (
        not content.endswith(b"\n")
    )


def test_a_line_of_200_mb_takes_little_memory(tmp_path):
    path = tmp_path / "dump.json.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(200):
            file.write(b"x" * 1_000_000)
        file.write(b"\nlast\n")
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    blocks = list(DumpFile(str(path)).blocks())
    assert blocks == [Block(1, b""), Block(2, b"last\n")]
    # Twice the limit for a line, while its parts are joined.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 3 * read_dump.LINE_BYTES_MAX / 1024
