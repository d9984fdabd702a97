"""The records that flow through the pipeline, in the order in which they occur.

Standard library only, so that every package may import it, on any worker. Records are frozen,
because Beam may hand one object to several consumers.
"""

from __future__ import annotations

import dataclasses


class UserError(Exception):
    """An error that the user can fix: one line that names the value, the limit and the remedy."""


def entity_text(name: str, description: str) -> str:
    """Returns the text by which an encoder represents an entity: "name, description", or the name alone.

    The filter, the trainer and the evaluation all use it, so that a text tower sees the strings that it was trained on.
    Runs of white space become single blanks.
    """
    name, description = (" ".join(one.split()) for one in (name, description))
    return f"{name}, {description}" if description else name


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ImageText:
    """One input row: an encoded picture and its text."""

    image_id: str
    image: bytes
    text: str
    shard: str
    """Path of the input file."""
    row: int
    """Position within that file, from 0."""
    fields: tuple[tuple[str, str | None], ...] = ()
    """What passes through from the input, such as ("url", "https://…"): name and value, None where the row lacks it."""
    image_start_byte: int | None = None
    """Where the picture's bytes begin in that file; None if they do not lie there as they are: it is compressed."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Mention:
    """A span `[start, end)` of the text, in characters, that may name an entity."""

    start: int
    end: int
    surface: str
    score: float
    """The finder's own confidence, in [0, 1]."""
    finder: str
    """Either "tagger" or "dictionary"."""
    outer: tuple[int, int] | None = None
    """The longer capitalised span around it that the text writes as one name and the knowledge base lacks; None where
    there is none."""


# What speaks for or against a candidate. `pipeline.linking.evidence` says how each is measured.
EVIDENCE = (
    "prior",
    "match",
    "label",
    "popularity",
    "name",
    "agrees",
    "differs",
    "outer",
    "tagger",
    "length",
    "noun",
    "text",
    "seen",
    "kind",
    "meaning",
    "coherence",
    "graph",
    "picture",
    "compared",
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """An entity that a mention may mean, with the evidence for it."""

    entity_id: str
    prior: float
    """Share of the alias's uses, in [0, 1]."""
    case: str = "proper"
    """How the knowledge base writes the alias for this entity: "proper", "acronym" or "common"."""
    link_probability: float = 1.0
    """How often the alias, where it occurs, is a name at all, in [0, 1]."""
    match: float = 1.0
    """How well the mention's spelling matches the alias, in (0, 1]; 1 for an equal one."""
    evidence: tuple[float, ...] = ()
    """What speaks for it, in the order of `EVIDENCE`; empty until the linker has gathered it."""
    score: float = 0.0
    """Combined, a probability over the candidates and NIL."""
    similarity: float | None = None
    """Cosine of image and entity text; None until scored."""
    verifier_score: float | None = None
    """Of a verifier that the user brings, on its own scale; None without one."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LinkedMention:
    """A mention, its candidates, and the one chosen; `chosen` is None for NIL."""

    mention: Mention
    candidates: tuple[Candidate, ...]
    chosen: str | None
    probability: float
    by_text: str | None = None
    """The choice by text alone; another than `chosen` only where the picture decided."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """The one outcome of an input row that is not kept."""

    image_id: str
    shard: str
    row: int
    stage: str
    reason: str
    retryable: bool = False
    """True: the row failed and may be tried again; False: it was dropped."""
    text: str = ""
    linked: tuple[LinkedMention, ...] = ()
    """What was found by then."""
    fields: tuple[tuple[str, str | None], ...] = ()
    """As of `ImageText`."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """An input row with what the stages have found for it so far."""

    pair: ImageText
    mentions: tuple[Mention, ...] = ()
    linked: tuple[LinkedMention, ...] = ()
    width_px: int = 0
    height_px: int = 0
    image_format: str = ""
    """As Pillow names it, such as "JPEG"."""
    perceptual_hash: str = ""
    """16 hexadecimal digits; empty until the picture is decoded."""
    embedding: bytes | None = None
    """Of the picture by the encoder, float16 `[D]`, little-endian; None until it is scored, or where it is not kept."""

    def rejected(self, *, stage: str, reason: str, retryable: bool = False) -> Rejection:
        """Returns the rejection of this row, with what was found for it."""
        return Rejection(
            image_id=self.pair.image_id,
            shard=self.pair.shard,
            row=self.pair.row,
            stage=stage,
            reason=reason,
            retryable=retryable,
            text=self.pair.text,
            linked=self.linked,
            fields=self.pair.fields,
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Consecutive rows of one input shard.

    Batches are cut when a shard is read and never merged across shards, and models take them in calls of fixed shapes:
    so a row's scores depend neither on the worker nor on which rows happened to arrive with it.
    """

    shard: str
    rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LabelledImage:
    """One record of a set: a picture with its text and entity labels (none, in a set of raw pairs)."""

    image: bytes
    image_id: str
    text: str
    width_px: int
    height_px: int
    entity_ids: tuple[str, ...] = ()
    class_ids: tuple[int, ...] = ()
    similarities: tuple[float, ...] = ()
    fields: tuple[tuple[str, str | None], ...] = ()
    """As of `ImageText`."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class VocabularyEntry:
    """One class of a set; class ids fall by image count, so that a log-uniform sampler fits."""

    class_id: int
    entity_id: str
    name: str
    description: str
    image_count: int
