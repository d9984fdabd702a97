"""The knowledge base on disk: an LMDB database and flat files, memory-mapped, so that all processes share their pages.

    aliases    normalised name -> P(link | alias), and ordinal, prior and case of each meaning, likeliest first
    ids        id that is no Q<number> -> ordinal
    redirects  id -> id
    usage      how texts use names: see `pipeline.kb.usage`

Ordinals count the entities from 0: ids Q<number> by number, then the others. What belongs to an entity lies in the
files of `pipeline.kb.flat_files`, by ordinal. So do the graph vectors of a base that has them, float16 `[n, dim]`.

`manifest.json` beside it is written last: a directory without it holds no finished knowledge base.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import json
import os
import posixpath
import sys
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import lmdb
import numpy as np

from pipeline.byte_cache import Remembered
from pipeline.kb import bag_of_words
from pipeline.kb.entity_ids import EntityIds
from pipeline.kb.flat_files import FLAT_FILES, map_file
from pipeline.kb.records import CASES, ONLY_MEANING, ORDINAL_MASK, Record, decode_alias, decode_record, full_id
from pipeline.kb.usage import Usage
from pipeline.schema import UserError
from pipeline.storage.local_copy import MissingFileError, local_copy

FORMAT_VERSION = 6
MANIFEST_NAME = "manifest.json"
VECTORS_NAME = "vectors"
DATABASES = ("aliases", "ids", "redirects", "usage")
MAP_SIZE_BYTES = 1 << 38  # an upper limit of address space, not of disk
KEY_BYTES_MAX = 500  # LMDB's limit is 511
_new: Any = tuple.__new__  # of named tuples, at half the time
_CACHED_WORDS = 20_000  # whether names are there, and how rare words are: some 250 bytes each
_CACHED_VECTORS = 5_000  # 4 bytes a number: 2 MB of vectors of 100
_CACHED_BYTES = 8 << 20  # of entities, and as much of documents and of links
_ENTRY_BYTES = 200  # of an entry of these beside its values: key, objects, and its place in the table


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
        self._of_thread = threading.local()
        self._files = {name: map_file(path, name) for name in FLAT_FILES}
        self._ids = EntityIds(path, lambda key: self._get("ids", key))
        self._numbers = self._files["numbers"]
        self._num_numbers = len(self._numbers)
        self._vectors = _map_vectors(path, manifest, len(self._ids))
        self.usage = Usage(lambda key: self._get("usage", key))
        self.has_alias = functools.lru_cache(_CACHED_WORDS)(self._has_alias)
        self.is_prefix = functools.lru_cache(_CACHED_WORDS)(self._is_prefix)
        self.rarity = functools.lru_cache(_CACHED_WORDS)(self._rarity)
        self.document = Remembered(self._document, _CACHED_BYTES, _document_bytes).__getitem__
        self.entity = Remembered(self._entity, _CACHED_BYTES, _entity_bytes).__getitem__
        self.related = Remembered(self._related, _CACHED_BYTES, _related_bytes).__getitem__
        self.vector = functools.lru_cache(_CACHED_VECTORS)(self._vector)

    @classmethod
    def open(cls, path: str) -> KnowledgeBase:
        """Returns the base at `path`; a process has one object for each base. Of a base in a store it opens a copy.

        Raises:
            UserError: it is missing, unfinished, empty or of another format version.
        """
        path = os.path.realpath(local_copy(path))
        with cls._lock:
            if path not in cls._opened:
                manifest = read_manifest(path)
                # No lock file: the base never changes once it is committed, and its disk may be read-only.
                env = lmdb.open(path, readonly=True, lock=False, readahead=False, max_dbs=len(DATABASES))
                try:
                    cls._opened[path] = cls(path, env, manifest=manifest)
                except (OSError, ValueError) as error:
                    raise UserError(
                        f"{path}: a file of the knowledge base is damaged ({error}); {_remedy(path)}"
                    ) from None
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
        for ordinal in range(len(self._ids)):
            yield _entity_of(self._ids.id(ordinal), self._record(ordinal))

    def sample(self, num_entities: int) -> list[str]:
        """Returns at most `num_entities` ids, the same ones each time, spread evenly over the base."""
        count = min(num_entities, len(self))
        return [self._ids.id(place * len(self) // count) for place in range(count)]

    def entries(self, key: str) -> list[AliasEntry]:
        """Returns the meanings of the normalised name `key`, the likeliest first; [] for an unknown one."""
        alias = self.alias(key)
        return [] if alias is None else alias.entries

    def alias(self, key: str) -> Alias | None:
        """Returns the meanings of the normalised name `key`, and how often it is a name; None for an unknown one."""
        # The most frequent look-up of all: no call more than it needs.
        try:
            value = self._of_thread.get_alias(key.encode())
        except AttributeError:
            self._begin()
            return self.alias(key)
        except lmdb.BadValsizeError:  # empty or too long
            return None
        if value is None:
            return None
        if len(value) == ONLY_MEANING.size:
            link_probability, packed = ONLY_MEANING.unpack(value)
            ordinal = packed & ORDINAL_MASK
            entity_id = f"Q{self._numbers[ordinal]}" if ordinal < self._num_numbers else self._ids.id(ordinal)
            entry: AliasEntry = _new(AliasEntry, (entity_id, 1.0, CASES[packed >> 30]))
            found: Alias = _new(Alias, (link_probability, [entry]))
            return found
        link_probability, meanings = decode_alias(value)
        id_of = self._ids.id
        return Alias(
            link_probability,
            [_new(AliasEntry, (id_of(one & ORDINAL_MASK), prior, CASES[one >> 30])) for one, prior in meanings],
        )

    def _has_alias(self, key: str) -> bool:
        """Returns whether the normalised name `key` has a meaning."""
        return self._get("aliases", key.encode()) is not None

    def _is_prefix(self, key: str) -> bool:
        """Returns whether a name of the base starts with the normalised `key`, or is it."""
        prefix = key.encode()
        if not prefix:
            return False
        cursor = self._transaction().cursor(db=self._dbs["aliases"])
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
        ordinal = self._ordinal(entity_id)
        if ordinal is None:
            raise KeyError(f"entity {entity_id} is not in the knowledge base {self.path}")
        return _entity_of(self._ids.id(ordinal), self._record(ordinal))

    def _document(self, entity_id: str) -> frozenset[int]:
        """Returns the keys of the words that describe the entity; empty for an unknown one.

        They are those of its names and its description, and those of the labels of its types and links; a type that
        is no entity of the base counts with its own words.
        """
        ordinal = self._ordinal(entity_id)
        if ordinal is None:
            return frozenset()
        words, record = set(self._own_words(ordinal)), self._record(ordinal)
        for reference in {*record.types, *record.links}:
            if (target := self._ids.ordinal(reference)) is not None:
                words.update(self._label_words(target))
        for kind in record.types:
            if isinstance(kind, str) and self._ids.ordinal(kind) is None:
                words |= bag_of_words.hash_words([kind])
        return frozenset(words)

    def _own_words(self, ordinal: int) -> list[int]:
        start, end = self._files["words.offsets"][ordinal : ordinal + 2]
        return self._files["words"][start + 1 : end].tolist()

    def _label_words(self, ordinal: int) -> list[int]:
        words, start = self._files["words"], self._files["words.offsets"][ordinal]
        return words[start + 1 : start + 1 + words[start]].tolist()

    def _rarity(self, key: int) -> float:
        """Returns the inverse document frequency of a word's key, in nats; 0 for a word that no document holds."""
        buckets, bucket = self._files["buckets"], bag_of_words.bucket_of(key)
        place = bisect.bisect_left(buckets, bucket)
        return float(self._files["rarities"][place]) if place < len(buckets) and buckets[place] == bucket else 0.0

    def _related(self, entity_id: str) -> tuple[frozenset[str], frozenset[str]]:
        """Returns the links and the types of the entity."""
        entity = self.entity(entity_id)
        return frozenset(entity.links), frozenset(entity.types)

    def _vector(self, entity_id: str) -> np.ndarray | None:
        """Returns the graph vector of the entity, float32 `[dim]` of length 1, read-only; None where it has none."""
        ordinal = None if self._vectors is None else self._ordinal(entity_id)
        if ordinal is None or self._vectors is None:
            return None
        vector = np.asarray(self._vectors[ordinal], np.float32)
        length = float(np.linalg.norm(vector))  # half precision has made it a little more or less than 1
        if length == 0.0:
            return None
        vector = vector / length
        vector.setflags(write=False)  # it is cached
        return vector

    def _ordinal(self, entity_id: str) -> int | None:
        """Returns the place of the entity, through its redirect where there is one; None for an unknown one."""
        found = self._ids.ordinal(entity_id)
        return self._ids.ordinal(self.resolve(entity_id)) if found is None else found

    def _record(self, ordinal: int) -> Record:
        start, end = self._files["entities.offsets"][ordinal : ordinal + 2]
        return decode_record(self._files["entities"][start:end])

    def _get(self, name: str, key: bytes) -> bytes | None:
        return self._transaction().get(key, db=self._dbs[name]) if 0 < len(key) <= KEY_BYTES_MAX else None

    def _transaction(self) -> lmdb.Transaction[bytes]:
        """Returns this thread's, which stays open: what is committed never changes."""
        try:
            transaction: lmdb.Transaction[bytes] = self._of_thread.transaction
        except AttributeError:  # the first look-up of this thread
            self._begin()
            transaction = self._of_thread.transaction
        return transaction

    def _begin(self) -> None:
        self._of_thread.transaction = self._env.begin(buffers=False)
        self._of_thread.get_alias = self._env.begin(db=self._dbs["aliases"], buffers=False).get


