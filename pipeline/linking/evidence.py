"""What speaks for each candidate of a mention; `pipeline.schema.EVIDENCE` has the names in their order.

    prior       ln of the share of the alias's uses that mean the candidate
    match       ln of how well the spelling matches the alias, 0 for an equal one
    label       share of the words of the candidate's label that the mention has, in [0, 1]; 1 if it has their initials
    popularity  ln(1 + popularity of the candidate); 0 for nouns
    name        ln of how often the alias, where it occurs, is a name at all
    agrees      share of the mention's telling words that are written as the base writes the alias, in [0, 1]
    differs     share of them that are written otherwise, in [0, 1]
    outer       1 if the mention is a part of a longer capitalised name that the base lacks, or of a word with hyphens
    tagger      the tagger's score of the mention; 0 if the dictionary alone found it
    length      ln of the number of words in the mention
    noun        1 if the alias is a common noun for the candidate
    text        share of the text's informative words, weighted by rarity, that the candidate's description explains;
                those of the mention do not count
    seen        share of the text's words that occur in other texts with the candidate, under its other names
    kind        how much likelier the text's words are with entities of the candidate's types, in nats; 0 if less likely
    meaning     by how many standard deviations the text is nearer to the candidate's description than to those of the
                base's entities, by a sentence encoder; 0 without one
    coherence   expected tie to the entities of the other mentions, in [0, 1]
    graph       cosine of the graph vectors of the candidate and of the entities of the other mentions, in [-1, 1]
    picture     by how many standard deviations the picture is more like the candidate than like the base's entities
    compared    1 if the picture was compared

Meaning is added by `pipeline.linking.meaning`. Coherence and graph depend on the other mentions and are added by
`pipeline.stages.disambiguate`; the last two are added by `pipeline.stages.score_images`, where the text leaves doubt.
Proper names and common nouns are weighed by one model, so evidence that only names can have is 0 for nouns.
"""

from __future__ import annotations

import bisect
import collections
import functools
import math
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pipeline.byte_cache import Remembered
from pipeline.kb import bag_of_words
from pipeline.kb.case import case_style, has_capitalised_word, sentence_starts
from pipeline.kb.names import spellings
from pipeline.kb.normalise import WORD, fold_key, normalise_alias, strip_legal_suffix
from pipeline.kb.store import KnowledgeBase
from pipeline.kb.usage import FILE_WORD, name_key
from pipeline.schema import EVIDENCE, Candidate, LinkedMention, Mention

PRIOR_MIN = 1e-4  # keeps the logarithms finite
_SMALL_MIN = 1e-3
_CACHED_BYTES = 16 << 20  # of the keys of words, and as much of those of names, and of the words of labels
_ENTRY_BYTES = 200  # of an entry of these beside its strings: objects, and its place in the table
# Names of texts: few are used often. Some 2 kB each, at most 500 kB for one as long as `TEXT_CHARS_MAX`.
_CACHED_NAMES = 4096
_ADDED_LATER = (0.0, 0.0, 0.0, 0.0, 0.0)  # meaning, coherence, graph, picture and compared
PLACE = {name: position for position, name in enumerate(EVIDENCE)}
_JOINED_BEFORE, _JOINED_AFTER = re.compile(r"[^\W\d_][-\u2010\u2011]"), re.compile(r"[-\u2010\u2011][^\W\d_]")
_BRACKETS = re.compile(r"\s*\([^(]*\)$")  # "Georgia (country)"
_SHORT_WORD = 3  # of a name: "of", "de" and "the" are written small in names too


class TextWord(NamedTuple):
    """A word of a text: its span and its key."""

    start: int
    end: int
    key: int


