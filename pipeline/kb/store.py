"""The knowledge base on disk: one LMDB environment, memory-mapped, so that all workers of a machine share its pages.

    entities   id -> JSON of the entity
    aliases    key -> JSON [P(link | alias), [[id, prior, case], ...]], likeliest first
    documents  id -> sorted uint32 hashes
    redirects  id -> id
    statistics buckets of words, rising, and their inverse document frequencies
    usage      how texts use names: see `pipeline.kb.usage`

`manifest.json` beside it is written last: a directory without it holds no finished knowledge base.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import lmdb
import numpy as np

from pipeline.kb import bag_of_words
from pipeline.kb.usage import Usage
from pipeline.schema import UserError

FORMAT_VERSION = 3
MANIFEST_NAME = "manifest.json"
DATABASES = ("entities", "aliases", "documents", "redirects", "statistics", "usage")
MAP_SIZE_BYTES = 1 << 38  # an upper limit of address space, not of disk
KEY_BYTES_MAX = 500  # LMDB's limit is 511
_CACHED_DOCUMENTS = 50_000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Entity:
    """One entity, as the sources describe it."""

    entity_id: str
    label: str
    description: str = ""
    aliases: tuple[str, ...] = ()
    types: tuple[str, ...] = ()  # words, or entity ids
    popularity: float = 0.0  # any scale, at least 0; for Wikidata the number of site links
    links: tuple[str, ...] = ()  # entity ids


class AliasEntry(NamedTuple):
    """One meaning of an alias."""

    entity_id: str
    prior: float  # share of the alias's uses, in [0, 1]; the entries of an alias sum to 1
    case: str  # how the entity writes it: "proper", "acronym" (capitals alone) or "common" (small)

    @property
    def is_name(self) -> bool:
        """Whether it is written with a capital letter, as a proper name."""
        return self.case != "common"


class Alias(NamedTuple):
    """What the base knows of a normalised name."""

    link_probability: float  # how often the string, when it occurs, is a name at all, in (0, 1]
    entries: list[AliasEntry]  # likeliest first


class KnowledgeBase:
    """A committed knowledge base, read-only. Get one from `open`: a process holds each base once."""

    _opened: dict[str, KnowledgeBase] = {}
    _lock = threading.Lock()

    def __init__(self, path: str, env: lmdb.Environment, *, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._env = env
        self._dbs = {name: self._env.open_db(name.encode(), create=False) for name in DATABASES}
        self._buckets = np.frombuffer(self._get("statistics", b"buckets") or b"", dtype="<u4")
        self._rarities = np.frombuffer(self._get("statistics", b"inverse_document_frequency") or b"", dtype="<f4")
        self.rarity = functools.lru_cache(_CACHED_DOCUMENTS)(self._rarity)
        self.document = functools.lru_cache(_CACHED_DOCUMENTS)(self._document)
        self.usage = Usage(lambda key: self._get("usage", key))
        self.entity = functools.lru_cache(_CACHED_DOCUMENTS)(self._entity)
        self.related = functools.lru_cache(_CACHED_DOCUMENTS)(self._related)

    @classmethod
    def open(cls, path: str) -> KnowledgeBase:
        """Returns the base at `path`; a process has one object for each base.

        Raises:
            UserError: it is missing, unfinished, empty or of another format version.
        """
        path = os.path.realpath(path)
        with cls._lock:
            if path not in cls._opened:
                manifest = _read_manifest(path)
                # No lock file: the base never changes once it is committed, and its disk may be read-only.
                env = lmdb.open(path, readonly=True, lock=False, readahead=False, max_dbs=len(DATABASES))
                cls._opened[path] = cls(path, env, manifest=manifest)
            return cls._opened[path]

    def close(self) -> None:
        """Closes the files; the next `open` maps them again."""
        with self._lock:
            self._opened.pop(self.path, None)
            self._env.close()

    @property
    def hash(self) -> str:
        """The hash of the content."""
        return str(self.manifest["hash"])

    def __len__(self) -> int:
        return int(self.manifest["num_entities"])

    def __iter__(self) -> Iterator[Entity]:
        with self._env.begin(db=self._dbs["entities"]) as txn:
            for _, value in txn.cursor():
                yield entity_from_json(value)

    def entries(self, key: str) -> list[AliasEntry]:
        """Returns the meanings of the normalised name `key`, the likeliest first; [] for an unknown one."""
        alias = self.alias(key)
        return [] if alias is None else alias.entries

    def alias(self, key: str) -> Alias | None:
        """Returns the meanings of the normalised name `key`, and how often it is a name; None for an unknown one."""
        value = self._get("aliases", key.encode()) if key else None
        if value is None:
            return None
        link_probability, entries = json.loads(value)
        return Alias(link_probability, [AliasEntry(*entry) for entry in entries])

    def has_alias(self, key: str) -> bool:
        """Returns whether the normalised name `key` has a meaning."""
        return bool(key) and self._get("aliases", key.encode()) is not None

    def is_prefix(self, key: str) -> bool:
        """Returns whether a name of the base starts with the normalised `key`, or is it."""
        prefix = key.encode()
        if not prefix:
            return False
        with self._env.begin(db=self._dbs["aliases"]) as txn:
            cursor = txn.cursor()
            return bool(cursor.set_range(prefix)) and bytes(cursor.key()).startswith(prefix)

    def resolve(self, entity_id: str) -> str:
        """Returns the id that `entity_id` redirects to, or itself."""
        target = self._get("redirects", entity_id.encode())
        return target.decode() if target else entity_id

    def _entity(self, entity_id: str) -> Entity:
        """Returns the entity, through its redirect where there is one.

        Raises:
            KeyError: no such entity.
        """
        value = self._get("entities", self.resolve(entity_id).encode())
        if value is None:
            raise KeyError(f"entity {entity_id} is not in the knowledge base {self.path}")
        return entity_from_json(value)

    def _document(self, entity_id: str) -> frozenset[int]:
        """Returns the hashed words and n-grams that describe the entity; empty for an unknown one."""
        value = self._get("documents", self.resolve(entity_id).encode())
        return frozenset(np.frombuffer(value or b"", dtype="<u4").tolist())

    def _rarity(self, key: int) -> float:
        """Returns the inverse document frequency of a word's key, in nats; 0 for a word that no document holds."""
        bucket = bag_of_words.bucket_of(key)
        place = int(np.searchsorted(self._buckets, bucket))
        found = place < len(self._buckets) and int(self._buckets[place]) == bucket
        return float(self._rarities[place]) if found else 0.0

    def _related(self, entity_id: str) -> tuple[frozenset[str], frozenset[str]]:
        """Returns the links and the types of the entity."""
        entity = self.entity(entity_id)
        return frozenset(entity.links), frozenset(entity.types)

    def _get(self, name: str, key: bytes) -> bytes | None:
        if len(key) > KEY_BYTES_MAX:
            return None
        with self._env.begin() as txn:
            return txn.get(key, db=self._dbs[name])


def _read_manifest(path: str) -> dict[str, Any]:
    remedy = "write it with: python -m pipeline.build_kb --source SOURCE --output " + path
    try:
        with open(os.path.join(path, MANIFEST_NAME)) as file:
            manifest: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        raise UserError(f"{path}: no finished knowledge base there ({MANIFEST_NAME} is missing); {remedy}") from None
    except (json.JSONDecodeError, NotADirectoryError):
        raise UserError(f"{path}: {MANIFEST_NAME} cannot be read; {remedy}") from None
    if manifest.get("format_version") != FORMAT_VERSION:
        version = manifest.get("format_version")
        raise UserError(f"{path}: knowledge base of format {version}, this program reads {FORMAT_VERSION}; {remedy}")
    if manifest.get("num_entities", 0) < 1:
        raise UserError(f"{path}: the knowledge base is empty, at least 1 entity is needed; {remedy}")
    return manifest


def entity_from_json(value: bytes) -> Entity:
    fields = json.loads(value)
    for name in ("aliases", "types", "links"):
        fields[name] = tuple(fields[name])
    return Entity(**fields)
