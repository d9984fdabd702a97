"""Counts the images of each entity, drops rare entities, and numbers the others by falling count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.pvalue import PCollection
from apache_beam.transforms import combiners

from pipeline.config import VocabularyConfig
from pipeline.kb.store import KnowledgeBase
from pipeline.row_stage import Split
from pipeline.schema import VocabularyEntry
from pipeline.storage.annotation_format import EntityLabel, LabelRejection

STAGE = "build_vocabulary"


def number_classes(counts: Iterable[tuple[str, int]], names: dict[str, tuple[str, str]]) -> list[VocabularyEntry]:
    """Returns the classes, most images first and equal counts by entity id, as the log-uniform sampler needs.

    Args:
        counts: (entity id, number of images), each entity once.
        names: entity id -> (name, description).
    """
    ordered = sorted(counts, key=lambda item: (-item[1], item[0]))
    return [
        VocabularyEntry(
            class_id=class_id,
            entity_id=entity_id,
            name=names[entity_id][0],
            description=names[entity_id][1],
            image_count=count,
        )
        for class_id, (entity_id, count) in enumerate(ordered)
    ]


def split_by_class(
    label: EntityLabel, class_ids: Mapping[str, int]
) -> Iterator[tuple[EntityLabel, int] | LabelRejection]:
    """Returns the label with the class id of its entity, or its rejection if the entity is no class."""
    class_id = class_ids.get(label.entity_id)
    if class_id is None:
        yield LabelRejection(label=label, stage=STAGE, reason="rare_entity")
    else:
        yield label, class_id


class ClassifiedLabels(NamedTuple):
    """The outputs of `BuildVocabulary`."""

    kept: PCollection[tuple[EntityLabel, int]]  # label and class id
    rejected: PCollection[LabelRejection]
    entries: PCollection[list[VocabularyEntry]]  # one element: the whole vocabulary


class BuildVocabulary(beam.PTransform[PCollection[EntityLabel], ClassifiedLabels]):
    """PCollection of EntityLabels -> `.kept` (EntityLabel, class id), `.rejected` LabelRejections, `.entries`.

    `entries` holds one element, the whole vocabulary: 2 M entities, the paper's count, fit in a worker.
    """

    def __init__(self, config: VocabularyConfig, *, kb_path: str):
        super().__init__()
        self._config = config
        self._kb_path = kb_path

    def expand(self, labels: PCollection[EntityLabel]) -> Any:
        """Returns the `ClassifiedLabels`."""
        num_images_min = self._config.min_images_per_entity
        entries = (
            labels
            | "EntityIds" >> beam.Map(lambda label: label.entity_id)
            | "Count" >> combiners.Count.PerElement()
            | "Frequent" >> beam.Filter(lambda item: item[1] >= num_images_min)
            | "ToList" >> combiners.ToList()
            | "Number" >> beam.Map(_number_with_names, self._kb_path)
        )
        class_ids = entries | "ClassIds" >> beam.Map(lambda items: {entry.entity_id: entry.class_id for entry in items})
        split = labels | "Split" >> Split(
            split_by_class, beam.pvalue.AsSingleton(class_ids), stage=STAGE, rejection=LabelRejection
        )
        return ClassifiedLabels(kept=split.kept, rejected=split.rejected, entries=entries)


def _number_with_names(counts: Sequence[tuple[str, int]], kb_path: str) -> list[VocabularyEntry]:
    base = KnowledgeBase.open(kb_path)
    entities = {entity_id: base.entity(entity_id) for entity_id, _ in counts}
    return number_classes(counts, {name: (entity.label, entity.description) for name, entity in entities.items()})
