"""Zero-shot classification: is the name of what a picture shows the closest of all names?

Protocol (version 1), after CLIP. A class's text is its name, in each template. Every template's embedding is
normalised, the mean is taken and normalised again. A picture's classes rank by similarity, equal ones by position: of
two classes with one name, the first wins. `num_tied_names` says how many names belong to several classes (ImageNet has
two, "missile" and "sunglasses"), `num_tied_classes` to how many. The mean over classes is of those with pictures.

Names and templates come from JSON files, by default those of the package clip-benchmark (see `evaluation.fetch_names`),
where "imagenet1k" has 1,000 names and 80 templates. Its names belong to WordNet ids, which the classes must be: all of
them, or some. An object from class to name states each class's name itself. Other lists meet the classes by position,
class folders sorted. A class that has the name of another is refused in both, and where classes of a list do not have
their own name, the first of these are printed beside their names. A TFDS set has names of its own, and so has a folder
with the option names_key=own: underscores become spaces; WordNet ids and numbers are refused. The counts list each
class with its name.

The demo (version 1): pictures of held-out renderings. For seen entities the vocabulary competes, for unseen ones all
unseen entities of the evaluation; the template is the bare name. Equal similarities rank by entity id.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluation.benchmarks.entities import scored_pictures
from evaluation.fetch_names import NAMES_FILE, TEMPLATES_FILE, WORDNET_FILE
from evaluation.metrics.classes import (
    TEMPLATES,
    accuracy_at,
    accuracy_items,
    class_embeddings,
    true_class_ranks,
)
from evaluation.models.embed import TextEncoder
from evaluation.options import Options, option
from evaluation.protocol import Context, EmbeddedSet, Result, Unavailable, hash_of, register
from evaluation.sets.class_names import (
    IMAGENET,
    OWN,
    aligned_names,
    imagenet_names,
    names_by_class,
    own_names,
    read_names_by_class,
    read_texts,
)
from evaluation.sets.labelled import read_labelled
from evaluation.sets.renderings import Renderings
from evaluation.sets.text import read_json_lines
from pipeline.schema import UserError

PROTOCOL_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShotOptions(Options):
    """See `--help`."""

    data: str = option("imagenet/val", help="a folder of class folders or tfds:<name>/<split>")
    names: str | None = option(None, help=f"JSON file of class names; names/{NAMES_FILE} where it is not given")
    names_key: str | None = option(None, help=f"which of the file's lists; {OWN}: the data's own names")
    templates: str | None = option(None, help=f"JSON file of templates; names/{TEMPLATES_FILE} where it is not given")
    templates_key: str | None = option(None, help="which of the file's lists")


@register("zero_shot", version=PROTOCOL_VERSION, options=ZeroShotOptions)
def run(context: Context, options: ZeroShotOptions) -> Result:
    """CLIP's zero-shot classification: class names in templates, of ImageNet, any labelled folder or TFDS set.

    Raises:
        Unavailable: data, names or templates are not there.
        UserError: names do not fit the classes, or a file is not as it must be.
    """
    data = options.data
    has_own = data.startswith("tfds:") and options.names is None
    key = options.names_key or (OWN if has_own else IMAGENET)
    names_file = options.names or f"names/{NAMES_FILE}"
    templates_key = options.templates_key or (IMAGENET if key == OWN else key)
    if key == OWN and options.names is not None:
        raise UserError(f"zero_shot.names is {names_file}, but zero_shot.names_key is {OWN!r}; leave one of them out")
    labelled = read_labelled(context, "zero_shot", data, option="zero_shot.data", is_default=options.is_default("data"))
    if key == OWN:
        names = own_names(data, labelled.class_names)
    else:
        names = _names(context, data, labelled.class_names, options.names, names_file, key)
    # As clip-benchmark does: names for "caltech101_vtab" go with templates for "caltech101", and what has no templates
    # takes ImageNet's.
    otherwise = () if options.templates_key is not None else (templates_key.removesuffix("_vtab"), IMAGENET)
    from_key, templates = read_texts(
        _existing(context, "templates", options.templates, TEMPLATES_FILE), templates_key, otherwise=otherwise
    )
    texts_embedded: list[EmbeddedSet] = []

    def embed(texts: Sequence[str]) -> np.ndarray:
        texts_embedded.append(context.embed_texts("zero_shot_texts", texts))
        return texts_embedded[-1].vectors

    classes = class_embeddings(embed, names, templates)
    embedded = context.embed(labelled.images, truth=labelled.truth)
    if embedded.vectors.shape[1] != classes.shape[1]:
        raise UserError(
            f"embeddings of the pictures have {embedded.vectors.shape[1]} dimensions, those of the names "
            f"{classes.shape[1]}; embed both with one model"
        )
    labels = labelled.labels[embedded.positions]
    ranks = true_class_ranks(embedded.vectors, labels, classes)
    items = accuracy_items(ranks, labels, len(names))
    return Result(
        metrics={name: float(values.mean()) for name, values in items.items()},
        counts={
            "num_pictures": len(ranks),
            "num_unreadable": embedded.num_unreadable,
            "num_unread_files": labelled.num_unread_files,
            "num_classes": len(names),
            "num_classes_with_pictures": len(np.unique(labels)),
            "num_templates": len(templates),
            "templates_key": from_key,
            "names": dict(zip(labelled.class_names, names, strict=True)),
            **count_ties(names),
        },
        data=[embedded.provenance, *(one.provenance for one in texts_embedded)],
        settings={"names_hash": hash_of(names), "templates_hash": hash_of(templates)},
        items=items,
        chance={name: (5 if name.endswith("_5") else 1) / len(names) for name in items},
    )


def count_ties(names: Sequence[str]) -> dict[str, int]:
    """Returns `num_tied_names`, names of more than one class, and `num_tied_classes`, the classes that have them."""
    uses = [count for count in Counter(names).values() if count > 1]
    return {"num_tied_names": len(uses), "num_tied_classes": sum(uses)}


def zero_shot_metrics(
    embeddings: np.ndarray,
    pictures: Renderings,
    encoder: TextEncoder,
    names: Mapping[str, str],
    candidates: Sequence[str],
    *,
    heldout_entity: bool = False,
    templates: Sequence[str] = TEMPLATES,
) -> Result:
    """Returns the demo's `accuracy_at_1` and `accuracy_at_5`; no metric when no picture can be scored.

    Args:
        embeddings: L2-normalised float32 `[n, dim]`, in the order of `pictures`.
        pictures: the evaluation's.
        encoder: embeds the names.
        names: entity id to name.
        candidates: the entity ids that compete, unique; those without a name are left out and counted.
        heldout_entity: score the pictures of unseen entities instead of seen ones.
        templates: texts with `{}` for the name.

    Raises:
        UserError: an embedding of a text is not finite or a zero vector.
    """
    # In the order of their ids, so that equal similarities rank by id.
    named = sorted(entity_id for entity_id in candidates if names.get(entity_id))
    texts = [names[entity_id] for entity_id in named]
    scored = scored_pictures(pictures, named, heldout_entity=heldout_entity)
    counts = {
        "num_pictures": len(scored),
        "num_candidates": len(named),
        "num_without_name": len(candidates) - len(named),
        "num_shared_names": count_ties(texts)["num_tied_classes"],
    }
    if len(scored) == 0:
        return Result(metrics={}, counts=counts)
    class_of = {entity_id: position for position, entity_id in enumerate(named)}
    truth = np.array([class_of[entity_id] for entity_id in pictures.entity_ids[scored]])
    ranks = true_class_ranks(embeddings[scored], truth, class_embeddings(encoder.embed_texts, texts, templates))
    return Result(
        metrics={f"accuracy_at_{k}": accuracy_at(ranks, k) for k in (1, 5)},
        counts=counts,
        items={f"accuracy_at_{k}": (ranks <= k).astype(np.float64) for k in (1, 5)},
        chance={f"accuracy_at_{k}": min(1.0, k / len(named)) for k in (1, 5)},
    )


def read_names(path: str | os.PathLike[str]) -> dict[str, str]:
    """Returns entity id to name from JSON lines: a vocabulary (`entity_id`, `name`) or a source (`id`, `label`).

    Raises:
        UserError: the file is missing, or a line has neither pair of fields.
    """
    if not os.path.exists(path):
        raise UserError(f"{path} is missing; make it again with make demo")
    names = {}
    for number, row in read_json_lines(path, remedy="make the file again"):
        entity_id, name = row.get("entity_id", row.get("id")), row.get("name", row.get("label"))
        if not isinstance(entity_id, str) or not isinstance(name, str):
            raise UserError(f"{path}, line {number}: needs entity_id and name, or id and label; correct the line")
        names[entity_id] = name
    return names


def _names(
    context: Context, data: str, classes: Sequence[str], named: str | None, names_file: str, key: str
) -> tuple[str, ...]:
    """Returns the name of each class, from the file that the user names or the default one."""
    path = _existing(context, "names", named, NAMES_FILE)
    by_class = read_names_by_class(path)
    if by_class is not None:
        return names_by_class(data, classes, names_file, by_class)
    from_key, names = read_texts(path, key)
    if from_key != IMAGENET:
        return aligned_names(data, classes, names_file, from_key, names)
    ids_file = context.data_dir / "names" / WORDNET_FILE
    ids = read_texts(ids_file, IMAGENET)[1] if ids_file.exists() else None
    return imagenet_names(data, classes, names_file, names, ids, ids_file=ids_file)


def _existing(context: Context, option: str, named: str | None, default: str) -> Path:
    path = context.data_dir / (named or f"names/{default}")
    if path.exists():
        return path
    if named is not None:
        raise UserError(f"{path} is not there; name a JSON file with --option zero_shot.{option}=")
    raise Unavailable(
        f"{path} is not there; fetch it with python -m evaluation.fetch_names --output {path.parent}, or name a JSON "
        f"list of your own with --option zero_shot.{option}="
    )
