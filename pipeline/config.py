"""The settings of the pipeline: one frozen dataclass per stage, and one per job that holds them.

Every default that the paper does not state is this project's choice, and says so.
"""

from __future__ import annotations

import dataclasses
import threading

from pipeline.schema import UserError

_MEGAPIXELS_MAX = 178.0  # Pillow opens no larger pictures


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitConfig:
    """How input files are cut into units of work, which are annotated, resumed and written one by one."""

    unit_rows: int = 10_000
    """Most rows of a unit; 0 makes a unit of each input file, however large or small. Plain tars with more rows are
    split, and small files are put together, as many as cannot have more rows."""
    unit_bytes: int = 256 << 20
    """Most bytes of a unit of several files, or of a part of a tar that is split. Compressed tars stay whole."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """How units are worked on. None of these changes a byte of the annotations."""

    rows_per_batch: int = 1024
    """Rows that go through the stages together; memory holds the pictures of one batch, some 64 MB of files at most.
    The more rows, the more texts of one length the tagger takes at once."""
    stall_timeout_sec: float = 1800.0
    """What a batch, or a row that is tried alone, may take. A worker that takes longer ends; the next one runs the
    batch row by row, and gives up a row that hangs again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MembersConfig:
    """Which members of a tar make a row: its picture, its text, and what passes through. The defaults know how
    img2dataset, webdataset and LAION pack."""

    image_member: str = ""
    """Endings of the pictures' names, the first that a row has counts: "input.jpg" or "jpg,png". By default any format
    that is read; a row with several pictures is dropped unless one of them has the fewest dots in its name."""
    text_member: str = "txt,caption,text,json"
    """Endings of the texts' names, the first that a row has counts."""
    text_field: str = "caption,TEXT,text,alt_text,alt"
    """Fields of a .json in which a text is looked for, the first that is a string counts."""
    keep_fields: str = ""
    """Fields of a row's .json that pass through to annotations, ledger and set, such as "url,license"."""
    max_text_chars: int = 10_000
    """Longest text, after cleaning; rows with longer ones are dropped."""


