"""What each reason means for which a row or a label was not kept, in one sentence."""

from __future__ import annotations

# In the order of the stages.
STAGES = (
    "read", "validate", "find_mentions", "propose_candidates", "disambiguate", "score_images", "verify_links",
    "annotate", "select_labels", "deduplicate", "build_vocabulary", "write_shards",
)  # fmt: skip
MEANINGS = {
    "missing_image": "the row has no picture",
    "unsupported_image": "the row has a picture or film of a format that is not read, and no other picture",
    "several_images": "the row has several pictures, and --image-member does not say which one is meant",
    "missing_text": "the row has no text",
    "missing_text_field": "the row's .json has none of the fields of --text-field",
    "several_texts": "the row has several texts, and --text-member does not say which one is meant",
    "empty_text": "the text is blank",
    "text_too_long": "the text has more characters than --max-text-chars",
    "undecodable_text": "the text is not UTF-8",
    "undecodable_json": "the row's .json cannot be parsed",
    "unresolved_link": "the picture or text is a link to nothing in the tar, or the tar is compressed",
    "file_too_large": "the file of the picture or text is larger than 256 MiB",
    "members_apart": "the second half of a row whose first half lies too far before it in the tar",
    "duplicate_key": "the key was in the tar before",
    "truncated_shard": "here something of the tar is lost",
    "unreadable_shard": "the tar cannot be read",
    "missing_rows": "here and behind, the tar has fewer rows than when it was planned",
    "unreadable_image": "the header of the picture cannot be read",
    "image_too_small": "a side of the picture is shorter than --min-side-px",
    "image_too_large": "the picture has more pixels than --max-image-megapixels",
    "image_too_long": "the sides of the picture differ by more than --max-aspect-ratio",
    "no_mention": "neither the tagger nor the dictionary found a name in the text",
    "no_candidate": "no name in the text is in the knowledge base",
    "all_nil": "for every name, the candidates together do not reach --probability-min",
    "broken_image": "the picture cannot be decoded",
    "low_probability": "the link is less sure than --min-probability",
    "low_verifier_score": "the verifier's score of the link is lower than --min-verifier-score",
    "not_scored": "the picture was not compared with the entity",
    "low_similarity": "the cosine of picture and entity is below the threshold of the filter",
    "duplicate_id": "an earlier row has the same id",
    "duplicate_image": "another row has the same picture with the same entity",
    "rare_entity": "the entity has fewer images than --min-images-per-entity",
    "killed_worker": "the row ended the process that worked on it, twice",
    "timeout": "the row took longer than --stall-timeout-sec",
    "image_changed": "the picture in the input changed after it was annotated",
    "no_entity": "no entity was chosen",
}


def meaning_of(reason: str) -> str:
    """Returns what `reason` means; an empty text for one that only a stage of the user's own gives."""
    return MEANINGS.get(reason, "")


def stage_order(stage: str) -> tuple[int, str]:
    """Returns a key that sorts stages as rows pass them; unknown ones come last."""
    return (STAGES.index(stage) if stage in STAGES else len(STAGES), stage)
