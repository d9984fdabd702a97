"""Tokenizers of published models, as ones that pad and truncate every text to a fixed length."""

from __future__ import annotations

import json
import string
from typing import Any

import tokenizers
from tokenizers import normalizers, processors

from pipeline.schema import UserError

# Both tokenizers must agree on these: cases, punctuation, white space, scripts, long words.
_PROBES = (
    "a photo of a cat",
    "A Photo, of:  two CATS!",
    " leading and trailing ",
    "tabs\tand\nlines",
    "",
    "naïve café 東京 Ελλάδα 12,345.67",
    "don't stop-me_now (v2.0) #1 @home 50% a/b",
    "under▁score ﬁne Ａ ½",
    "word " * 300,
    "x" * 400,
)


def fixed_length(tokenizer: Any, context_length: int, *, where: str) -> tokenizers.Tokenizer:
    """Returns a tokenizer whose encodings are those of `tokenizer`, a transformers one, padded and cut to a length.

    Raises:
        UserError: it has no fast version that encodes as it does.
    """
    if tokenizer.pad_token_id is None:
        raise UserError(f"{where}: the tokenizer has no padding token; add pad_token to its tokenizer_config.json")
    if getattr(tokenizer, "is_fast", False):
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        if tokenizer.split_special_tokens:  # control tokens in a text are text; the vocabulary has them too
            content["added_tokens"] = [token for token in content["added_tokens"] if not token["special"]]
        fast = tokenizers.Tokenizer.from_str(json.dumps(content))
    elif type(tokenizer).__name__ == "SiglipTokenizer":
        fast = _of_siglip(tokenizer)
    else:
        raise UserError(
            f"{where}: the tokenizer {type(tokenizer).__name__} has no fast version; save one there as tokenizer.json"
        )
    fast.enable_truncation(context_length, direction=tokenizer.truncation_side)
    fast.enable_padding(
        length=context_length,
        pad_id=tokenizer.pad_token_id,
        pad_token=str(tokenizer.pad_token),
        direction=tokenizer.padding_side,
    )
    for text in _PROBES:
        expected = tokenizer(text, padding="max_length", truncation=True, max_length=context_length)["input_ids"]
        if fast.encode(text).ids != expected:
            raise UserError(
                f"{where}: the tokenizer {type(tokenizer).__name__} and its fast version encode {text[:40]!r} "
                "differently; save the fast one there as tokenizer.json"
            )
    return fast


def _of_siglip(tokenizer: Any) -> tokenizers.Tokenizer:
    """Returns SigLIP's SentencePiece tokenizer as a fast one: no punctuation, single blanks, </s> at the end.

    Combining marks and joiners between letters of other scripts can still be split in another way.
    """
    from transformers.convert_slow_tokenizer import SpmConverter

    converter = SpmConverter(tokenizer)
    fast: tokenizers.Tokenizer = converter.tokenizer(converter.proto)
    steps = [
        *([normalizers.Lowercase()] if tokenizer.do_lower_case else []),
        normalizers.Replace("▁", " "),
        normalizers.Replace(tokenizers.Regex(in_a_class(string.punctuation)), ""),
    ]
    charsmap = converter.proto.normalizer_spec.precompiled_charsmap
    if charsmap:
        steps.append(normalizers.Precompiled(charsmap))
    steps += [
        normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
        normalizers.Strip(),
        normalizers.Prepend("▁"),
        normalizers.Replace(" ", "▁"),
    ]
    fast.normalizer = normalizers.Sequence(steps)
    fast.post_processor = processors.TemplateProcessing(
        single=f"$A {tokenizer.eos_token}", special_tokens=[(str(tokenizer.eos_token), tokenizer.eos_token_id)]
    )
    return fast


def in_a_class(characters: str) -> str:
    """Returns a regular expression of one of the characters."""
    escaped = "".join(f"\\{character}" for character in characters)
    return f"[{escaped}]"
