"""Counts the images of each entity, drops rare entities, and numbers the others by falling count."""

from __future__ import annotations

from collections.abc import Iterable

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipeline.config import VocabularyConfig
from pipeline.kb.store import KnowledgeBase
from pipeline.schema import VocabularyEntry
from pipeline.storage.annotation_format import LabelRejection

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


class BuildVocabulary(beam.PTransform):
    """PCollection of EntityLabels -> dict of `kept` (EntityLabel, class id), `rejected` LabelRejections, `entries`.

    `entries` holds one element, the whole vocabulary: 2 M entities, the paper's count, fit in a worker.
    """

    def __init__(self, config: VocabularyConfig, *, kb_path: str):
        super().__init__()
        self._config = config
        self._kb_path = kb_path

    def expand(self, labels):  # type: ignore[no-untyped-def]
        least = self._config.min_images_per_entity
        entries = (
            labels
            | "EntityIds" >> beam.Map(lambda label: label.entity_id)
            | "Count" >> beam.combiners.Count.PerElement()
            | "Frequent" >> beam.Filter(lambda item: item[1] >= least)
            | "ToList" >> beam.combiners.ToList()
            | "Number" >> beam.ParDo(_NumberDoFn(self._kb_path))
        )
        class_ids = entries | "ClassIds" >> beam.Map(lambda items: {entry.entity_id: entry.class_id for entry in items})
        split = labels | "Split" >> beam.ParDo(_SplitDoFn(), beam.pvalue.AsSingleton(class_ids)).with_outputs(
            "rejected", main="kept"
        )
        return {"kept": split.kept, "rejected": split.rejected, "entries": entries}


class _NumberDoFn(beam.DoFn):
    def __init__(self, kb_path: str):
        self._kb_path = kb_path

    def process(self, counts):  # type: ignore[no-untyped-def]
        base = KnowledgeBase.open(self._kb_path)
        names = {}
        for entity_id, _ in counts:
            entity = base.entity(entity_id)
            names[entity_id] = (entity.label, entity.description)
        yield number_classes(counts, names)


class _SplitDoFn(beam.DoFn):
    def process(self, label, class_ids):  # type: ignore[no-untyped-def]
        class_id = class_ids.get(label.entity_id)
        if class_id is None:
            Metrics.counter(STAGE, "rare_entity").inc()
            yield beam.pvalue.TaggedOutput("rejected", LabelRejection(label=label, stage=STAGE, reason="rare_entity"))
        else:
            Metrics.counter(STAGE, "kept").inc()
            yield label, class_id
