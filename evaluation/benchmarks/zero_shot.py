"""Zero-shot classification: is the name of what a picture shows the closest of all names?

Protocol (version 1), after CLIP. A class's text is its name, in each template. Every template's embedding is
normalised, the mean is taken and normalised again. A picture's classes rank by similarity, equal ones by position: of
two classes with one name, the first wins. `num_tied_names` says how many names belong to several classes (ImageNet has
two, "missile" and "sunglasses"), `num_tied_classes` to how many. The mean over classes is of those with pictures.

Names and templates come from JSON files, by default those of the package clip-benchmark (see `evaluation.fetch_names`),
where "imagenet1k" has 1,000 names and 80 templates. Its names are in the order of the WordNet ids, which the classes
must be, in any order. Other names meet the classes by position, class folders sorted; where more classes find their own
name at another position than at theirs, that is refused. A TFDS set has names of its own, and so has a folder with the
option names_key=own: underscores become spaces; WordNet ids and numbers are refused. The counts list each class with
its name.

The demo (version 1): pictures of held-out renderings. For seen entities the vocabulary competes, for unseen ones all
unseen entities of the evaluation; the template is the bare name. Equal similarities rank by entity id.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.benchmarks.entities import scored_pictures
from evaluation.fetch_names import NAMES_FILE, TEMPLATES_FILE
from evaluation.metrics.classes import (
    TEMPLATES,
    accuracies,
    accuracy_at,
    accuracy_items,
    class_embeddings,
    true_class_ranks,
)
from evaluation.models.embed import TextEncoder
from evaluation.options import Options, option
from evaluation.protocol import Context, EmbeddedSet, Result, Unavailable, hash_of, register
from evaluation.sets.labelled import read_labelled
from evaluation.sets.renderings import Renderings
from pipeline.schema import UserError

PROTOCOL_VERSION = 1
IMAGENET, OWN = "imagenet1k", "own"
_WORDNET_ID = re.compile(r"n\d{8}")


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
        names = _own_names(data, labelled.class_names)
    else:
        names_key, texts = read_texts(_existing(context, "names", options.names, NAMES_FILE), key)
        names = aligned_names(data, labelled.class_names, names_file, names_key, texts)
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
    return Result(
        metrics=accuracies(ranks, labels, len(names)),
        counts={
            "num_pictures": len(ranks),
            "num_unreadable": embedded.num_unreadable,
            "num_classes": len(names),
            "num_classes_with_pictures": len(np.unique(labels)),
            "num_templates": len(templates),
            "templates_key": from_key,
            "names": dict(zip(labelled.class_names, names, strict=True)),
            **count_ties(names),
        },
        data=[embedded.provenance, *(one.provenance for one in texts_embedded)],
        settings={"names_hash": hash_of(names), "templates_hash": hash_of(templates)},
        items=accuracy_items(ranks, labels, len(names)),
    )


def read_texts(path: Path, key: str, *, otherwise: Sequence[str] = ()) -> tuple[str | None, tuple[str, ...]]:
    """Returns the texts in a JSON file, a list of them or an object from names of data sets to lists, after their key.

    The key is the one that was taken, None for a list.

    Args:
        path: the file.
        key: of the data set; not looked at when the file is a list.
        otherwise: keys to take when there is no `key`, the first that is there.

    Raises:
        UserError: the file is no such JSON, or has no such key.
    """
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no JSON ({error}); get it again") from error
    where, chosen = str(path), None
    if isinstance(value, dict):
        chosen = next((one for one in (key, *otherwise) if one in value), None)
        if chosen is None:
            close = difflib.get_close_matches(key, list(value), n=1)
            nearest = f", the nearest is {close[0]!r}" if close else ""
            raise UserError(f"{path} has no {key!r}{nearest}; it has {', '.join(map(repr, value))}")
        value, where = value[chosen], f"{path}, {chosen!r}"
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        raise UserError(f"{where}: a list of at least 1 text is needed, none of them empty; mend the file")
    return chosen, tuple(value)


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
) -> tuple[dict[str, float], dict[str, int]]:
    """Returns the demo's `accuracy_at_1` and `accuracy_at_5`, and the counts behind them.

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
        return {}, counts
    class_of = {entity_id: position for position, entity_id in enumerate(named)}
    truth = np.array([class_of[entity_id] for entity_id in pictures.entity_ids[scored]])
    ranks = true_class_ranks(embeddings[scored], truth, class_embeddings(encoder.embed_texts, texts, templates))
    return {"accuracy_at_1": accuracy_at(ranks, 1), "accuracy_at_5": accuracy_at(ranks, 5)}, counts


