"""Byte-level BPE, trained on the texts of the set, with padding and truncation switched on."""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
_SPECIAL = ["<pad>", "<bos>", "<eos>"]


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, context_length: int) -> tokenizers.Tokenizer:
    """Returns a tokenizer whose encodings have `context_length` ids: <bos>, the text, <eos>, padding.

    Case, accents and compatibility forms are folded, so "Café" and "CAFE" have the same ids. With few texts, the
    vocabulary may be smaller than `vocabulary_size`.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Strip()]
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
    return tokenizer
