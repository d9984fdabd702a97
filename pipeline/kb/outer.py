"""Longer names around a name: "Banff National Park" around "Banff", where the base knows the shorter one alone."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from pipeline.kb.case import case_style, sentence_starts
from pipeline.kb.normalise import KATAKANA, WORD

Span = tuple[int, int]
# Words that names have within them in small letters. What follows one of the first kind is often named by itself, as in
# "the president of Kenya"; prepositions such as "in" and "at" stand between two names.
_OF = frozenset(("of", "de", "del", "dell", "della", "des", "di", "da", "do", "dos", "das", "du"))
_PARTICLES = _OF | frozenset("der den la le les los las van von zu zur ten ter al el ibn bin y".split())
_PARTICLES_MAX = 2  # "de la", "van der"
_ARTICLES = ("the", "a", "an", "la", "le", "les", "el")
_BETWEEN = re.compile(r" |-|\u2010|'|\u2019|&|\. ?")
_YEAR = re.compile(r"(?:1[5-9]|20)\d\d")
# A figure that counts or measures: before a hyphen with a small word ("3-wick"), in a decimal, a time or a fraction
# ("9,99", "12:30", "1/2"), before the sign of a unit ("50 %", "9 \u20ac"), with a unit attached ("50mm", "12pcs"), or
# times another ("4x4", "4 \xd7 4"). One small letter is a unit only if it is the sign of one: "320i" is a model. The
# endings of ordinals and plurals are no units: "20th", "49ers", "5er".
_AMOUNT = re.compile(
    r"\d+(?:[-\u2010-\u2013]\d+)*"
    r"(?:[-\u2010-\u2013][^\W\d_A-Z]|[.,:]\d| ?[x\xd7] ?\d+\w*\b"
    r"| ?[%\u2030\xb0\u2032\u2033\xd7$\xa2-\xa5\u20a0-\u20cf](?! ?\d)"
    r"|(?!(?:st|nd|rd|th|ers?)\b)(?:[ghlmvwx]|[a-z\xb5]{2,})\b)"
    r"|\d{1,2}/\d{1,2}\b"  # "320/325" are two models
)
# The article of a German noun, which has a capital without being a name: "die K\u00fcste von Norwegen".
_GERMAN_ARTICLES = frozenset(
    "der die das des dem den ein eine einer eines einem einen im am zum zur vom beim ins ans".split()
)


class _Word(NamedTuple):
    start: int
    end: int
    text: str
    before: str  # what stands between it and the word before
    opens: bool  # whether it is the first of a sentence

    @property
    def is_capital(self) -> bool:
        return self.text[0].isupper()


class LongerNames:
    """The names that a text writes with capitals, however long.

    Capitals say nothing in texts without small letters, without capitals, or with a capital for most words: there is
    no such name then.

    Args:
        text: the text.
        own_words: function words of the text's language, which end no name.
        is_name: whether the base has a surface as a name.
        tagged: the spans that a tagger takes for names, in any text.
    """

    def __init__(
        self, text: str, own_words: Collection[str], is_name: Callable[[str], bool], tagged: Sequence[Span] = ()
    ) -> None:
        self._text = text
        self._own = own_words
        self._is_name = is_name
        self._says_capitals = case_style(text) == "sentence"
        self._runs = self._find_runs() if self._says_capitals else []
        katakana = (match.span() for match in KATAKANA.finditer(text))
        self._katakana_words = {place: word for word in katakana for place in range(*word)}
        self._tagged = tagged

    def around(self, start: int, end: int) -> Span | None:
        """Returns the longer name around the name `[start, end)`; None if the text has none.

        The first word of a sentence has its capital for being first: it counts if the name itself begins with it. A
        name that is all that follows an "of" is no part of a longer one. A name within a longer word of katakana is a
        part of it in every text.
        """
        tagged = (
            self._trimmed(one, (start, end))
            for one in self._tagged
            if one[0] <= start and end <= one[1]  # pragma: no mutate: to save time
        )
        around = [*filter(None, tagged), *self._katakana(start, end), *self._written(start, end)]
        longer = [
            (first, last)
            for first, last in around
            if first <= start
            and end <= last
            and last - first > end - start
            and not (
                end == last
                and self._follows_of(first, start)  # pragma: no mutate: it looks at the words just before `start`
            )
        ]
        return max(longer, key=lambda span: span[1] - span[0], default=None)

    def _follows_of(self, first: int, start: int) -> bool:
        """Returns whether what begins at `start` follows an "of", with an article or not, in the name from `first`.

        The German "von" is one behind a noun with an article; "Ludwig von Mises" is one name.
        """
        words = self._text[first:start].casefold().split()
        while words and words[-1] in _ARTICLES:
            words.pop()
        if words and words[-1] == "von":
            return self._is_german_noun(self._text[:start].rpartition("von")[0])
        return bool(words) and words[-1] in _OF

    def _is_german_noun(self, text: str) -> bool:
        """Returns whether `text` ends with an article and a noun, with or without small words between them."""
        words = WORD.findall(text)[:-1]
        while words and words[-1].islower() and words[-1] not in _GERMAN_ARTICLES:
            words.pop()
        return bool(words) and words[-1].casefold() in _GERMAN_ARTICLES

    def _written(self, start: int, end: int) -> Iterator[Span]:
        """Returns the sequence of capitalised words around the name, if it has other words."""
        run = next((one for one in self._runs if one[0].start <= start < one[-1].end), None)
        if run is None or end > run[-1].end + 1:  # the dot of an abbreviation may follow
            return
        if run[0].opens and start >= run[0].end:  # pragma: no mutate: no name starts where a word ends
            run = run[1:]
            while run[0].text[0].islower():  # a particle after the first word
                run = run[1:]
        yield run[0].start, max(run[-1].end, end)

    def _katakana(self, start: int, end: int) -> Iterator[Span]:
        """Returns the name with the rest of the katakana words that it begins and ends in."""
        first, last = self._katakana_words.get(start), self._katakana_words.get(end - 1)
        yield first[0] if first else start, last[1] if last else end

    def _trimmed(self, tagged: Span, name: Span) -> Span | None:
        """Returns the span of a tagger without articles before the name in it and function words or years behind it.

        An amount behind the name is no part of it either, nor is a figure such as "\u2461", nor, where capitals say
        something, are small words at the ends. The words of the name itself stay: "van Gogh Museum" around "van Gogh".
        A name in small letters stays only where it begins the span: "adidas Originals" around "adidas", but not "Volvo
        truck" around "truck". None if it is no name that a text would write as one: with "_" or a dash between its
        words.
        """
        start, end = name
        if self._text[start:end].islower():
            end = start
        words = list(WORD.finditer(self._text, *tagged))
        amounts = (
            place
            for place, word in enumerate(words)
            if place and word.start() >= end and _AMOUNT.match(self._text, word.start())
        )
        del words[next(amounts, len(words)) :]
        cut_small = self._says_capitals and not all(word[0].islower() for word in words)

        def is_small(word: str) -> bool:
            return cut_small and word.islower() and not word[0].isdecimal()  # "49ers" is no small word

        def is_outside(word: str) -> bool:
            is_figure = unicodedata.category(word[0]) == "No" or _YEAR.fullmatch(word)
            return word.casefold() in self._own or bool(is_figure) or is_small(word)

        while words and words[-1].start() >= end and is_outside(words[-1][0]):
            words.pop()
        while words and words[0].end() <= start and (words[0][0].casefold() in _ARTICLES or is_small(words[0][0])):
            words.pop(0)
        between = (self._text[one.end() : two.start()] for one, two in itertools.pairwise(words))
        if not words or not all(map(_BETWEEN.fullmatch, between)):
            return None
        return words[0].start(), words[-1].end()

    def _find_runs(self) -> list[list[_Word]]:
        """Returns the sequences of capitalised words, with the particles between them, that make up one name each."""
        runs: list[list[_Word]] = []
        run: list[_Word] = []  # pragma: no mutate: without words either way
        # Particles after the run, which belong to it if a capital follows.
        within: list[_Word] = []  # pragma: no mutate: emptied when a run begins
        words = self._words()
        for place, word in enumerate(words):
            if run and self._goes_on(run, word):
                if word.is_capital or self._is_number(words, place):
                    run += [*within, word]
                    within = []
                    continue
                if self._is_within(run, within, words, place):
                    within.append(word)
                    continue
            if run:
                runs.append(run)
            run, within = [], []
            begins = word.is_capital and word.text.casefold() not in _ARTICLES
            if begins and self._text[word.start - 1 : word.start] not in ("#", "@"):
                run = [word]
        return [*runs, run] if run else runs

    def _words(self) -> list[_Word]:
        words: list[_Word] = []
        opening = sentence_starts(self._text)
        done = 0  # pragma: no mutate: nobody asks what stands before the first word
        for match in WORD.finditer(self._text):
            start, end = match.span()
            words.append(_Word(start, end, match[0], self._text[done:start], start in opening))
            done = end
        return words

    def _goes_on(self, run: Sequence[_Word], word: _Word) -> bool:
        """Returns whether `word` may belong to the name of `run`, by what stands before it."""
        if word.before == " & ":
            return self._joins(run, word)
        if word.before == ". ":
            return not word.opens
        return bool(_BETWEEN.fullmatch(word.before))

    def _is_within(self, run: Sequence[_Word], within: Sequence[_Word], words: Sequence[_Word], place: int) -> bool:
        """Returns whether the small word at `place` may stand within a name, if a capital follows."""
        small = words[place].text
        if small == "and" and not within and place + 1 < len(words):
            after = words[place + 1]
            return after.before == " " and after.is_capital and self._joins(run, after)
        return len(within) < _PARTICLES_MAX and (small in _PARTICLES or bool(within) and small == "the")

    def _is_number(self, words: Sequence[_Word], place: int) -> bool:
        """Returns whether the word is the number of a model, such as "747", and neither a year nor an amount."""
        number = words[place].text
        if not number[0].isdecimal() or _YEAR.fullmatch(number) or _AMOUNT.match(self._text, words[place].start):
            return False
        after = words[place + 1] if place + 1 < len(words) else None
        return after is None or after.before != " " or not after.text.islower() or after.text in self._own

    def _joins(self, run: Sequence[_Word], word: _Word) -> bool:
        """Returns whether "and" makes one name of two: of one word each, and the base does not have both."""
        return len(run) == 1 and not (self._is_name(run[0].text) and self._is_name(word.text))
