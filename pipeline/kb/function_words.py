"""Function words, such as "his", "the" and "sur": they are names only where a text writes them as such.

A function word of a language is a stop word (`stopwordsiso`) among its most frequent words (`wordfreq`): lists of stop
words alone also hold words such as "home" and "system".
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable

LANGUAGES = ("en", "fr", "de", "es", "it", "pt", "nl")  # those that are told apart, beside the languages of a base
_NUM_WORDS = 110  # the most frequent of a language of the base (ours): "work", "world" and "home" come later
_NUM_WORDS_FOREIGN = 250  # of another language (ours)
_TELLING = 2.1  # how much more frequent than in the languages of the base, as a power of ten (ours)
_TELLING_MIN = 2  # distinct telling words that make a text one of another language (ours)


@functools.lru_cache(maxsize=64)
def function_words(language: str, num_words: int = _NUM_WORDS) -> frozenset[str]:
    """Returns the function words of `language`, a code such as "en" or "pt-br", casefolded; none of an unknown one."""
    import stopwordsiso
    import wordfreq  # not at the top: a third of a second, and not every command reads texts

    code = language.split("-")[0]
    if not stopwordsiso.has_lang(code) or code not in wordfreq.available_languages():
        return frozenset()
    frequent = wordfreq.top_n_list(code, num_words, wordlist="small")  # pragma: no mutate: larger lists say the same
    return frozenset(word for word in frequent if word in stopwordsiso.stopwords(code) and not word.isdigit())


class FunctionWords:
    """The function words of texts that are linked to a base.

    Args:
        languages: those of the base, at least one.
    """

    def __init__(self, languages: Collection[str]) -> None:
        self.own = frozenset().union(*map(function_words, languages))
        codes = {language.split("-")[0] for language in languages}
        self._foreign = {
            language: (_telling(language, codes), function_words(language, _NUM_WORDS_FOREIGN))
            for language in LANGUAGES
            if language not in codes
        }
        self.telling = frozenset().union(*(telling for telling, _ in self._foreign.values()))

    def of_text(self, words: Iterable[str]) -> frozenset[str]:
        """Returns the function words of a text of the casefolded `words`.

        They are those of the base's languages, and of each other language of which the text has more telling words
        than function words of the base, at least two. A word tells a language if it is over a hundred times as frequent
        there: "sur" and "les", but neither "car" nor "hat", which are English words too.
        """
        present = set(words)
        if len(present & self.telling) < _TELLING_MIN:
            return self.own
        num_own = len(present & self.own)
        found = self.own
        for telling, of_language in self._foreign.values():
            num_telling = len(present & telling)
            if num_telling >= _TELLING_MIN and num_telling > num_own:
                found |= of_language
        return found


@functools.lru_cache(maxsize=64)
def of_languages(languages: tuple[str, ...]) -> FunctionWords:
    """Returns the function words for a base of `languages`; one object for all who ask."""
    return FunctionWords(languages)


@functools.lru_cache(maxsize=1)
def function_words_of_all() -> frozenset[str]:
    """Returns the function words of English, and those of the other `LANGUAGES` that are no English words."""
    words = of_languages(LANGUAGES[:1])
    return words.own | words.telling


def _telling(language: str, base: Collection[str]) -> frozenset[str]:
    import wordfreq

    known = [one for one in base if one in wordfreq.available_languages()]

    def frequency(word: str, code: str) -> float:
        return wordfreq.zipf_frequency(word, code, wordlist="small")  # pragma: no mutate: larger lists say the same

    def beyond(word: str) -> float:
        here = frequency(word, language)
        there = max((frequency(word, one) for one in known), default=0.0)  # pragma: no mutate: all are far above 0
        return here - there

    words = function_words(language, _NUM_WORDS_FOREIGN)
    telling = (word for word in words if beyond(word) >= _TELLING)  # pragma: no mutate: no word is just as far
    return frozenset(telling)
