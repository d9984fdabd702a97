"""Writes the knowledge base that `pipeline.kb.store` reads."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import operator
import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import lmdb
import numpy as np
import tqdm

from pipeline.kb import bag_of_words
from pipeline.kb.build.alias_table import Meaning, commonest_case, names_of, priors
from pipeline.kb.build.anchors import read_anchors
from pipeline.kb.build.link_probability import LinkProbability, WordCase
from pipeline.kb.normalise import normalise_alias
from pipeline.kb.store import (
    DATABASES,
    FORMAT_VERSION,
    KEY_BYTES_MAX,
    MANIFEST_NAME,
    MAP_SIZE_BYTES,
    Entity,
    KnowledgeBase,
    entity_from_json,
)
from pipeline.schema import UserError

_BATCH = 20_000  # writes per transaction
_MANY = 1_000_000  # rows that take some time to write

UsageOf = Callable[["KnowledgeBase"], Iterable[tuple[bytes, bytes]]]


class KnowledgeBaseWriter:
    """Context manager that writes a knowledge base in one pass over the entities; `commit` does the rest.

    Memory is bounded: names are kept on disk until all their meanings are known.

    Args:
        path: the folder; an existing base there stays until `commit`.
        languages: of the texts, for P(link | alias); see `link_probability`.
        anchors: a file that counts links of texts; see `anchors`.
    """

    def __init__(self, path: str, *, languages: Sequence[str] = ("en",), anchors: str | None = None) -> None:
        self._path = path
        self._languages = languages
        self._anchors_path = anchors
        self._word_case = WordCase()
        self._unfinished = os.path.join(path, "unfinished")  # an existing base is kept until this one is complete
        shutil.rmtree(self._unfinished, ignore_errors=True)
        os.makedirs(self._unfinished)
        self._postings_path = os.path.join(self._unfinished, "postings")
        self._env = lmdb.open(
            self._unfinished, map_size=MAP_SIZE_BYTES, max_dbs=len(DATABASES), subdir=True, sync=False
        )
        self._dbs = {name: self._env.open_db(name.encode()) for name in DATABASES}
        self._postings = lmdb.open(self._postings_path, map_size=MAP_SIZE_BYTES, max_dbs=1, sync=False)
        self._names = self._postings.open_db(b"names", dupsort=True)
        self._pending: list[Entity] = []
        self.num_entities = 0

    def __enter__(self) -> KnowledgeBaseWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._postings.close()
        self._env.close()
        shutil.rmtree(self._unfinished, ignore_errors=True)

    def add(self, entity: Entity) -> None:
        """Adds `entity`.

        Raises:
            ValueError: its id is empty or too long, its label is blank, or its popularity is negative.
        """
        if not 0 < len(entity.entity_id.encode()) <= KEY_BYTES_MAX:
            raise ValueError(f"entity id {entity.entity_id[:40]!r}: must be 1 to {KEY_BYTES_MAX} bytes long")
        if not normalise_alias(entity.label):
            raise ValueError(f"entity {entity.entity_id}: the label is blank")
        if not entity.popularity >= 0:
            raise ValueError(f"entity {entity.entity_id}: popularity {entity.popularity} is below 0")
        self._pending.append(entity)
        if len(self._pending) >= _BATCH:
            self._flush()

    def add_redirect(self, entity_id: str, target: str) -> None:
        """Makes `entity_id` another id of `target`."""
        with self._env.begin(write=True) as txn:
            txn.put(entity_id.encode(), target.encode(), db=self._dbs["redirects"])

    def commit(self, *, source: str, source_sha256: str, usage: UsageOf = lambda kb: ()) -> dict[str, Any]:
        """Returns the manifest, after priors, documents and then the counts of `usage` are written.

        Args:
            source: name of the file with the entities.
            source_sha256: of that file.
            usage: see `pipeline.kb.build.count_usage`.

        Raises:
            UserError: no entity was added.
        """
        self._flush()
        self._drop_wrong_redirects()
        if self.num_entities == 0:
            remedy = "check that it is a dump or kb_source.jsonl"
            raise UserError(f"{source}: holds no entity, at least 1 is needed; {remedy}")
        num_aliases = self._write_aliases()
        self._write_documents()
        num_texts = self._write_usage(usage)
        manifest = {
            "format_version": FORMAT_VERSION,
            "source": os.path.basename(source),
            "source_sha256": source_sha256,
            "num_entities": self.num_entities,
            "num_aliases": num_aliases,
            "num_redirects": self._count("redirects"),
            "num_texts": num_texts,
            "hash": self._content_hash(),
        }
        self._env.sync(True)
        with open(os.path.join(self._unfinished, MANIFEST_NAME), "w") as file:
            json.dump(manifest, file, indent=2)
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(self._path, MANIFEST_NAME))
        for name in ("data.mdb", MANIFEST_NAME):
            os.replace(os.path.join(self._unfinished, name), os.path.join(self._path, name))
        return manifest

    def _flush(self) -> None:
        with self._env.begin(write=True) as txn, self._postings.begin(write=True) as names:
            for entity in self._pending:
                entity_id = entity.entity_id.encode()
                new = txn.put(entity_id, _entity_to_json(entity), db=self._dbs["entities"], overwrite=False)
                if not new:
                    raise UserError(f"entity {entity.entity_id} occurs twice in the source; keep one of the two lines")
                self._word_case.add(entity.description)
                for key, weight, case in names_of(entity):
                    posting = json.dumps([entity.entity_id, weight, case]).encode()
                    if len(posting) <= KEY_BYTES_MAX:  # dupsort values have the limit of keys
                        names.put(key.encode(), posting, db=self._names)
        self.num_entities += len(self._pending)
        self._pending.clear()

    def _drop_wrong_redirects(self) -> None:
        """Deletes redirects whose id is an entity or whose target is not: dumps omit targets without a label."""
        with self._env.begin(write=True) as txn:
            entities, redirects = self._dbs["entities"], self._dbs["redirects"]
            wrong = [
                key
                for key, target in txn.cursor(db=redirects)
                if txn.get(key, db=entities) is not None or txn.get(target, db=entities) is None
            ]
            for key in wrong:
                txn.delete(key, db=redirects)

    def _write_aliases(self) -> int:
        """Returns the number of keys. Each gets its meanings with their priors."""
        count = 0
        anchors = self._read_anchors()
        link_probability = LinkProbability(self._languages, self._word_case)
        with self._postings.begin(db=self._names) as names:
            txn = self._env.begin(write=True)
            try:
                postings_total = names.stat(self._names)["entries"]
                cursor = self._progress(names.cursor(), "names", postings_total)
                for key, group in itertools.groupby(cursor, key=operator.itemgetter(0)):
                    meanings = [Meaning(*json.loads(value)) for _, value in group]
                    counts = anchors.get(key.decode(), {})
                    entries = priors(_with_anchors(meanings, counts))
                    linked = sum(sum(one.values()) for entity_id, one in counts.items() if entity_id)
                    unlinked = sum(counts.get("", {}).values())
                    probability = link_probability(key.decode(), linked=linked, unlinked=unlinked)
                    txn.put(key, json.dumps([probability, entries]).encode(), db=self._dbs["aliases"])
                    count += 1
                    if count % _BATCH == 0:
                        txn.commit()
                        txn = self._env.begin(write=True)
                txn.commit()
            except BaseException:
                txn.abort()
                raise
        return count

    def _read_anchors(self) -> dict[str, dict[str, Counter[str]]]:
        """Returns key -> entity id, "" for no link -> spelling -> count; names that only anchors give are added."""
        found: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
        if self._anchors_path is None:
            return found
        with self._env.begin() as txn:
            for anchor in read_anchors(self._anchors_path):
                entity_id = anchor.entity_id
                if target := txn.get(entity_id.encode(), db=self._dbs["redirects"]) if entity_id else None:
                    entity_id = target.decode()
                found[anchor.key][entity_id][anchor.alias] += anchor.num_uses
            with self._postings.begin(write=True) as names:
                for key, counts in found.items():
                    for entity_id, spellings in counts.items():
                        if entity_id and txn.get(entity_id.encode(), db=self._dbs["entities"]) is not None:
                            posting = json.dumps([entity_id, 0.0, commonest_case(spellings)]).encode()
                            names.put(key.encode(), posting, db=self._names)
        return found

    def _write_documents(self) -> None:
        """Writes the words of every entity, those of its types and links included, and how rare each word is."""
        counts = np.zeros(bag_of_words.NUM_BUCKETS, np.uint32)
        with self._env.begin(db=self._dbs["entities"]) as read:
            txn = self._env.begin
            batch: list[tuple[bytes, bytes]] = []
            for key, value in self._progress(read.cursor(), "documents", self.num_entities):
                entity = entity_from_json(value)
                texts = [entity.label, entity.description, *entity.aliases]
                for kind in entity.types:
                    target = read.get(kind.encode())
                    texts.append(entity_from_json(target).label if target else kind)
                for link in entity.links:
                    if target := read.get(link.encode()):
                        texts.append(entity_from_json(target).label)
                words = bag_of_words.hash_words(texts)
                counts[list({bag_of_words.bucket_of(word.key) for word in words})] += 1
                batch.append((key, bag_of_words.hash_document(words).tobytes()))
                if len(batch) >= _BATCH:
                    with txn(write=True, db=self._dbs["documents"]) as write:
                        write.cursor().putmulti(batch)
                    batch.clear()
            with txn(write=True, db=self._dbs["documents"]) as write:
                write.cursor().putmulti(batch)
        buckets = np.flatnonzero(counts)
        weights = bag_of_words.inverse_document_frequency(counts[buckets], self.num_entities)
        with self._env.begin(write=True, db=self._dbs["statistics"]) as write:
            write.put(b"buckets", buckets.astype("<u4").tobytes())
            write.put(b"inverse_document_frequency", weights.astype("<f4").tobytes())

    def _progress(self, rows: Iterable[Any], what: str, total: int) -> Iterable[Any]:
        """Returns `rows`, with a progress bar if there are many."""
        interval_sec = 0.1 if sys.stderr.isatty() else 10.0
        return tqdm.tqdm(
            rows, desc=what, total=total, unit="", unit_scale=True, mininterval=interval_sec, disable=total < _MANY
        )

    def _write_usage(self, usage: UsageOf) -> int:
        """Returns the number of texts that were counted."""
        kb = KnowledgeBase(self._path, self._env, manifest={})
        records = list(usage(kb))
        with self._env.begin(write=True, db=self._dbs["usage"]) as write:
            for key, value in records:
                write.put(key, value)
        return KnowledgeBase(self._path, self._env, manifest={}).usage.num_texts

    def _count(self, name: str) -> int:
        with self._env.begin() as txn:
            return txn.stat(self._dbs[name])["entries"]

    def _content_hash(self) -> str:
        """Returns a hash of the content of the base, which the order of writes does not change."""
        digest = hashlib.sha256(f"{FORMAT_VERSION}".encode())
        with self._env.begin() as txn:
            for name in DATABASES:
                for key, value in txn.cursor(db=self._dbs[name]):
                    digest.update(b"%d:%s%d:%s" % (len(key), key, len(value), value))
        return digest.hexdigest()


def _with_anchors(meanings: list[Meaning], counts: Mapping[str, Mapping[str, int]]) -> list[Meaning]:
    """Returns one meaning per entity, with how often texts link the name to it; the entity's own spelling counts."""
    merged: dict[str, Meaning] = {}
    for one in sorted(meanings, key=lambda meaning: -meaning.weight):
        num_anchors = sum(counts.get(one.entity, {}).values())
        merged.setdefault(one.entity, one._replace(num_anchors=num_anchors))
    return list(merged.values())


def _entity_to_json(entity: Entity) -> bytes:
    fields = dataclasses.asdict(entity)
    return json.dumps(fields, ensure_ascii=False, sort_keys=True).encode()
