"""Names and descriptions of entities for people: from the knowledge base of a set, else from its vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pipeline.kb.store import KnowledgeBase
from pipeline.report.set_files import SetFiles
from pipeline.schema import UserError

NameOf = Callable[[str], tuple[str, str]]  # entity id -> (name, description), empty where unknown


def entity_names(files: SetFiles, kb_path: str | None, entity_ids: Iterable[str]) -> tuple[NameOf, list[str]]:
    """Returns the function that names `entity_ids`, and notes on what keeps it from naming all of them.

    Args:
        files: the set.
        kb_path: folder of the knowledge base; None takes the one that the manifest names, if it is still there.
        entity_ids: the entities that will be asked for.

    Raises:
        UserError: `kb_path` holds no knowledge base.
    """
    stated = files.manifest or {}
    path = kb_path or stated.get("kb")
    if path is None:
        return _of_vocabulary(files, entity_ids, "where the knowledge base lies is not known; give --kb")
    try:
        kb = KnowledgeBase.open(path)
    except UserError as error:
        if kb_path is not None:
            raise
        return _of_vocabulary(files, entity_ids, f"the knowledge base of the set is not there ({error})")
    hash_of_set = stated.get("hashes", {}).get("kb")
    notes = []
    if hash_of_set is not None and hash_of_set != kb.hash:
        notes.append(f"the knowledge base {path} is not the one that the set was mined with: names may differ")

    def name_of(entity_id: str) -> tuple[str, str]:
        try:
            entity = kb.entity(entity_id)
        except KeyError:
            return "", ""
        return entity.label, entity.description

    return name_of, notes


def _of_vocabulary(files: SetFiles, entity_ids: Iterable[str], reason: str) -> tuple[NameOf, list[str]]:
    vocabulary = files.vocabulary(entity_ids)

    def name_of(entity_id: str) -> tuple[str, str]:
        entry = vocabulary.get(entity_id)
        return (entry.name, entry.description) if entry else ("", "")

    return name_of, [f"{reason}: only entities of the vocabulary have names here"]