def _remedy(path: str) -> str:
    return "write it with: python -m pipeline.build_kb --source SOURCE --output " + path


def read_manifest(path: str) -> dict[str, Any]:
    """Returns the manifest of the base at `path`, in a store too, without opening the base.

    Raises:
        UserError: the base is missing, unfinished, empty or of another format version.
    """
    remedy = _remedy(path)
    try:
        with open(local_copy(posixpath.join(path, MANIFEST_NAME))) as file:
            manifest: dict[str, Any] = json.load(file)
    except (FileNotFoundError, MissingFileError):
        raise UserError(f"{path}: no finished knowledge base there ({MANIFEST_NAME} is missing); {remedy}") from None
    except (json.JSONDecodeError, NotADirectoryError):
        raise UserError(f"{path}: {MANIFEST_NAME} cannot be read; {remedy}") from None
    if manifest.get("format_version") != FORMAT_VERSION:
        version = manifest.get("format_version")
        raise UserError(f"{path}: knowledge base of format {version}, this program reads {FORMAT_VERSION}; {remedy}")
    if manifest.get("num_entities", 0) < 1:
        raise UserError(f"{path}: the knowledge base is empty, at least 1 entity is needed; {remedy}")
    return manifest


def _map_vectors(path: str, manifest: dict[str, Any], num_entities: int) -> np.ndarray | None:
    stated = manifest.get("vectors")
    if stated is None:
        return None
    shape = (num_entities, int(stated["dim"]))
    size_bytes = os.path.getsize(os.path.join(path, VECTORS_NAME))
    if size_bytes != 2 * shape[0] * shape[1]:
        raise ValueError(f"{VECTORS_NAME} has {size_bytes} bytes, {2 * shape[0] * shape[1]} are needed")
    return np.memmap(os.path.join(path, VECTORS_NAME), "<f2", "r", shape=shape)


def _entity_of(entity_id: str, record: Record) -> Entity:
    return Entity(
        entity_id=entity_id,
        label=record.label,
        description=record.description,
        aliases=tuple(record.aliases),
        types=tuple(map(full_id, record.types)),
        popularity=record.popularity,
        links=tuple(map(full_id, record.links)),
    )


def _entity_bytes(_: str, entity: Entity) -> int:
    return _ENTRY_BYTES + _bytes_of(entity.label, entity.description, *entity.aliases, *entity.types, *entity.links)


def _related_bytes(_: str, related: tuple[frozenset[str], frozenset[str]]) -> int:
    return _ENTRY_BYTES + _bytes_of(*related, *related[0], *related[1])


def _document_bytes(_: str, words: frozenset[int]) -> int:
    return _ENTRY_BYTES + _bytes_of(words, *words)


def _bytes_of(*values: object) -> int:
    return sum(map(sys.getsizeof, values))
