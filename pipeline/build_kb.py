"""`python -m pipeline.build_kb`: a Wikidata dump or kb_source.jsonl -> a knowledge base."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import os
import sys
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import tqdm
import tyro

from pipeline.config import check_at_least
from pipeline.kb.build.count_usage import count_usage
from pipeline.kb.build.sources import Redirect, read_entities
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.schema import ImageText, UserError
from pipeline.sources.inputs import find_files
from pipeline.sources.read import read_shard
from pipeline.storage.disk import check_writable, reporting_disk_errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildKbConfig:
    """Builds the knowledge base that the pipeline links to."""

    source: str = "runs/demo/corpus/kb_source.jsonl"
    """A Wikidata JSON dump (.json, .json.gz, .json.bz2) or kb_source.jsonl."""
    output: str = "runs/demo/kb"
    """Directory of the knowledge base; an existing one is replaced."""
    language: str = "en"
    """Language of the labels, descriptions and aliases taken from a dump."""
    anchors: str | None = None
    """File that counts the links of texts, lines of `alias <tab> entity id <tab> count`; an empty id counts occurrences
    without a link. Without it the priors of a name come from the popularity of its entities."""
    texts: str | None = None
    """Path or glob of WebDataset tars, in quotes, preferably those to be mined: they show how names are used, which
    helps to link names that several entities share."""
    num_texts: int = 1_000_000
    """Most texts to read; each takes about 1 kB of memory."""


class _HashingFile(io.RawIOBase):
    """A file that hashes what is read from it and moves a progress bar: a dump of 100 GB is read only once."""

    def __init__(self, file: BinaryIO, progress: tqdm.tqdm[Any]) -> None:
        self._file = file
        self._progress = progress
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = cast(io.RawIOBase, self._file).readinto(buffer) or 0
        self.sha256.update(memoryview(buffer)[:size])
        self._progress.update(size)
        return size


def build_kb(config: BuildKbConfig) -> dict[str, Any]:
    """Returns the manifest of the knowledge base now at `config.output`.

    Raises:
        UserError: the source is missing, damaged or empty, or --texts matches no file.
    """
    check_at_least("--num-texts", config.num_texts, 0)
    # First, before the hours that reading the source may take.
    shards = [entry.path for entry in find_files(config.texts, option="--texts")] if config.texts else []
    try:
        size = os.path.getsize(config.source)
        raw = open(config.source, "rb")
    except OSError as error:
        remedy = "give --source an existing dump or kb_source.jsonl"
        raise UserError(f"{config.source}: {error.strerror}; {remedy}") from None
    # Lines take about three times their size on disk; of a compressed dump only the labels are kept, so it shrinks.
    check_writable(config.output, needed_bytes=4 * size if config.source.endswith(".jsonl") else size // 2)
    languages = (config.language,)
    with raw, KnowledgeBaseWriter(config.output, languages=languages, anchors=config.anchors) as writer:
        # stderr gets a line every 10 s if it is not a terminal
        interval_sec = 0.1 if sys.stderr.isatty() else 10.0
        with tqdm.tqdm(total=size, unit="B", unit_scale=True, desc="entities", mininterval=interval_sec) as progress:
            file = _HashingFile(raw, progress)
            buffered = io.BufferedReader(file, 1 << 20)
            try:
                for record in read_entities(config.source, cast(BinaryIO, buffered), language=config.language):
                    if isinstance(record, Redirect):
                        writer.add_redirect(record.entity_id, record.target)
                    else:
                        writer.add(record)
            except (EOFError, ValueError, OSError, zlib.error) as error:
                raise UserError(f"{config.source}: {error}; repair the source and build again") from None
        texts = _texts(shards, config.num_texts)
        manifest = writer.commit(
            source=config.source, source_sha256=file.sha256.hexdigest(), usage=lambda kb: count_usage(texts, kb)
        )
    if shards and config.num_texts and not manifest["num_texts"]:
        print(f"warning: --texts {config.texts} holds no pair of picture and text; names are linked without their use")
    return manifest


def _texts(shards: list[str], limit: int) -> Iterator[str]:
    """Returns the first `limit` texts, tar by tar."""
    rows = (row for shard in shards for row in read_shard(shard))
    texts = itertools.islice((row.text for row in rows if isinstance(row, ImageText)), limit)
    interval_sec = 0.1 if sys.stderr.isatty() else 10.0
    yield from tqdm.tqdm(texts, unit=" texts", desc="usage of names", mininterval=interval_sec)


def main() -> None:
    """Runs the command."""
    config = tyro.cli(BuildKbConfig, prog="python -m pipeline.build_kb")
    try:
        with reporting_disk_errors(config.output):
            manifest = build_kb(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(
        f"{config.output}: {manifest['num_entities']:,} entities, {manifest['num_aliases']:,} aliases, "
        f"{manifest['num_texts']:,} texts, "
        f"hash {manifest['hash'][:12]}"
    )


if __name__ == "__main__":
    main()
