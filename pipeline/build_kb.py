"""`python -m pipeline.build_kb`: a Wikidata dump or kb_source.jsonl -> a knowledge base."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import tqdm
import tyro

from pipeline.commands import ending_on_user_errors
from pipeline.config import MembersConfig, check_at_least, check_members_config, check_range
from pipeline.kb.build.count_usage import count_usage
from pipeline.kb.build.graph_vectors import DIM_MAX, SVD
from pipeline.kb.build.link_probability import check_languages
from pipeline.kb.build.parse_source import SourceCounts, parsed_blocks
from pipeline.kb.build.processes import Processes
from pipeline.kb.build.read_dump import DumpFile, size_of
from pipeline.kb.build.redirects import read_redirects
from pipeline.kb.build.wikidata_items import SKIPPED_KINDS
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.schema import ImageText, UserError
from pipeline.storage.disk import check_writable, reporting_disk_errors
from pipeline.storage.lock import output_lock

_SMALL_BYTES = 16 << 20  # of a source that one process reads sooner than others have started


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildKbConfig:
    """Builds the knowledge base that the pipeline links to."""

    source: str = "runs/demo/corpus/kb_source.jsonl"
    """A Wikidata JSON dump (.json, .json.gz, .json.bz2, .json.zst) or kb_source.jsonl."""
    output: str = "runs/demo/kb"
    """Directory of the knowledge base; an existing one is replaced."""
    languages: str = "en"
    """Codes of Wikidata's languages, separated by commas. The label of an entity is that of the first that has one; the
    labels of the others are aliases. Names in "mul" and in variants (en-gb for en) count too."""
    skipped_kinds: tuple[str, ...] = tuple(SKIPPED_KINDS)
    """Items that are instances of one of these are left out."""
    redirects: str | None = None
    """File of redirects, lines of `old id <tab> new id`."""
    anchors: str | None = None
    """File that counts the links of texts, lines of `alias <tab> entity id <tab> count`; an empty id counts occurrences
    without a link. Without it the priors of a name come from the popularity of its entities."""
    texts: str | None = None
    """WebDataset tars, in quotes, named as --input of build_i2e names them, preferably those to be mined: they show how
    names are used, which helps to link names that several entities share."""
    members: MembersConfig = MembersConfig()
    num_texts: int = 1_000_000
    """Most texts to read; each takes about 1 kB of memory."""
    graph: str | None = None
    """Where the vectors of entities come from: "svd" (of the base's own types and links), or a file of vectors such as
    wikidata_translation_v1.tsv.gz. None makes no vectors."""
    graph_dim: int = 64
    """Width of the vectors of "svd"."""
    max_bad_share: float = 0.001
    """Largest share of lines that cannot be used, in [0, 1]; they are counted and skipped, above it the build stops."""
    processes: int = 0
    """That parse the source and merge what it held; 0 for one per core."""
    wait: bool = False
    """Wait while another run writes to the output, instead of ending with an error."""


def build_kb(config: BuildKbConfig) -> dict[str, Any]:
    """Returns the manifest of the knowledge base now at `config.output`.

    Raises:
        UserError: the source is missing, damaged or empty, too many of its lines cannot be used, or --texts matches no
            file.
    """
    languages = config.languages.split(",")
    _check(config, languages)
    check_members_config(config.members)
    # First, before the hours that reading the source may take.
    shards = _shards(config.texts)
    graph_file = None if config.graph == SVD else config.graph
    for option, path in (("--redirects", config.redirects), ("--anchors", config.anchors), ("--graph", graph_file)):
        if path is not None and not os.path.isfile(path):
            raise UserError(f"{path}: no such file; give {option} an existing file")
    size = size_of(config.source)
    # Lines take about three times their size on disk; a dump shrinks to its labels, but for the runs that are sorted.
    share = 4.0 if config.source.endswith(".jsonl") else 0.2 if config.source.endswith(".json") else 1.0
    check_writable(config.output, needed_bytes=int(share * size))
    num_processes = config.processes or (1 if size < _SMALL_BYTES else os.cpu_count() or 1)
    counts = SourceCounts()
    with (
        output_lock(config.output, command="build_kb", wait=config.wait),
        Processes(num_processes) as processes,
        KnowledgeBaseWriter(
            config.output,
            languages=languages,
            anchors=config.anchors,
            graph=config.graph,
            graph_dim=config.graph_dim,
            processes=processes,
        ) as writer,
    ):
        # stderr gets a line every 10 s if it is not a terminal
        interval_sec = 0.1 if sys.stderr.isatty() else 10.0
        with tqdm.tqdm(total=size, unit="B", unit_scale=True, desc="source", mininterval=interval_sec) as progress:
            file = DumpFile(config.source, num_threads=num_processes, progress=progress.update)
            skipped_kinds = {kind: SKIPPED_KINDS.get(kind, f"instance of {kind}") for kind in config.skipped_kinds}
            for parsed in parsed_blocks(file, languages, skipped_kinds, processes):
                counts.add(parsed)
                counts.check(config.source, config.max_bad_share, is_end=False)
                writer.add_entries(parsed.entries)
                for redirect in parsed.redirects:
                    writer.add_redirect(*redirect)
        counts.check(config.source, config.max_bad_share, is_end=True)
        for old, new in read_redirects(config.redirects) if config.redirects else ():
            writer.add_redirect(old, new)
        texts = _texts(shards, config.num_texts, config.members)
        stated = {
            "languages": languages,
            "num_bad_lines": counts.num_bad,
            "skipped": dict(counts.skipped.most_common()),
        }
        manifest = writer.commit(
            source=config.source, source_sha256=file.sha256(), usage=lambda kb: count_usage(texts, kb), stated=stated
        )
    _warn(config, manifest, counts, has_texts=bool(shards and config.num_texts))
    return manifest


def _check(config: BuildKbConfig, languages: list[str]) -> None:
    check_languages(languages)
    check_at_least("--num-texts", config.num_texts, 0)
    check_at_least("--processes", config.processes, 0)
    check_range("--graph-dim", config.graph_dim, 1, DIM_MAX)
    check_range("--max-bad-share", config.max_bad_share, 0.0, 1.0)
    for kind in config.skipped_kinds:
        if not re.fullmatch(r"Q[1-9]\d*", kind):
            raise UserError(f"--skipped-kinds: {kind!r} is not the id of an item; give ids such as Q4167410")


def _warn(config: BuildKbConfig, manifest: dict[str, Any], counts: SourceCounts, *, has_texts: bool) -> None:
    """Prints what was left out."""
    if has_texts and not manifest["num_texts"]:
        print(f"warning: --texts {config.texts} holds no pair of picture and text; names are linked without their use")
    if counts.skipped:
        print("skipped: " + ", ".join(f"{number:,} {reason}" for reason, number in counts.skipped.most_common()))
    if counts.num_bad:
        print(f"warning: {counts.num_bad:,} of {counts.num_lines:,} lines cannot be used and were skipped:")
        print("".join(f"  {config.source}, {line}\n" for line in counts.bad), end="")
    if manifest["num_duplicate_ids"]:
        print(f"warning: {manifest['num_duplicate_ids']:,} entities have the id of an earlier one and were skipped")
    if manifest["redirect_cycles"]:
        print(f"warning: redirects that lead in a circle were left out: {'; '.join(manifest['redirect_cycles'])}")


def _shards(texts: str | None) -> list[str]:
    if not texts:
        return []
    from pipeline.sources.listing import find_files  # not at the top: Beam, which the parsing processes do not need

    return [entry.path for entry in find_files(texts, option="--texts")]


def _texts(shards: list[str], limit: int, members: MembersConfig) -> Iterator[str]:
    """Returns the first `limit` texts, tar by tar."""
    if not shards:
        return
    from pipeline.sources.read import read_shard

    rows = (row for shard in shards for row in read_shard(shard, config=members))
    texts = itertools.islice((row.text for row in rows if isinstance(row, ImageText)), limit)
    interval_sec = 0.1 if sys.stderr.isatty() else 10.0
    yield from tqdm.tqdm(texts, unit=" texts", desc="usage of names", mininterval=interval_sec)


def main() -> None:
    """Runs the command."""
    config = tyro.cli(tyro.conf.OmitArgPrefixes[BuildKbConfig], prog="python -m pipeline.build_kb")
    with ending_on_user_errors(), reporting_disk_errors(config.output):
        manifest = build_kb(config)
    print(
        f"{config.output}: {manifest['num_entities']:,} entities, {manifest['num_aliases']:,} aliases, "
        f"{manifest['num_texts']:,} texts, "
        f"hash {manifest['hash'][:12]}"
    )


if __name__ == "__main__":
    main()
