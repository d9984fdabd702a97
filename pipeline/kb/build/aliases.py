"""Postings of names, sorted -> the alias table, part by part, in any process."""

from __future__ import annotations

import itertools
import operator
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from pipeline.kb.build.alias_table import Meaning, priors
from pipeline.kb.build.link_probability import LinkProbability, WordCase
from pipeline.kb.build.marshal_files import read_values, write_value
from pipeline.kb.build.runs import Keys, Run, merge
from pipeline.kb.records import encode_alias

_CHUNK = 1000  # rows that are read and written at once
UNLINKED = -1  # in place of an ordinal: the string is there, and no link
OUTSIDE = -2  # a link to an entity that the base lacks


# Key, ordinal or one of these, weight by popularity (0 for counts of texts), place of the case in CASES, uses in texts:
# one entity's name, or what texts do with a name. A plain tuple, since there are hundreds of millions.
Posting = tuple[bytes, int, float, int, int]


def write_alias_part(path: str, runs: Sequence[Run], keys: Keys, languages: Sequence[str], word_case: str) -> str:
    """Writes the rows of the aliases with these keys; returns `path`.

    Args:
        path: of the file, for `read_rows`.
        runs: of postings.
        keys: of the aliases to take.
        languages: see `LinkProbability`.
        word_case: a file that `WordCase.write` wrote.
    """
    rows = alias_rows(merge(runs, keys), LinkProbability(languages, WordCase.read(word_case)))
    with open(path, "wb") as file:
        while chunk := list(itertools.islice(rows, _CHUNK)):
            write_value(chunk, file)
    return path


def read_rows(path: str) -> Iterator[tuple[bytes, bytes]]:
    """Returns the rows of a file of `write_alias_part`, and removes it after the last."""
    for rows in read_values(path):
        yield from rows
    os.remove(path)


def alias_rows(postings: Iterable[Posting], link_probability: LinkProbability) -> Iterator[tuple[bytes, bytes]]:
    """Returns key and value of each alias that an entity of the base has.

    Args:
        postings: sorted.
        link_probability: of a key with its counts.
    """
    for key, group in itertools.groupby(postings, key=operator.itemgetter(0)):
        found = list(group)
        if len(found) == 1 and found[0][1] >= 0:  # most names
            _, ordinal, _, case, linked = found[0]
            unlinked = 0
            entries = [(ordinal, 1.0, case)]
        else:
            linked = sum(num_uses for _, ordinal, _, _, num_uses in found if ordinal != UNLINKED)
            unlinked = sum(num_uses for _, ordinal, _, _, num_uses in found if ordinal == UNLINKED)
            outside = sum(num_uses for _, ordinal, _, _, num_uses in found if ordinal == OUTSIDE)
            entries = priors(_meanings(found), num_outside=outside)
        if entries:
            yield key, encode_alias(link_probability(key.decode(), linked, unlinked), entries)


def _meanings(postings: list[Posting]) -> Iterator[Meaning]:
    """Returns one meaning per entity. Its case is that of its own name, else the commonest of the linked spellings."""
    for ordinal, group in itertools.groupby(postings, key=operator.itemgetter(1)):
        if ordinal < 0:
            continue
        weight, own_case, num_anchors = 0.0, None, 0
        cases: Counter[int] = Counter()
        for _, _, own_weight, case, num_uses in group:
            num_anchors += num_uses
            cases[case] += num_uses
            if own_weight > weight:
                weight, own_case = own_weight, case
        commonest = min(cases, key=lambda case: (-cases[case], case))
        yield Meaning(ordinal, weight, commonest if own_case is None else own_case, num_anchors)
