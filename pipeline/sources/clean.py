"""Cleaning: a text as it lies in the input -> the text that every stage reads and that is stored."""

from __future__ import annotations

import difflib
import re
import unicodedata
import urllib.parse
from collections.abc import Callable, Sequence

import ftfy
from ftfy.chardata import HTML_ENTITY_RE
from ftfy.fixes import unescape_html

Span = tuple[int, int]

NUM_ESCAPES_MAX = 4  # "&amp;amp;amp;lt;", "%25252520"
# ASCII without entities, tags, control characters and runs of blanks: most texts, which cleaning returns as they are.
_PLAIN = re.compile(r"[!-%'-;=?-~]+(?: [!-%'-;=?-~]+)*")
_PERCENT = re.compile(r"(?:%[0-9A-Fa-f]{2})+")  # characters of an address or a file name
_SURROGATE = re.compile("[\ud800-\udfff]")
_INLINE_TAGS = (
    "a|abbr|acronym|b|bdi|bdo|big|cite|code|del|dfn|em|font|i|ins|kbd|label|mark|q|s|samp|small|span|strike|strong|sub"
    "|sup|tt|u|var|wbr"
)
_BLOCK_TAGS = (
    "article|aside|blockquote|br|button|caption|center|dd|div|dl|dt|figcaption|figure|footer|form|h[1-6]|header|hr"
    "|iframe|img|input|li|link|meta|nav|noscript|ol|option|p|path|picture|pre|script|section|select|source|style|svg"
    "|table|tbody|td|tfoot|th|thead|tr|ul|video"
)
# Only names that HTML has: "<3" and "x<y>z" are no tags. Neither pattern looks further than the next bracket.
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE_TAGS})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_BLOCK_TAG = re.compile(rf"</?(?:{_BLOCK_TAGS})(?:\s[^<>]*)?/?>|<!--[^<>]*-->", re.IGNORECASE)
# Control characters that are no white space, soft hyphens, zero-width and direction marks, annotation characters,
# the byte order mark. A joiner stays where it has a meaning: behind a letter of scripts that join, or an emoji.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff"
    "\ufff9-\ufffc]|(?<![\u0590-\U0010ffff])[\u200c\u200d]"
)
_BLANKS = re.compile(r"\s+")
# Without two neighbours beyond ASCII, or a control character, ftfy finds nothing of which it could be sure. It is slow.
_PERHAPS_MOJIBAKE = re.compile("[^\x00-\x7f]{2}|[\x80-\x9f]")


def clean_text(raw: str) -> str:
    """Returns `raw` as a reader sees it.

    HTML entities are decoded, also those escaped twice; tags and invisible characters are gone; there is one blank for
    any run of white space and none at the ends. A text of ASCII without white space, such as a file name, has its
    percent-encoded characters decoded ("New%20York.jpg"), also those encoded twice ("New%2520York.jpg").

    Mojibake ("CafÃ©") is repaired where `ftfy` is sure of it. Letters are composed (NFC), and half of a surrogate pair
    becomes U+FFFD. Nothing else changes: quotes, ligatures and capitals stay. A text of nothing visible gives "".
    """
    return clean_spans(raw, ())[0]


def without_surrogates(text: str) -> str:
    """Returns `text` with U+FFFD for each half of a surrogate pair, which UTF-8 cannot hold."""
    return _SURROGATE.sub("\ufffd", text)


def clean_spans(raw: str, spans: Sequence[Span]) -> tuple[str, list[Span]]:
    """Returns `clean_text(raw)`, and where in it each of `spans` lies.

    Args:
        raw: the text.
        spans: `[start, end)` in characters of `raw`. One that cuts an entity in two takes all of it, and one of blanks
            alone may become empty.
    """
    text, moved = raw, list(spans)
    if _PLAIN.fullmatch(raw) and not _is_encoded(raw):
        return text, moved

    def replace(pattern: re.Pattern[str], new: Callable[[str], str]) -> None:
        nonlocal text, moved
        text, moved = _replace(text, pattern, new, moved)

    def replace_entities() -> None:
        for _ in range(NUM_ESCAPES_MAX):
            if not HTML_ENTITY_RE.search(text):
                break
            replace(HTML_ENTITY_RE, unescape_html)

    if not text.isascii():
        replace(_SURROGATE, lambda _: "\ufffd")
    replace_entities()
    if raw.isascii():
        for _ in range(NUM_ESCAPES_MAX):
            if not _is_encoded(text):
                break
            replace(_PERCENT, _decode_percent)
            replace_entities()
    if "<" in text:
        replace(_BLOCK_TAG, lambda _: " ")
        replace(_INLINE_TAG, lambda _: "")
    if not text.isascii():
        for change in (_repair_encoding, _compose):
            changed = change(text)
            if changed != text:
                text, moved = changed, _realign(text, changed, moved)
    replace(_INVISIBLE, lambda _: "")
    replace(_BLANKS, lambda _: " ")
    stripped = text.strip()
    begin = len(text) - len(text.lstrip())
    return stripped, [_inside(start - begin, end - begin, len(stripped)) for start, end in moved]


def _is_encoded(text: str) -> bool:
    """Returns whether `text` has percent-encoded characters and, but at its ends, no white space."""
    return "%" in text and len(text.split(maxsplit=1)) == 1 and _PERCENT.search(text) is not None


def _decode_percent(encoded: str) -> str:
    """Returns the characters that `encoded` stands for; itself if it is no UTF-8."""
    try:
        return urllib.parse.unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError:
        return encoded


def _repair_encoding(text: str) -> str:
    return ftfy.fix_encoding(text) if _PERHAPS_MOJIBAKE.search(text) else text  # pragma: no mutate: to save time


def _compose(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _inside(start: int, end: int, length: int) -> Span:
    start = min(max(start, 0), length)
    return start, min(max(end, start), length)


def _replace(
    text: str, pattern: re.Pattern[str], new: Callable[[str], str], spans: list[Span]
) -> tuple[str, list[Span]]:
    """Returns `text` with `new` of each match in its place, and `spans` moved with it."""
    if not spans:
        return pattern.sub(lambda match: new(match[0]), text), spans
    pieces: list[str] = []
    edits: list[tuple[int, int, int, int]] = []  # start and end of what is replaced, then of what replaces it
    done = length = 0
    for match in pattern.finditer(text):
        pieces += [text[done : match.start()], new(match[0])]
        start = length + match.start() - done
        length, done = start + len(pieces[-1]), match.end()
        edits.append((match.start(), match.end(), start, length))
    return "".join([*pieces, text[done:]]), _move(spans, edits)


def _realign(before: str, after: str, spans: list[Span]) -> list[Span]:
    """Returns `spans` of `before` in `after`, whose differences are found by comparing the two."""
    if not spans:
        return spans
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)  # pragma: no mutate: None is False too
    codes = matcher.get_opcodes()
    return _move(spans, [tuple(places) for kind, *places in codes if kind != "equal"])  # type: ignore[misc]


def _move(spans: list[Span], edits: list[tuple[int, int, int, int]]) -> list[Span]:
    def moved(place: int, *, is_end: bool) -> int:
        shift = 0
        for start, end, new_start, new_end in edits:
            if end <= place:
                shift = new_end - end
            elif start < place:  # inside what is replaced
                return new_end if is_end else new_start
        return place + shift

    return [
        (moved(start, is_end=False), moved(end, is_end=True))  # pragma: no mutate: None is False too
        for start, end in spans
    ]
