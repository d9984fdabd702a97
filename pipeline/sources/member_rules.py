"""Which members of a row are its picture, its text and its further fields; the one place of these rules.

The suffix of a member is what follows the first dot of its name, in small letters: "jpg", "input.jpg", "jpg.1".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from pipeline.byte_cache import Remembered
from pipeline.config import MembersConfig
from pipeline.sources.clean import clean_text, without_surrogates

IMAGE_SUFFIXES = (  # of the formats in `images.decode.WEB_FORMATS`
    "png", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "tif", "tiff", "avif",
)  # fmt: skip
# Pictures and films that are not read: a row that has one of them, and no other, is told so.
_OTHER_IMAGES = ("svg", "heic", "heif", "jp2", "jxl", "ico", "psd", "raw", "pdf", "eps", "mp4", "webm", "mov", "npy")
_JSON = ("json",)
_NUMBER_AT_END = re.compile(r"\.\d+$")  # "jpg.1", as wget names a second picture
_LONGEST_CLEANED = 64  # bytes for each character that a text may have; longer ones are not even cleaned
_CACHE_BYTES = 1 << 20  # of what is known of suffixes: rows of a tar have the same ones, as a rule
_ENTRY_BYTES = 500  # of an entry beside its texts

Fields = tuple[tuple[str, str | None], ...]
Groups = Sequence[tuple[str, ...]]
"""Endings of names, in groups; the first group that a row has counts."""


class Unread(NamedTuple):
    """Stands for the bytes of a member that was not read, or for what a row lacks."""

    reason: str


Content = bytes | Unread


class Found(NamedTuple):
    """What a row has."""

    reason: str = ""
    """Why the row cannot be used; "" if it can."""
    image: bytes = b""
    text: str = ""
    fields: Fields = ()
    image_suffix: str = ""
    """Of the member that is the picture."""


class _Choice(NamedTuple):
    """Which of the suffixes of a row's members are what it needs; several are ambiguous."""

    images: tuple[str, ...]
    other_images: tuple[str, ...]
    texts: tuple[str, ...]
    json: tuple[str, ...]