class TextEvidence:
    """The evidence of one text.

    Args:
        text: the text.
        kb: the knowledge base.
        used: names of evidence; of "text", "seen" and "kind", which take time, those that it lacks stay 0.
    """

    def __init__(self, text: str, kb: KnowledgeBase, used: frozenset[str]):
        self._text = text
        self._kb = kb
        self._used = used
        self._style = case_style(text)
        self._has_capitalised = self._style in ("sentence", "title") and has_capitalised_word(text)
        self._opening = sentence_starts(text)
        is_read = not used.isdisjoint(("text", "seen", "kind"))
        self._words = text_words(text) if is_read else []  # pragma: no mutate: not to read in vain
        self._starts = [word.start for word in self._words]
        self._num_times = collections.Counter(word.key for word in self._words)
        self._weights = word_weights(self._num_times, kb) if "text" in used else {}

    def of_mention(self, linked: LinkedMention) -> list[list[float]]:
        """Returns the evidence for each candidate of `linked`."""
        mention = linked.mention
        length = math.log(max(len(WORD.findall(mention.surface)), 1))
        tagger = mention.score if mention.finder == "tagger" else 0.0
        outer = float(mention.outer is not None or self._is_joined(mention))
        by_case: dict[str, tuple[float, float]] = {}
        within = self._words_within(mention)
        context = {key: weight for key, weight in self._weights.items() if key not in within}
        total = math.fsum(context.values())
        beside = self._beside(mention, within)
        name = _NAME_KEYS[mention.surface] if beside else 0  # pragma: no mutate: to save time
        spoken = _spoken_words(mention.surface, self._kb)
        found = []
        for candidate in linked.candidates:
            case = candidate.case
            if case not in by_case:
                by_case[case] = self._case(mention, case)
            agrees, differs = by_case[case]
            is_noun = case == "common"
            entity = self._kb.entity(candidate.entity_id)
            found.append(
                [
                    math.log(max(candidate.prior, PRIOR_MIN)),
                    math.log(max(candidate.match, _SMALL_MIN)),
                    label_share(entity.label, spoken),
                    0.0 if is_noun else math.log1p(entity.popularity),
                    math.log(max(candidate.link_probability, _SMALL_MIN)),
                    agrees,
                    differs,
                    outer,
                    0.0 if is_noun else tagger,
                    length,
                    float(is_noun),
                    self._explained(candidate, context) / total if total else 0.0,
                    *self._usage(candidate, beside, name),
                    *_ADDED_LATER,
                ]
            )
        return found

    def _words_within(self, mention: Mention) -> collections.Counter[int]:
        """Returns how often each word occurs in the mention."""
        first = bisect.bisect_right(self._starts, mention.start)
        first -= bool(first) and self._words[first - 1].end > mention.start
        last = bisect.bisect_left(self._starts, mention.end)
        return collections.Counter(word.key for word in self._words[first:last])

    def _beside(self, mention: Mention, within: Mapping[int, int]) -> list[int]:
        """Returns the distinct words outside the mention, without those of its name; as `words_beside` does."""
        name = {bag_of_words.hash_word(word) for word in bag_of_words.split_words(mention.surface)}
        return [key for key, times in self._num_times.items() if times > within.get(key, 0) and key not in name]

    def _is_joined(self, mention: Mention) -> bool:
        """Returns whether a hyphen ties the mention to another word; in a text without blanks hyphens part words."""
        if " " not in self._text:
            return False
        before, after = self._text[: mention.start][-2:], self._text[mention.end : mention.end + 2]
        return bool(_JOINED_BEFORE.fullmatch(before) or _JOINED_AFTER.fullmatch(after))

    def _case(self, mention: Mention, case: str) -> tuple[float, float]:
        """Returns (agrees, differs) of the mention's writing with an alias of `case`.

        Only words whose case the text leaves open tell something: none in a text that is written small or in
        capitals throughout, and not the first one of a sentence. Where codes such as "HD" and "JPG" have the only
        capitals, the text is written small but for them: its small words tell nothing.
        """
        if self._style not in ("sentence", "title"):
            return 0.0, 0.0
        found = [match for match in WORD.finditer(self._text, mention.start, mention.end) if match[0][0].isalpha()]
        words = [match[0] for match in found]
        if found and found[0].start() in self._opening and case != "acronym" and not _is_small(words[0]):
            words = words[1:]
        if not self._has_capitalised:
            words = [word for word in words if not word.islower()]
        if case != "common":
            words = [word for word in words if len(word) > _SHORT_WORD or not word.islower() or len(words) == 1]
        if not words:
            return 0.0, 0.0
        if case == "acronym":
            right = [word.isupper() for word in words]
            wrong = [word.islower() for word in words]
        elif case == "proper":
            # In a title all words have capitals: one without is no name.
            right = [word[0].isupper() and self._style == "sentence" for word in words]
            wrong = [word.islower() for word in words]
        else:
            right = [word.islower() and self._style == "sentence" for word in words]
            wrong = [word[0].isupper() and self._style == "sentence" for word in words]
        return sum(right) / len(words), sum(wrong) / len(words)

    def _explained(self, candidate: Candidate, context: Mapping[int, float]) -> float:
        document = self._kb.document(candidate.entity_id)
        return math.fsum(weight for key, weight in context.items() if key in document)

    def _usage(self, candidate: Candidate, beside: list[int], name: int) -> tuple[float, float]:
        if not beside:
            return 0.0, 0.0
        usage, entity_id = self._kb.usage, candidate.entity_id
        seen = usage.seen_share(entity_id, beside, name) if "seen" in self._used else 0.0
        kind = 0.0
        if "kind" in self._used:
            kind = usage.kind_evidence(entity_id, self._kb.entity(entity_id).types, beside)
        return seen, kind


