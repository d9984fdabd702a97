"""Tokenizers of OpenCLIP as ones that pad and truncate every text to a fixed length.

OpenCLIP cleans texts by the package ftfy first. What that repairs besides quotes, ligatures, white space and case stays
as it is here, such as HTML entities, misread encodings and wide characters.
"""

from __future__ import annotations

import json
import string
from typing import Any

import ftfy.chardata
import open_clip
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from pipeline.schema import UserError
from trainer.importing.folders import one_line
from trainer.importing.tokenizer import fixed_length, in_a_class

# As in OpenCLIP's tokenizer.
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_KNOWN_ARGUMENTS = {"clean", "strip_sep_token"}


def fast_tokenizer(text: dict[str, Any], source: str | None, *, where: str) -> tokenizers.Tokenizer:
    """Returns the tokenizer of a text tower.

    Args:
        text: `text_cfg` of the model's config.
        source: folder or hub name of a tokenizer of transformers; None: the tower reads OpenCLIP's own.
        where: names the model in errors.

    Raises:
        UserError: it cannot be read, or works in a way that a fast tokenizer cannot.
    """
    arguments = dict(text.get("tokenizer_kwargs") or {})
    if unknown := sorted((set(arguments) - _KNOWN_ARGUMENTS) | ({"tokenizer_mode"} & set(text))):
        raise UserError(
            f"{where} tokenizes with {unknown[0]}, which cannot be imported; import the model from its folder in the "
            "layout of transformers, or give --no-text for the image tower alone"
        )
    length = int(text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH))
    if source is None:
        fast = _of_open_clip(open_clip.SimpleTokenizer(context_length=length), length)
        fast.normalizer = normalizers.Sequence(_cleaning(arguments.get("clean", "lower"), where))
        return fast
    fast = _of_transformers(source, length, where=where)
    steps = _cleaning(arguments.get("clean", "whitespace"), where)
    fast.normalizer = normalizers.Sequence([*steps, *([fast.normalizer] if fast.normalizer else [])])
    return _without_end(fast, where=where) if arguments.get("strip_sep_token") else fast


def _of_transformers(source: str, length: int, *, where: str) -> tokenizers.Tokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # whatever the network, the hub, its client or a damaged file does
        raise UserError(
            f"{where}: the tokenizer {source} cannot be read ({one_line(error)}); fetch the "
            "model's folder, with open_clip_config.json, weights and tokenizer, where there is a network, and give "
            "MODEL= that folder, or give --no-text for the image tower alone"
        ) from error
    return fixed_length(tokenizer, length, where=where)


def _cleaning(kind: str, where: str) -> list[Any]:
    """Returns the normalizers that do what OpenCLIP does to a text before it is tokenized."""
    steps = [
        normalizers.NFC(),
        normalizers.Replace(tokenizers.Regex("[\u02bc\u2018-\u201b]"), "'"),
        normalizers.Replace(tokenizers.Regex("[\u201c-\u201f]"), '"'),
        *(normalizers.Replace(chr(code), letters) for code, letters in ftfy.chardata.LIGATURES.items()),
    ]
    if kind == "canonicalize":
        punctuation = string.punctuation.replace("_", "")
        steps += [
            normalizers.Replace("_", " "),
            normalizers.Replace(tokenizers.Regex(in_a_class(punctuation)), ""),
        ]
    elif kind not in ("lower", "whitespace"):
        raise UserError(f"{where} cleans texts by {kind!r}; known are canonicalize, lower and whitespace")
    if kind != "whitespace":
        steps.append(normalizers.Lowercase())
    return [*steps, normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Strip()]


def _without_end(fast: tokenizers.Tokenizer, *, where: str) -> tokenizers.Tokenizer:
    """Returns the tokenizer with the id 0 in the place of the token that ends a text."""
    content = json.loads(fast.to_str())
    processor = content["post_processor"]
    if processor is None or processor["type"] != "TemplateProcessing" or "SpecialToken" not in processor["single"][-1]:
        raise UserError(
            f"{where} leaves out the token at the end of a text, but its tokenizer puts none there; give --no-text for "
            "the image tower alone"
        )
    processor["special_tokens"][processor["single"][-1]["SpecialToken"]["id"]]["ids"] = [0]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def _of_open_clip(tokenizer: Any, length: int) -> tokenizers.Tokenizer:
    """Returns OpenCLIP's own tokenizer as a fast one, without what cleans texts."""
    fast = tokenizers.Tokenizer(
        models.BPE(
            vocab=dict(tokenizer.encoder),
            merges=[tuple(pair) for pair in tokenizer.bpe_ranks],
            end_of_word_suffix="</w>",
        )
    )
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    start, end = ("<start_of_text>", tokenizer.sot_token_id), ("<end_of_text>", tokenizer.eot_token_id)
    fast.post_processor = processors.RobertaProcessing(end, start, trim_offsets=False, add_prefix_space=False)
    fast.enable_truncation(length)
    fast.enable_padding(length=length, pad_id=0, pad_token="!")
    return fast