def read_names(path: str | os.PathLike[str]) -> dict[str, str]:
    """Returns entity id to name from JSON lines: a vocabulary (`entity_id`, `name`) or a source (`id`, `label`).

    Raises:
        UserError: the file is missing, or a line has neither pair of fields.
    """
    names = {}
    for number, row in _json_lines(path):
        entity_id, name = row.get("entity_id", row.get("id")), row.get("name", row.get("label"))
        if not isinstance(entity_id, str) or not isinstance(name, str):
            raise UserError(f"{path}, line {number}: needs entity_id and name, or id and label; mend the line")
        names[entity_id] = name
    return names


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


def _own_names(data: str, classes: Sequence[str]) -> tuple[str, ...]:
    wrong = [one for one in classes if _WORDNET_ID.fullmatch(one)]
    if wrong:
        raise UserError(
            f"{data} calls a class {wrong[0]!r}, a WordNet id and no name; give --option zero_shot.names_key={IMAGENET}"
            " for ImageNet's names, or zero_shot.names=<JSON list>"
        )
    if all(one.isdecimal() for one in classes):
        raise UserError(
            f"{data} calls its classes {classes[0]!r} and so on, numbers and no names; give --option "
            "zero_shot.names=<JSON list>"
        )
    return tuple(name.replace("_", " ") for name in classes)


def aligned_names(
    data: str, classes: Sequence[str], names_file: str, key: str | None, names: tuple[str, ...]
) -> tuple[str, ...]:
    """Returns the name of each class; a wrong order would give no error, only numbers near chance."""
    if len(classes) != len(names):
        of_key = "" if key is None else f" for {key!r}"
        raise UserError(
            f"{data} has {len(classes)} classes and {names_file} has {len(names)} names{of_key}, and they meet by "
            "position; complete the data, or give other names (zero_shot.names, zero_shot.names_key)"
        )
    if key == IMAGENET:
        wrong = [one for one in classes if not _WORDNET_ID.fullmatch(one)]
        if wrong:
            raise UserError(
                f"class {wrong[0]!r} of {data} is no WordNet id, such as n01440764, and names for {key!r} are in "
                "their order; rename the folders, or give names of your own with --option zero_shot.names=<JSON list>"
            )
        name_of = dict(zip(sorted(classes), names, strict=True))
        return tuple(name_of[one] for one in classes)  # TFDS's imagenet_resized has another order than imagenet2012
    if (
        not data.startswith("tfds:")
        and all(one.isdecimal() for one in classes)
        and sorted(classes, key=int) != list(classes)
    ):
        raise UserError(
            f"the folders of {data} are numbers, and as text {classes[1]!r} comes second; pad them with zeros, names "
            "meet folders by position"
        )
    ours, theirs = [_plain(one) for one in classes], [_plain(name) for name in names]
    apart = [position for position, one in enumerate(ours) if one != theirs[position]]
    known = set(theirs)
    moved = [position for position in apart if ours[position] in known]
    if len(moved) > len(classes) - len(apart):
        first = moved[0]
        raise UserError(
            f"{names_file} has its names in another order than {data}: class {first} is {classes[first]!r} there and "
            f"{names[first]!r} here, and {len(moved)} classes have their name at another position; take another list "
            "(zero_shot.names_key), or bring it into the order of the classes"
        )
    return names


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def _json_lines(path: str | os.PathLike[str]) -> list[tuple[int, dict]]:
    if not os.path.exists(path):
        raise UserError(f"{path} is missing; make it again with make demo")
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number} is no JSON ({error}); make the file again") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number} is no JSON object; make the file again")
            rows.append((number, row))
    return rows
