"""Byte-level BPE, trained on the texts of the set, with padding and truncation switched on."""

from __future__ import annotations

import json
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
_SPECIAL = ["<pad>", "<bos>", "<eos>"]
# In other scripts marks are vowels, or tell words apart: without them Hindi, Thai or Tamil cannot be read.
_ACCENTS = tokenizers.Regex(r"(?<=[\p{Latin}\p{Greek}])\p{Mn}+")


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, context_length: int) -> tokenizers.Tokenizer:
    """Returns a tokenizer whose encodings have `context_length` ids: <bos>, the text, <eos>, padding.

    Case, compatibility forms, and accents after Latin and Greek letters are folded, so "Café" and "CAFE" have the same
    ids. Control ids are added by the tokenizer alone: "<eos>" in a text is encoded as any other characters. With few
    texts, the vocabulary may be smaller than `vocabulary_size`.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.Replace(_ACCENTS, ""),
            normalizers.NFC(),  # Korean syllables and kana in one piece again: a third of the bytes
            normalizers.Lowercase(),
            normalizers.Strip(),
        ]
    )
    # "_" and digits are tokens of their own, so that file names such as red_panda-12.png share tokens with plain words.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("_", "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS_ID), ("<eos>", EOS_ID)]
    )
    tokenizer.enable_truncation(context_length)
    tokenizer.enable_padding(length=context_length, pad_id=PAD_ID, pad_token="<pad>")
    # The trainer also registers the control tokens as strings to look for in every text. They stay in the vocabulary.
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = []
    return tokenizers.Tokenizer.from_str(json.dumps(content))
