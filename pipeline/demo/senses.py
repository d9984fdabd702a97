"""WordNet's senses: which one an emoji shows, and the words of the senses around it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pipeline.demo.packages import Packages, Synset, normalise
from pipeline.kb.bag_of_words import split_words
from pipeline.kb.function_words import function_words_of_all

# WordNet's lexicographer files 3 to 28, as its manual names them.
LEXICOGRAPHER_FILES = (
    "thing act animal artifact attribute body cognition communication event feeling food group location motive object "
    "person phenomenon plant possession process quantity relation shape state substance time"
).split()
_RELATED_MAX = 40  # names around one sense, and words of glosses
_RELATED_GLOSSES = 8
# The weights of the evidence for a sense are ours, set by reading the glosses that they give.
_KIND_UNFIT = -0.3  # a kind of thing that no emoji of the group shows
_KIND_WEIGHT = 1.5
_RANK_WEIGHT = 0.15  # per sense that is listed before
_USE_WEIGHT = 0.45  # per nat by which another sense of the name is more usual
_RARE_MAX = 2.2  # of both: how much a sense loses for being rare
_OVERLAP_WEIGHT = 0.12  # per nat of rarity of a word that tags and sense share
_OVERLAP_MAX = 8.0
_SIBLING_WEIGHT = 0.4  # per nat of the kind that most emoji of the subgroup are of
_INSTANCE_PENALTY = 0.7  # of a named individual: the town Hot Springs
_MODIFIER_PENALTY = 1.0
_FIT_MIN = 0.2  # of a sense that a shortcode names; below it the emoji has no sense
_LABEL_BONUS = 2.5  # of a sense that the label names


def lexicographer_file_of(synset: Synset) -> str:
    """Returns WordNet's own word for the kind of thing: "animal", "food", ..."""
    return LEXICOGRAPHER_FILES[synset.lexicographer_file - 3]


