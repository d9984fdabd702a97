"""Writes the knowledge base that `pipeline.kb.store` reads.

Entities come in any order, from several processes. They are sorted by id outside memory, which gives each its ordinal;
their names are sorted by key likewise. So all that is written is written in order, and memory does not grow with the
number of entities. Several processes sort and merge, each a part of the keys; this one joins the parts.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import lmdb
import tqdm

from pipeline.kb.build.alias_table import case_of
from pipeline.kb.build.aliases import OUTSIDE, UNLINKED, Posting, read_rows, write_alias_part
from pipeline.kb.build.anchors import read_anchors
from pipeline.kb.build.entries import Entries, EntryEncoder
from pipeline.kb.build.flat_writer import read_array
from pipeline.kb.build.graph_vectors import SVD, write_imported, write_svd
from pipeline.kb.build.link_probability import WordCase
from pipeline.kb.build.merge_entities import OTHER_REFERENCES, join_parts, write_entity_part, write_entries
from pipeline.kb.build.own_lines import record_of
from pipeline.kb.build.processes import Processes
from pipeline.kb.build.rarities import write_rarities
from pipeline.kb.build.redirects import follow
from pipeline.kb.build.runs import Keys, Run, Runs, reduced, remove, split_keys
from pipeline.kb.entity_ids import ORDINAL, EntityIds
from pipeline.kb.flat_files import FLAT_FILES
from pipeline.kb.normalise import normalise_alias
from pipeline.kb.records import CASES, ORDINAL_MAX, Record
from pipeline.kb.store import (
    DATABASES,
    FORMAT_VERSION,
    KEY_BYTES_MAX,
    MANIFEST_NAME,
    MAP_SIZE_BYTES,
    VECTORS_NAME,
    Entity,
    KnowledgeBase,
)
from pipeline.schema import UserError

_BATCH = 10_000  # rows per transaction
_ENTRIES_HELD = 20_000  # in memory
_PART = 500_000  # entries and postings that are merged by one call
_CALLS_PER_PROCESS = 3  # so that no process waits long for the last one
_POSTINGS_HELD = 80_000
_MANY = 1_000_000  # rows that take some time to write
_TEMPORARY = ("references", "references.offsets", OTHER_REFERENCES)

UsageOf = Callable[["KnowledgeBase"], Iterable[tuple[bytes, bytes]]]


class KnowledgeBaseWriter:
    """Context manager that writes a knowledge base in one pass over the entities; `commit` does the rest.

    Args:
        path: the folder; an existing base there stays until `commit`.
        languages: of the texts, for P(link | alias); see `link_probability`.
        anchors: a file that counts links of texts; see `anchors`.
        graph: where the vectors of entities come from: "svd", a file, or None for no vectors; see `graph_vectors`.
        graph_dim: their width for "svd".
        processes: that sort and merge; by default this one.
    """

    def __init__(
        self,
        path: str,
        *,
        languages: Sequence[str] = ("en",),
        anchors: str | None = None,
        graph: str | None = None,
        graph_dim: int = 64,
        processes: Processes | None = None,
    ) -> None:
        self._path = path
        self._languages = languages
        self._anchors_path = anchors
        self._graph, self._graph_dim = graph, graph_dim
        self._folder = os.path.join(path, "unfinished")  # an existing base is kept until this one is complete
        shutil.rmtree(self._folder, ignore_errors=True)
        os.makedirs(self._folder)
        self._env = lmdb.open(self._folder, map_size=MAP_SIZE_BYTES, max_dbs=len(DATABASES), subdir=True, sync=False)
        self._dbs = {name: self._env.open_db(name.encode()) for name in DATABASES}
        self._processes = processes or Processes()
        self._packed: list[bytes] = []  # entries that are not sorted yet
        self._num_packed = 0
        self._entry_runs: list[Callable[[], Run]] = []
        self._num_entries = 0
        self._posting_runs: list[Run] = []
        self._word_case = WordCase()
        self._redirects: dict[str, str] = {}
        self._encoder = EntryEncoder()
        self._pending: list[tuple[int, str, Record]] = []
        self._places = itertools.count()
        self.num_entities = 0

    def __enter__(self) -> KnowledgeBaseWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._env.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, entity: Entity) -> None:
        """Adds `entity`. Of two with the same id the first counts.

        Raises:
            ValueError: its id is empty or too long, its label is blank, or its popularity is negative.
        """
        if not 0 < len(entity.entity_id.encode()) <= KEY_BYTES_MAX:
            raise ValueError(f"entity id {entity.entity_id[:40]!r}: must be 1 to {KEY_BYTES_MAX} bytes long")
        if not normalise_alias(entity.label):
            raise ValueError(f"entity {entity.entity_id}: the label is blank")
        if not entity.popularity >= 0:
            raise ValueError(f"entity {entity.entity_id}: popularity {entity.popularity} is below 0")
        self._pending.append((next(self._places), entity.entity_id, record_of(entity)))
        if len(self._pending) >= _BATCH:
            self._flush()

    def add_entries(self, entries: Entries) -> None:
        """Adds what `EntryEncoder` made of entities in another process."""
        if entries.num_entries:
            self._packed.append(entries.packed)
        self._num_packed += entries.num_entries
        if self._num_packed >= _ENTRIES_HELD:
            self._sort_entries()
        self._word_case.add(entries.case_buckets)

    def add_redirect(self, entity_id: str, target: str) -> None:
        """Makes `entity_id` another id of `target`."""
        self._redirects[entity_id] = target

    def commit(
        self,
        *,
        source: str,
        source_sha256: str,
        usage: UsageOf = lambda kb: (),
        stated: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Returns the manifest, after names, rarities of words and then the counts of `usage` are written.

        Args:
            source: name of the file with the entities.
            source_sha256: of that file.
            usage: see `pipeline.kb.build.count_usage`.
            stated: further fields of the manifest.

        Raises:
            UserError: no entity was added, or too many were.
        """
        self._flush()
        num_duplicates = self._write_entities()
        if self.num_entities == 0:
            remedy = "check that it is a dump or kb_source.jsonl"
            raise UserError(f"{source}: holds no entity, at least 1 is needed; {remedy}")
        with self._env.begin(db=self._dbs["ids"]) as txn:
            ids = EntityIds(self._folder, txn.get)
            redirects, cycles = follow(self._redirects, lambda entity_id: ids.ordinal(entity_id) is not None)
            if self._anchors_path is not None:
                self._add_anchors(self._anchors_path, ids, redirects)
            self._write_rarities(ids)
            vectors = self._write_vectors(ids)
        rows = ((old.encode(), redirects[old].encode()) for old in redirects)
        num_redirects = self._append("redirects", sorted(rows))
        num_aliases = self._write_aliases()
        num_texts = self._write_usage(usage)
        for name in _TEMPORARY:
            os.remove(os.path.join(self._folder, name))
        manifest = {
            "format_version": FORMAT_VERSION,
            "source": os.path.basename(source),
            "source_sha256": source_sha256,
            "num_entities": self.num_entities,
            "num_duplicate_ids": num_duplicates,
            "num_aliases": num_aliases,
            "num_redirects": num_redirects,
            "redirect_cycles": cycles,
            "num_texts": num_texts,
            **({} if vectors is None else {"vectors": vectors}),
            "languages": list(self._languages),
            **(stated or {}),
            "hash": self._content_hash(),
        }
        self._publish(manifest)
        return manifest

    def _flush(self) -> None:
        self.add_entries(self._encoder.encode(self._pending))
        self._pending.clear()

    def _sort_entries(self) -> None:
        if self._packed:
            path = os.path.join(self._folder, f"entries.{len(self._entry_runs)}")
            self._entry_runs.append(self._processes.submit(write_entries, path, self._packed))
            self._num_entries += self._num_packed
        self._packed, self._num_packed = [], 0

    def _write_entities(self) -> int:
        """Returns how many entities were left out, since an earlier one has their id. The others get their ordinals."""
        self._sort_entries()
        found = [wait() for wait in self._entry_runs]
        runs = reduced(found, self._folder, "entries-merged", self._processes)
        calls = (
            (os.path.join(self._folder, f"part-{number}"), runs, keys, _POSTINGS_HELD)
            for number, keys in enumerate(self._parts(runs, self._num_entries))
        )
        parts = []
        with self._bar("entities", self._num_entries) as bar:
            for part in self._processes.map(write_entity_part, calls):
                parts.append(part)
                bar.update(part.num_entities)
        remove(runs)
        self._posting_runs = join_parts(self._folder, parts)
        self.num_entities = sum(part.num_entities for part in parts)
        if self.num_entities > ORDINAL_MAX:
            raise UserError(f"{self.num_entities:,} entities; a base takes {ORDINAL_MAX:,}; leave out more kinds")
        self._append("ids", self._other_ids())
        return self._num_entries - self.num_entities

    def _parts(self, runs: Sequence[Run], num_items: int) -> list[Keys]:
        """Returns the parts of the keys of `runs`, each for one call."""
        num_calls = math.ceil(num_items / _PART)
        if self._processes.num > 1:
            num_calls = max(num_calls, _CALLS_PER_PROCESS * self._processes.num)
        return split_keys(runs, num_calls) if runs else []

    def _other_ids(self) -> Iterator[tuple[bytes, bytes]]:
        """Returns each id that is no Q<number>, with its ordinal."""
        ids, offsets = (read_array(self._folder, name) for name in ("other_ids", "other_ids.offsets"))
        first = self.num_entities - (len(offsets) - 1)
        for place, (start, end) in enumerate(itertools.pairwise(map(int, offsets))):
            yield ids[start:end].tobytes(), ORDINAL.pack(first + place)

    def _write_rarities(self, ids: EntityIds) -> None:
        others = os.path.join(self._folder, OTHER_REFERENCES)
        with self._bar("words", self.num_entities) as bar:
            write_rarities(self._folder, others, ids.ordinal, bar.update)

    def _write_vectors(self, ids: EntityIds) -> dict[str, Any] | None:
        """Returns what the manifest states of the graph vectors; None without any."""
        if self._graph is None:
            return None
        if self._graph == SVD:
            return write_svd(self._folder, ids, self._graph_dim)
        return write_imported(self._graph, self._folder, ids)

    def _add_anchors(self, path: str, ids: EntityIds, redirects: dict[str, str]) -> None:
        postings = Runs(self._folder, "anchors", num_items=_POSTINGS_HELD)
        batch: list[Posting] = []
        for anchor in read_anchors(path):
            place = UNLINKED
            if anchor.entity_id:
                found = ids.ordinal(anchor.entity_id)
                found = ids.ordinal(redirects.get(anchor.entity_id, "")) if found is None else found
                place = OUTSIDE if found is None else found
            batch.append((anchor.key.encode(), place, 0.0, CASES.index(case_of(anchor.alias)), anchor.num_uses))
            if len(batch) >= _BATCH:
                postings.extend(batch)
                batch = []
        postings.extend(batch)
        self._posting_runs += postings.finish()

    def _write_aliases(self) -> int:
        """Returns the number of keys. Each gets its meanings with their priors."""
        word_case = os.path.join(self._folder, "word_case")
        self._word_case.write(word_case)
        runs = reduced(self._posting_runs, self._folder, "postings-merged", self._processes)
        num_postings = sum(run.num_items for run in runs)
        parts = self._parts(runs, num_postings)
        calls = (
            (os.path.join(self._folder, f"aliases.{number}"), runs, keys, tuple(self._languages), word_case)
            for number, keys in enumerate(parts)
        )
        count = 0
        with self._bar("names", num_postings) as bar:
            for path in self._processes.map(write_alias_part, calls):
                count += self._append("aliases", read_rows(path))
                bar.update(num_postings / len(parts))
        remove(runs)
        os.remove(word_case)
        return count

    def _write_usage(self, usage: UsageOf) -> int:
        """Returns the number of texts that were counted."""
        kb = KnowledgeBase(self._folder, self._env, manifest={"languages": self._languages})
        self._append("usage", sorted(usage(kb)))
        return KnowledgeBase(self._folder, self._env, manifest={}).usage.num_texts

    def _append(self, name: str, rows: Iterable[tuple[bytes, bytes]]) -> int:
        """Returns the number of `rows`, which are written behind those that the database `name` has: they must rise."""
        count = 0
        remaining = iter(rows)
        while batch := list(itertools.islice(remaining, _BATCH)):
            with self._env.begin(write=True, db=self._dbs[name]) as txn:
                _, added = txn.cursor().putmulti(batch, append=True)
            if added != len(batch):
                raise AssertionError(f"rows of {name} are not in order")
            count += added
        return count

    def _bar(self, what: str, total: int) -> tqdm.tqdm[Any]:
        interval_sec = 0.1 if sys.stderr.isatty() else 10.0
        return tqdm.tqdm(
            desc=what, total=total, unit="", unit_scale=True, mininterval=interval_sec, disable=total < _MANY
        )

    def _content_hash(self) -> str:
        """Returns a hash of the content of the base, which the order of the source does not change."""
        digest = hashlib.sha256(f"{FORMAT_VERSION}".encode())
        with self._env.begin() as txn:
            for name in DATABASES:
                for key, value in txn.cursor(db=self._dbs[name]):
                    digest.update(b"%d:%s%d:%s" % (len(key), key, len(value), value))
        for name in self._flat_files():
            with open(os.path.join(self._folder, name), "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def _flat_files(self) -> list[str]:
        return [*FLAT_FILES, *([] if self._graph is None else [VECTORS_NAME])]

    def _publish(self, manifest: dict[str, Any]) -> None:
        """Puts the files of this base in the place of an older one's."""
        self._env.sync(True)
        with open(os.path.join(self._folder, MANIFEST_NAME), "w") as file:
            json.dump(manifest, file, indent=2)
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(self._path, MANIFEST_NAME))
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(self._path, VECTORS_NAME))
        for name in ("data.mdb", *self._flat_files(), MANIFEST_NAME):
            os.replace(os.path.join(self._folder, name), os.path.join(self._path, name))
