"""Names of classes, from JSON files that people write, and which class each belongs to.

A wrong order of names gives no error by itself, only numbers near chance. So where folders or data sets name their
classes, names that contradict them are refused.
"""

from __future__ import annotations

import difflib
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.sets.text import check_unique, nfc, read_json
from pipeline.schema import UserError

IMAGENET, OWN = "imagenet1k", "own"
_WORDNET_ID = re.compile(r"n\d{8}")
_FIRST_UNCASED = "\u0530"  # accents fold before it: Latin, Greek and Cyrillic; elsewhere marks tell words apart
_NUM_SHOWN = 5


def read_texts(path: Path, key: str, *, otherwise: Sequence[str] = ()) -> tuple[str | None, tuple[str, ...]]:
    """Returns the texts in a JSON file, a list of them or an object from names of data sets to lists, after their key.

    The key is the one that was taken, None for a list.

    Args:
        path: the file.
        key: of the data set; ignored when the file is a list.
        otherwise: keys to take when there is no `key`, the first that is there.

    Raises:
        UserError: the file is not such JSON, or has no such key.
    """
    value: Any = read_json(path, remedy="correct or replace the file")
    where, chosen = str(path), None
    if isinstance(value, dict):
        chosen = next((one for one in (key, *otherwise) if one in value), None)
        if chosen is None:
            close = difflib.get_close_matches(key, list(value), n=1)
            nearest = f", the nearest is {close[0]!r}" if close else ""
            raise UserError(f"{path} has no {key!r}{nearest}; it has {', '.join(map(repr, value))}")
        value, where = value[chosen], f"{path}, {chosen!r}"
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        raise UserError(f"{where}: a list of at least 1 text is needed, none of them empty; correct the file")
    return chosen, tuple(nfc(text.strip()) for text in value)


def read_names_by_class(path: Path) -> dict[str, str] | None:
    """Returns class to name where the JSON file is an object of texts; None: it has another layout.

    Raises:
        UserError: the file is not valid JSON, or has a class twice.
    """
    value: Any = read_json(path, remedy="correct or replace the file")
    if (
        not isinstance(value, dict)
        or not value
        or not all(isinstance(one, str) and one.strip() for one in value.values())
    ):
        return None
    check_unique([one.strip() for one in value], str(path))
    return {nfc(one.strip()): nfc(name.strip()) for one, name in value.items()}