class SenseChooser:
    """Chooses the WordNet sense that an emoji shows.

    The evidence for a sense: how usual it is, whether it is of a kind that the emoji's group shows, the words that it
    and the senses above it share with the emoji's tags, and whether it is under the same sense of WordNet as the other
    emoji of the subgroup.
    """

    def __init__(self, packages: Packages, subgroups: Mapping[str, Sequence[Sequence[str]]]):
        """Takes the packages, and the names of every emoji of each subgroup."""
        self._packages = packages
        self._num_below: Counter[str] = Counter()
        self._num_glosses: Counter[str] = Counter()
        self._above: dict[str, frozenset[str]] = {}
        for offset in packages.synsets:
            self._num_below.update(self._ancestors(offset))
            self._num_glosses.update(set(split_words(packages.synsets[offset].gloss)))
        self._shares: dict[str, dict[str, float]] = {}
        for subgroup, records in subgroups.items():
            counts: Counter[str] = Counter()
            for names in records:
                senses = [s for name in names for s, _ in packages.senses.get(normalise(name), [])[:2]]
                counts.update({a for offset in senses for a in self._ancestors(offset)})
            self._shares[subgroup] = {a: n / len(records) for a, n in counts.items() if n > 1}

    def choose(self, names: Sequence[str], kinds: Sequence[str], tags: Iterable[str], subgroup: str) -> Synset | None:
        """Returns the sense that the emoji shows, None where WordNet has none.

        Args:
            names: of the emoji, its label first.
            kinds: what a thing of the emoji's group may be, likeliest first.
            tags: words that describe the emoji.
            subgroup: of the emoji.
        """
        words = {stem for tag in tags for stem in split_words(tag)}
        best: tuple[float, Synset] | None = None
        for name, is_label in [*((form, True) for form in _forms(names[0])), *((name, False) for name in names[1:])]:
            senses = self._packages.senses.get(normalise(name), [])
            most_usual = max((count for _, count in senses), default=0)
            for rank, (offset, count) in enumerate(senses):
                synset = self._packages.synsets[offset]
                # The constellation called dragon, the palms called phoenix.
                if synset.is_instance and rank > 0 or any(lemma.startswith("genus ") for lemma in synset.lemmas):
                    continue
                fit = self._fit(synset, kinds, words - set(split_words(name)), subgroup)
                rare = _RANK_WEIGHT * rank + _USE_WEIGHT * math.log((1 + most_usual) / (1 + count))
                fit -= min(rare, _RARE_MAX)
                if is_label and synset.is_instance:
                    fit -= _INSTANCE_PENALTY
                if not is_label and _is_modifier(name, names[0]):
                    fit -= _MODIFIER_PENALTY
                if not is_label and fit < _FIT_MIN:
                    continue
                fit += _LABEL_BONUS if is_label else 0.0
                if best is None or fit > best[0]:
                    best = fit, synset
        return best[1] if best else None

    def _fit(self, synset: Synset, kinds: Sequence[str], words: set[str], subgroup: str) -> float:
        kind = lexicographer_file_of(synset)
        fit = _KIND_WEIGHT * (len(kinds) - kinds.index(kind)) / len(kinds) if kind in kinds else _KIND_UNFIT
        parents = [lemma for h in synset.hypernyms for lemma in self._packages.synsets[h].lemmas]
        said = {word for text in (synset.gloss, *synset.lemmas, *parents) for word in split_words(text)}
        overlap = math.fsum(self._rarity(word) for word in sorted(said & words))
        shares = self._shares.get(subgroup, {})
        siblings = max((shares.get(a, 0.0) * self._specificity(a) for a in self._ancestors(synset.offset)), default=0.0)
        return fit + _OVERLAP_WEIGHT * min(overlap, _OVERLAP_MAX) + _SIBLING_WEIGHT * siblings

    def _rarity(self, word: str) -> float:
        return math.log(len(self._packages.synsets) / (1 + self._num_glosses[word])) / 2

    def _specificity(self, offset: str) -> float:
        return math.log(len(self._packages.synsets) / self._num_below[offset])

    def _ancestors(self, offset: str) -> frozenset[str]:
        """Returns the senses above `offset`, itself included."""
        if offset not in self._above:
            above = {offset}
            for parent in self._packages.synsets[offset].hypernyms:
                above |= self._ancestors(parent)
            self._above[offset] = frozenset(above)
        return self._above[offset]


def related_words(packages: Packages, synset: Synset, *, with_gloss: bool) -> list[str]:
    """Returns words of the senses around `synset`: what it is a kind of, its own kinds and parts, and their glosses.

    Args:
        packages: the packages.
        synset: the sense.
        with_gloss: whether the words of its own gloss come too.
    """
    around = [packages.synsets[i] for i in (*synset.hypernyms, *synset.parts, *synset.hyponyms)]
    names = [lemma for one in (synset, *around) for lemma in one.lemmas]
    glosses = [*([synset.gloss] if with_gloss else []), *(one.gloss for one in around[:_RELATED_GLOSSES])]
    nouns = [
        word.lower()
        for gloss in glosses
        for word in re.findall(r"[^\W\d_]{4,}", gloss)
        if word.casefold() not in function_words_of_all() and packages.senses.get(normalise(word))
    ]
    return list(dict.fromkeys([*names[:_RELATED_MAX], *nouns]))[: 2 * _RELATED_MAX]


def _forms(label: str) -> list[str]:
    """Returns the label, and its singular where it may be a plural: "peanuts" is a word for little money."""
    return [label, label[:-1]] if len(label) > 3 and label.endswith("s") and not label.endswith("ss") else [label]


def _is_modifier(name: str, label: str) -> bool:
    """Returns whether a word of the label says only which thing it is: "party" for "party popper", a popper."""
    head = re.split(" (?:with|showing|on|in) ", label)[0].removesuffix(" face").split()
    return name in head[:-1] and "of" not in head