DEFAULT_MEMBERS = MembersConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """Which pictures are used; only their headers are read here. The limits are this project's choice."""

    min_side_px: int = 16
    max_image_megapixels: float = 64.0
    """Larger pictures are dropped: they may be decompression bombs. The limit is 178, which is Pillow's own."""
    max_aspect_ratio: float = 50.0
    """Of the long side to the short one. Longer pictures are dropped: little of them is left in a square, and resizing
    them takes gigabytes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProposeConfig:
    """Which entities a mention may mean."""

    num_candidates: int = 16
    """Most candidates of a mention; the likeliest are kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DisambiguateConfig:
    """How the entity is chosen that a mention means."""

    weights: str = ""
    """JSON file with the weights of the evidence, as `make fit-linker` writes it; by default one of the two that are
    shipped, which were fitted to Wikipedia links and to the demo's composed texts, with and without a sentence encoder.
    """
    sentence_encoder: str = ""
    """Folder or hub name of a model of sentence-transformers that tells how near a text is to the descriptions of the
    candidates, such as sentence-transformers/all-MiniLM-L6-v2, to which the shipped weights were fitted; by default
    there is none. It runs where the tagger does."""
    num_iterations: int = 2
    """Rounds in which the entities of a text inform each other."""
    probability_min: float | None = None
    """Least probability that a mention means one of its candidates, whichever it is; below it the answer is NIL. The
    default is stated by the file of weights: on the first halves of both files of labelled texts, it leaves most room
    above a precision of 0.85 and a recall of 0.65 of proper names."""
    doubt_min: float = 0.4
    """Least probability by the text that a mention means one of its candidates for which the picture is asked. A value
    below `probability_min` opens more pictures. The default is ours."""
    doubt_max: float = 0.95
    """Probability by the text of the likeliest answer, an entity or NIL, from which on the picture is not asked; with 0
    it never is. The default is ours."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How pictures are compared with entities."""

    batch_size: int = 64
    """Pictures per call of the encoder; the last call is padded to it."""
    keep_embeddings: bool = True
    """Keep the embedding of each scored picture in the annotations, as float16: two bytes a number, about a hundredth
    of the picture, and no later step runs the encoder on the picture again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Whether a callable of the user's judges links, and how."""

    verifier: str | None = None
    """A callable, module:function: (images, texts, candidates) -> a score for each candidate of each text."""
    verifier_batch_size: int = 64
    """Names in texts per call."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectLabelsConfig:
    """Which linked entities become labels. All thresholds are ours: the paper gives none."""

    min_probability: float = 0.5
    """Least probability of the chosen entity, in [0, 1]. It is low where a name has several likely meanings."""
    min_similarity: float | None = None
    """Least cosine of image and entity text; None takes the value that keeps `keep_share` of the labels."""
    keep_share: float = 0.80
    """Share of the linked labels to keep, in (0, 1], when `min_similarity` is None."""
    min_verifier_score: float | None = None
    """Least score of the verifier for the chosen entity; None rejects none."""
    entity_floor: int = 0
    """Best labels of every entity that are kept whatever their cosine: the filter rejects too many of the entities that
    the encoder knows badly."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """Which entities become classes."""

    min_images_per_entity: int = 5
    """Entities with fewer images are dropped; the number is ours."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """How pictures are stored in the set: as JPEG or PNG, upright, in sRGB, without metadata."""

    max_side_px: int | None = None
    """Longer sides are reduced to this length, and the other in proportion; None: sizes stay."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnotateConfig:
    """The job that runs the models."""

    read: ReadConfig = ReadConfig()
    members: MembersConfig = MembersConfig()
    validate: ValidateConfig = ValidateConfig()
    propose: ProposeConfig = ProposeConfig()
    disambiguate: DisambiguateConfig = DisambiguateConfig()
    score: ScoreConfig = ScoreConfig()
    verify: VerifyConfig = VerifyConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AssembleConfig:
    """The cheap job that picks labels and writes the set."""

    select: SelectLabelsConfig = SelectLabelsConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    store: StoreConfig = StoreConfig()
    max_failed_share: float = 0.01
    """Largest share of input rows that may fail, in [0, 1]; above it the run stops after the ledger is written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackConfig:
    """The job that packs raw pairs."""

    members: MembersConfig = MembersConfig()
    validate: ValidateConfig = ValidateConfig()
    store: StoreConfig = StoreConfig()


def check_pack_config(config: PackConfig) -> None:
    """Checks that every value is in its range.

    Raises:
        UserError: a value is outside its range.
    """
    check_members_config(config.members)
    check_validate_config(config.validate)
    check_store_config(config.store)


def check_assemble_config(config: AssembleConfig) -> None:
    """Checks that every value is in its range.

    Raises:
        UserError: a value is outside its range.
    """
    select = config.select
    check_range("--min-probability", select.min_probability, 0.0, 1.0)
    check_range("--keep-share", select.keep_share, 1e-4, 1.0)
    check_range("--max-failed-share", config.max_failed_share, 0.0, 1.0)
    if select.min_similarity is not None:
        check_range("--min-similarity", select.min_similarity, -1.0, 1.0)
    if select.min_verifier_score is not None:
        check_range("--min-verifier-score", select.min_verifier_score, -1e9, 1e9)
    check_at_least("--entity-floor", select.entity_floor, 0)
    check_at_least("--min-images-per-entity", config.vocabulary.min_images_per_entity, 1)
    check_store_config(config.store)


def check_annotate_config(config: AnnotateConfig) -> None:
    """Checks that every value is in its range.

    Raises:
        UserError: a value is outside its range.
    """
    check_at_least("--rows-per-batch", config.read.rows_per_batch, 1)
    check_members_config(config.members)
    check_range("--stall-timeout-sec", config.read.stall_timeout_sec, 1, threading.TIMEOUT_MAX)
    check_at_least("--num-candidates", config.propose.num_candidates, 1)
    check_at_least("--num-iterations", config.disambiguate.num_iterations, 0)
    if config.disambiguate.probability_min is not None:
        check_range("--probability-min", config.disambiguate.probability_min, 0.0, 1.0)
    check_range("--doubt-min", config.disambiguate.doubt_min, 0.0, 1.0)
    check_range("--doubt-max", config.disambiguate.doubt_max, 0.0, 1.0)
    check_at_least("--batch-size", config.score.batch_size, 1)
    check_at_least("--verifier-batch-size", config.verify.verifier_batch_size, 1)
    check_validate_config(config.validate)


def check_members_config(config: MembersConfig) -> None:
    """Checks that every value is in its range.

    Raises:
        UserError: a value is outside its range.
    """
    check_at_least("--max-text-chars", config.max_text_chars, 1)
    for option, value in (("--text-member", config.text_member), ("--text-field", config.text_field)):
        if not value.strip(" ,"):
            raise UserError(f"{option} is empty; give at least one, separated by commas")


def check_unit_config(config: UnitConfig) -> None:
    """Checks that every value is in its range.

    Raises:
        UserError: a value is outside its range.
    """
    check_at_least("--unit-rows", config.unit_rows, 0)
    check_at_least("--unit-bytes", config.unit_bytes, 1)


def check_store_config(config: StoreConfig) -> None:
    """Checks that every value is in its range.

    Raises:
        UserError: a value is outside its range.
    """
    if config.max_side_px is not None:
        check_at_least("--max-side-px", config.max_side_px, 1)


def check_validate_config(config: ValidateConfig) -> None:
    """Checks that every value is in its range.

    Raises:
        UserError: a value is outside its range.
    """
    check_at_least("--min-side-px", config.min_side_px, 1)
    check_range("--max-image-megapixels", config.max_image_megapixels, 0.001, _MEGAPIXELS_MAX)
    check_range("--max-aspect-ratio", config.max_aspect_ratio, 1, 1000)


def check_at_least(flag: str, value: int, limit: int) -> None:
    """Checks that `value`, given by `flag`, is at least `limit`.

    Raises:
        UserError: it is less.
    """
    if value < limit:
        raise UserError(f"{flag} is {value}; the least allowed is {limit}")


def check_range(flag: str, value: float, low: float, high: float) -> None:
    """Checks that `value`, given by `flag`, lies in `[low, high]`.

    Raises:
        UserError: it does not.
    """
    if not low <= value <= high:
        raise UserError(f"{flag} is {value}; give a value from {low} to {high}")