def names_by_class(data: str, classes: Sequence[str], names_file: str, names: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the name of each class, which `names` states by class.

    Raises:
        UserError: a class has no name, or the name of another.
    """
    missing = [one for one in classes if one not in names]
    if missing:
        raise UserError(
            f"{names_file} has no name for {len(missing)} of the {len(classes)} classes of {data}, {missing[0]!r} "
            "first; add them"
        )
    found = tuple(names[one] for one in classes)
    moved = _with_the_name_of_another(classes, found)
    if moved:
        first, other = moved[0]
        raise UserError(
            f"{names_file} gives class {classes[first]!r} of {data} the name {found[first]!r}, which is that of class "
            f"{classes[other]!r}; {len(moved)} of {len(classes)} classes have the name of another. Correct the file"
        )
    return found


def own_names(data: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Returns the names that a set itself gives its classes: underscores become spaces.

    Raises:
        UserError: they are WordNet ids or numbers.
    """
    wrong = [one for one in classes if _WORDNET_ID.fullmatch(one)]
    if wrong:
        raise UserError(
            f"{data} calls a class {wrong[0]!r}, which is a WordNet id, not a name; give --option "
            f"zero_shot.names_key={IMAGENET} for ImageNet's names, or zero_shot.names=<JSON list>"
        )
    if all(one.isdecimal() for one in classes):
        raise UserError(
            f"{data} calls its classes {classes[0]!r} and so on, which are numbers, not names; give --option "
            "zero_shot.names=<JSON list>"
        )
    return tuple(name.replace("_", " ") for name in classes)


def imagenet_names(
    data: str,
    classes: Sequence[str],
    names_file: str,
    names: Sequence[str],
    wordnet_ids: Sequence[str] | None,
    *,
    ids_file: Path,
) -> tuple[str, ...]:
    """Returns the name of each class, all or some of ImageNet's, by its WordNet id.

    Args:
        data: where the classes are from, for messages.
        classes: WordNet ids, in any order.
        names_file: where the names are from, for messages.
        names: in the order of the WordNet ids.
        wordnet_ids: of `names`; None: not known, which all of ImageNet's classes do without.
        ids_file: where `wordnet_ids` are, or would be, for messages.

    Raises:
        UserError: a class is not a WordNet id, or has no name.
    """
    wrong = [one for one in classes if not _WORDNET_ID.fullmatch(one)]
    if wrong:
        raise UserError(
            f"class {wrong[0]!r} of {data} is not a WordNet id, such as n01440764, and names for {IMAGENET!r} are in "
            "their order; rename the folders, or give names of your own with --option zero_shot.names=<JSON list>"
        )
    if wordnet_ids is None:
        if len(classes) != len(names):
            raise UserError(
                f"{data} has {len(classes)} classes and {names_file} has {len(names)} names for {IMAGENET!r}; they are "
                f"found by WordNet id with {ids_file}, which is not there: fetch it with python -m "
                f"evaluation.fetch_names --output {ids_file.parent}"
            )
        wordnet_ids = sorted(classes)  # TFDS's imagenet_resized has another order than imagenet2012
    if len(wordnet_ids) != len(names):
        raise UserError(
            f"{ids_file} has {len(wordnet_ids)} WordNet ids and {names_file} has {len(names)} names for {IMAGENET!r}; "
            "fetch both again with python -m evaluation.fetch_names"
        )
    name_of = dict(zip(wordnet_ids, names, strict=True))
    unknown = [one for one in classes if one not in name_of]
    if unknown:
        raise UserError(
            f"{len(unknown)} of the {len(classes)} classes of {data} are not among ImageNet's {len(names)}, "
            f"{unknown[0]!r} first; remove them, or give names of your own with --option zero_shot.names=<JSON object "
            "from class to name>"
        )
    return tuple(name_of[one] for one in classes)


def aligned_names(
    data: str, classes: Sequence[str], names_file: str, key: str | None, names: tuple[str, ...]
) -> tuple[str, ...]:
    """Returns the name of each class, `names` themselves, which meet the classes by position.

    Names are compared without case, accents, hyphens and underscores. For classes that do not have their own name
    nothing tells whether the order is right, and the first of them are printed beside their names.

    Raises:
        UserError: there are more or fewer names than classes, or a class has the name of another.
    """
    if len(classes) != len(names):
        of_key = "" if key is None else f" for {key!r}"
        raise UserError(
            f"{data} has {len(classes)} classes and {names_file} has {len(names)} names{of_key}, and they meet by "
            "position; complete the data, or give other names (zero_shot.names, zero_shot.names_key)"
        )
    if (
        not data.startswith("tfds:")
        and all(one.isdecimal() for one in classes)
        and sorted(classes, key=int) != list(classes)
    ):
        raise UserError(
            f"the folders of {data} are numbers, and as text {classes[1]!r} comes second; pad them with zeros, names "
            "meet folders by position"
        )
    moved = _with_the_name_of_another(classes, names)
    if moved:
        first, other = moved[0]
        raise UserError(
            f"class {first} of {data} is {classes[first]!r}, but name {first} of {names_file} is {names[first]!r}, "
            f"which is the name of class {other}; {len(moved)} of {len(classes)} classes have the name of another. "
            "Bring the list into the order of the classes, which count from 0, or give a JSON object from class to name"
        )
    unsure = [(one, name) for one, name in zip(classes, names, strict=True) if _plain(one) != _plain(name)]
    if unsure:
        order = "their order" if len(unsure) == len(names) else f"the order of {len(unsure)} of them"
        side_by_side = ", ".join(f"{one} = {name}" for one, name in unsure[:_NUM_SHOWN])
        print(
            f"note: names of {names_file} meet the {len(classes)} classes of {data} by position, and nothing tells "
            f"whether {order} is right; see for yourself: "
            f"{side_by_side}{', ...' * (len(unsure) > _NUM_SHOWN)}",
            file=sys.stderr,
        )
    return names


def _with_the_name_of_another(classes: Sequence[str], names: Sequence[str]) -> list[tuple[int, int]]:
    """Returns the positions of classes whose name is not their own but another class's, each with that of the other."""
    ours = {_plain(one): position for position, one in reversed(list(enumerate(classes)))}
    pairs = ((position, ours.get(_plain(name))) for position, name in enumerate(names))
    return [
        (position, other)
        for position, other in pairs
        if other is not None and _plain(classes[position]) != _plain(names[position])
    ]


def _plain(name: str) -> str:
    """Returns `name` for comparison: without case, accents, and differences of blanks, hyphens and underscores."""
    kept: list[str] = []
    for one in unicodedata.normalize("NFD", name.casefold()):
        if not (unicodedata.combining(one) and kept and kept[-1] < _FIRST_UNCASED):
            kept.append(one)
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", "".join(kept))).strip()