class MemberRules:
    """The rules that a config gives."""

    def __init__(self, config: MembersConfig):
        images = [(item,) for item in _items(config.image_member.lower())]
        self._images: Groups = images or [IMAGE_SUFFIXES]
        self._texts: Groups = [(item,) for item in _items(config.text_member.lower())]
        self._text_fields = _items(config.text_field)
        self._keep_fields = _items(config.keep_fields)
        self._max_text_chars = config.max_text_chars
        self._roles = Remembered(self._find_roles, _CACHE_BYTES, lambda suffix, _: len(suffix) + _ENTRY_BYTES)
        self._choices = Remembered(
            self._find_choice, _CACHE_BYTES, lambda suffixes, _: len("".join(suffixes)) + _ENTRY_BYTES
        )

    def is_read(self, suffix: str) -> bool:
        """Returns whether a row may need what is in a member with this suffix; others may be as large as memory."""
        return bool(self._roles[suffix])

    def is_whole(self, suffixes: Iterable[str]) -> bool:
        """Returns whether members with these suffixes are all that a row needs, so that no other need be waited for."""
        roles = frozenset[str]().union(*map(self._roles.__getitem__, suffixes))
        return "image" in roles and "text" in roles and ("fields" in roles or not self._keep_fields)

    def find(self, members: Mapping[str, Content]) -> Found:
        """Returns picture, text and fields of the row that has `members`, or the reason why it cannot be used."""
        choice = self._choices[tuple(members)]
        fields = self._kept_fields(members, choice)
        if isinstance(fields, Unread):
            return Found(reason=fields.reason)
        image_suffix, image = self._image_of(members, choice)
        text = self._text_of(members, choice.texts)
        if isinstance(image, Unread):
            return Found(reason=image.reason, text=text if isinstance(text, str) else "", fields=fields)
        if isinstance(text, Unread):
            return Found(reason=text.reason, fields=fields)
        if len(text) > self._max_text_chars:
            return Found(reason="text_too_long", text=text[: self._max_text_chars], fields=fields)
        reason = "" if text else "empty_text"
        return Found(reason=reason, image=image, text=text, fields=fields, image_suffix=image_suffix)

    def _find_roles(self, suffix: str) -> frozenset[str]:
        fields: Groups = [_JSON] if self._keep_fields else []
        groups = {"image": self._images, "text": self._texts, "fields": fields}
        return frozenset(role for role, items in groups.items() if any(_ends_in(suffix, one) for one in items))

    def _find_choice(self, suffixes: tuple[str, ...]) -> _Choice:
        return _Choice(
            images=_choose(suffixes, self._images),
            other_images=_choose(suffixes, [_OTHER_IMAGES]),
            texts=_choose(suffixes, self._texts),
            json=_choose(suffixes, [_JSON]),
        )

    def _image_of(self, members: Mapping[str, Content], choice: _Choice) -> tuple[str, Content]:
        """Returns the suffix of the picture and its bytes."""
        chosen = choice.images
        if not chosen:
            return "", Unread("unsupported_image" if choice.other_images else "missing_image")
        return ("", Unread("several_images")) if len(chosen) > 1 else (chosen[0], members[chosen[0]])

    def _text_of(self, members: Mapping[str, Content], chosen: Sequence[str]) -> str | Unread:
        if not chosen:
            return Unread("missing_text")
        if len(chosen) > 1:
            return Unread("several_texts")
        content = members[chosen[0]]
        if isinstance(content, Unread):
            return content
        if len(content) > _LONGEST_CLEANED * self._max_text_chars:
            return Unread("text_too_long")
        if not _ends_in(chosen[0], _JSON):
            try:
                return clean_text(content.decode())
            except UnicodeDecodeError:
                return Unread("undecodable_text")
        values = _parse_json(content)
        if isinstance(values, Unread):
            return values
        texts = [values[name] for name in self._text_fields if isinstance(values.get(name), str)]
        return clean_text(texts[0]) if texts else Unread("missing_text_field")

    def _kept_fields(self, members: Mapping[str, Content], choice: _Choice) -> Fields | Unread:
        """Returns the fields that pass through, of the row's JSON; None for each that it lacks."""
        if not self._keep_fields:
            return ()
        chosen = sorted(choice.json)
        content = members[chosen[0]] if chosen else b"{}"
        values = content if isinstance(content, Unread) else _parse_json(content)
        if isinstance(values, Unread):
            return values
        return tuple((name, _as_text(values.get(name))) for name in self._keep_fields)


def _items(commas: str) -> tuple[str, ...]:
    """Returns the items of a list that is separated by commas."""
    return tuple(item.strip().removeprefix(".") for item in commas.split(",") if item.strip())


def _ends_in(suffix: str, items: tuple[str, ...]) -> bool:
    """Returns whether `suffix` is one of `items`, or ends in one behind a dot; a number at its end does not count."""
    bare = _NUMBER_AT_END.sub("", suffix)
    return any(bare == item or suffix == item or bare.endswith("." + item) for item in items)


def _choose(suffixes: Iterable[str], groups: Groups) -> tuple[str, ...]:
    """Returns the suffixes that the first group with any has, those with fewest dots alone; several are ambiguous."""
    for items in groups:
        found = [suffix for suffix in suffixes if _ends_in(suffix, items)]
        if found:
            fewest = min(suffix.count(".") for suffix in found)
            return tuple(suffix for suffix in found if suffix.count(".") == fewest)
    return ()


def _parse_json(content: bytes) -> dict[str, Any] | Unread:
    try:
        values = orjson.loads(content)
    except orjson.JSONDecodeError:
        try:
            values = json.loads(content)  # it also takes NaN, which img2dataset may write, and lone surrogates
        except (ValueError, RecursionError):
            return Unread("undecodable_json")
    return values if isinstance(values, dict) else Unread("undecodable_json")


def _as_text(value: Any) -> str | None:
    """Returns a JSON value as a text: a string as it is, null as None, another value as JSON."""
    if value is None:
        return None
    return without_surrogates(
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    )
