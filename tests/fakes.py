"""Stand-ins for the model stages and makers of small inputs. A text such as "E1 E2" links to entities E1 and E2."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.store import Entity
from pipeline.row_stage import RowStage
from pipeline.schema import Candidate, LinkedMention, Mention, Rejection, Row


def png(shade: int, *, size_px: int = 16) -> bytes:
    """Returns a grey square."""
    buffer = io.BytesIO()
    Image.new("RGB", (size_px, size_px), (shade % 256, shade // 256, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def bmp_header(width_px: int, height_px: int) -> bytes:
    """Returns the header of a picture of that size, without its pixels."""
    return b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, width_px, height_px, 1, 24, 0, 0, 0, 0, 0, 0)


# Formats that Pillow finds by content and then fails on in its own ways; EPS would go to Ghostscript.
ODD_PICTURES = (
    b"DDS " + struct.pack("<I", 124) + bytes(120),
    b"FTEX" + bytes(28),
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n",
)


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Writes (name, content) members, in order."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def pair(key: str, text: str, shade: int) -> list[tuple[str, bytes]]:
    """Returns the members of one good row."""
    return [(f"{key}.png", png(shade)), (f"{key}.txt", text.encode())]


def write_bad_tars(folder: Path, *, good: str) -> dict[str, int]:
    """Writes s.tar, t.tar and u.tar, in which rows are bad in every way; returns how many end for which reason.

    Good are four rows of s.tar and the one of u.tar; their text is `good`.
    """

    def jpeg(width_px: int, height_px: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (width_px, height_px), (9, 99, 199)).save(buffer, "JPEG")
        return buffer.getvalue()

    bad = {
        "image_too_large": (bmp_header(30_000, 30_000), b"a bomb"),
        "image_too_small": (jpeg(1, 1), b"one pixel"),
        "image_too_long": (jpeg(16, 1600), b"a line"),
        "unreadable_image": (b"", b"zero bytes"),
        "broken_image": (jpeg(64, 64)[:-40], good.encode()),
        "undecodable_text": (jpeg(16, 16), "café".encode("latin-1")),
        "text_too_long": (jpeg(16, 16), b"x" * (1 << 20)),
        "empty_text": (jpeg(16, 16), b""),
    }
    members = [*pair("/absolute", good, 1), *pair("../../up", good, 2)]
    for key, (image, text) in bad.items():
        members += [(f"{key}.jpg", image), (f"{key}.txt", text)]
    members += [*pair("again", good, 3), *pair("other", good, 4), *pair("again", good, 5)]
    write_tar(folder / "s.tar", members)
    write_tar(folder / "t.tar", [])
    write_tar(folder / "u.tar", pair("u", good, 6))
    packed = gzip.compress((folder / "u.tar").read_bytes())
    (folder / "u.tar").write_bytes(packed[:-4] + b"tail")
    return {**dict.fromkeys(bad, 1), "duplicate_key": 1, "truncated_shard": 1}


def write_knowledge_base(path: Path, *, num_entities: int = 9) -> None:
    """Writes entities E0 to E8 with the labels "Entity 0" to "Entity 8"."""
    with KnowledgeBaseWriter(str(path)) as writer:
        for number in range(num_entities):
            writer.add(Entity(entity_id=f"E{number}", label=f"Entity {number}", description=f"the {number}"))
        writer.commit(source="fake", source_sha256="0")


def write_encoder_stub(path: Path) -> None:
    """Writes what the pipeline's driver reads of an encoder."""
    path.mkdir()
    (path / "encoder.json").write_text(json.dumps({"format_version": 1, "hash": "abc"}))


class FakeLinker(RowStage):
    """Links each word of the form E<digits>, cosine by the picture's hash; rows without one are "no_mention".

    The word "E1?" means probability 0.2; "FAIL" for a row that fails and may be tried again.
    """

    name = "find_mentions"

    def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        return [self._link(row) for row in rows]

    def _link(self, row: Row) -> Row | Rejection:
        linked = []
        for word in row.pair.text.split():
            if not word.startswith("E"):
                continue
            entity_id = word.rstrip("?")
            start = row.pair.text.index(word)
            mention = Mention(start=start, end=start + len(word), surface=word, score=0.9, finder="tagger")
            digest = hashlib.sha256(row.pair.image + entity_id.encode()).digest()
            candidate = Candidate(entity_id=entity_id, prior=1.0, score=0.9, similarity=digest[0] / 256)
            linked.append(
                LinkedMention(
                    mention=mention,
                    candidates=(candidate,),
                    chosen=entity_id,
                    probability=0.2 if word.endswith("?") else 0.9,
                )
            )
        if linked:
            return dataclasses.replace(row, linked=tuple(linked))
        failed = row.pair.text == "FAIL"
        return row.rejected(stage=self.name, reason="timeout" if failed else "no_mention", retryable=failed)


class LosingStage(FakeLinker):
    """A faulty stage: it forgets the last row of each batch."""

    def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        return super().run(rows)[:-1]