def text_words(text: str) -> list[TextWord]:
    """Returns the words of `text` that are neither function words nor file numbers."""
    return [
        TextWord(match.start(), match.end(), key)
        for match in WORD.finditer(text)
        if (key := _KEYS[match[0]]) is not None
    ]


def word_weights(keys: Iterable[int], kb: KnowledgeBase) -> dict[int, float]:
    """Returns key -> weight in nats of the informative words among `keys`, those that some description has.

    The weight is the inverse document frequency in the descriptions, or in the texts that the base has counted where
    that is less: "icon" is rare in descriptions and common in texts about pictures.
    """
    weights = {key: min(kb.rarity(key), kb.usage.rarity(key)) for key in keys}
    return {key: weight for key, weight in weights.items() if weight > 0.0}


def _key_of(word: str) -> int | None:
    """Returns the key of a word; None for function words and file numbers."""
    stems = bag_of_words.split_words(word)
    return bag_of_words.hash_word(stems[0]) if stems and not FILE_WORD.fullmatch(stems[0]) else None


_KEYS = Remembered(_key_of, _CACHED_BYTES, lambda word, _: _ENTRY_BYTES + sys.getsizeof(word))
_NAME_KEYS = Remembered(name_key, _CACHED_BYTES, lambda name, _: _ENTRY_BYTES + sys.getsizeof(name))


@functools.lru_cache(_CACHED_NAMES)
def _spoken_words(surface: str, kb: KnowledgeBase) -> frozenset[str]:
    """Returns the words of all spellings of `surface`, folded: a hashtag's parts, a name without its possessive.

    Folded, "U.S.A." is one word: its letters are among them too.
    """
    letters = (word for word in WORD.findall(surface.casefold()) if len(word) == 1)
    return frozenset((*letters, *(word for one in spellings(surface, kb) for word in WORD.findall(fold_key(one.key)))))


def label_share(label: str, spoken: frozenset[str]) -> float:
    """Returns the share of the words of `label`, folded, that are among `spoken`; legal forms do not count.

    Letters that stand alone are initials: if there are several, "M&S" has all words of "Marks & Spencer".
    """
    words = _LABEL_WORDS[label]
    if not words:
        return 0.0
    letters = {word for word in spoken if len(word) == 1}
    if len(words) > 1 and len(letters) > 1 and all(word in spoken or word[0] in letters for word in words):
        return 1.0
    return sum(word in spoken for word in words) / len(words)


def _label_words(label: str) -> tuple[str, ...]:
    """Returns the words of a label, folded, without what a title adds in brackets."""
    return tuple(WORD.findall(fold_key(strip_legal_suffix(normalise_alias(_BRACKETS.sub("", label) or label)))))


_LABEL_WORDS = Remembered(
    _label_words, _CACHED_BYTES, lambda label, words: _ENTRY_BYTES + sum(map(sys.getsizeof, (label, words, *words)))
)


def _is_small(word: str) -> bool:
    return unicodedata.category(word[0]) == "Ll"
