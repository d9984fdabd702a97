"""Tokenizers of published models, padded and cut to a fixed length."""

import pytest
import transformers

from pipeline.schema import UserError
from tests.trainer.importing import published
from trainer.importing.tokenizer import fixed_length


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return transformers.AutoTokenizer.from_pretrained(published.siglip(tmp_path_factory.mktemp("siglip")))


@pytest.mark.parametrize(
    "text",
    ["A  photo,\tof (two) CATS! ", "under_score#tag - 50% \\ ^ ] [ /", "naïve café", "▁▁a▁b", "東京", "", "x" * 90],
)
def test_the_fast_tokenizer_of_siglip_encodes_as_its_own(siglip, text):
    expected = siglip(text, padding="max_length", truncation=True, max_length=16)["input_ids"]
    assert fixed_length(siglip, 16, where="here").encode(text).ids == expected


def test_a_tokenizer_pads_on_the_side_and_with_the_token_of_the_source(tmp_path):
    source = published.clip_tokenizer(tmp_path)
    start, end = source.bos_token_id, source.eos_token_id
    cat = source("cat")["input_ids"][1:-1]
    assert fixed_length(source, 8, where="here").encode("cat").ids == [start, *cat, *[end] * (7 - len(cat))]
    source.padding_side = "left"
    assert fixed_length(source, 8, where="here").encode("cat").ids == [*[end] * (6 - len(cat)), start, *cat, end]


def test_a_tokenizer_without_padding_is_refused(tmp_path):
    source = published.clip_tokenizer(tmp_path)
    source.pad_token = None
    with pytest.raises(UserError, match=r"^here: the tokenizer has no padding token; add pad_token to its tokenizer_c"):
        fixed_length(source, 8, where="here")


def test_a_tokenizer_without_fast_version_is_refused(tmp_path):
    published.clip_tokenizer(tmp_path)
    slow = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    with pytest.raises(
        UserError, match=r"^here: the tokenizer CLIPTokenizer has no fast version; save one there as tok"
    ):
        fixed_length(slow, 8, where="here")


def test_a_tokenizer_that_encodes_otherwise_than_its_fast_version_is_refused(tmp_path):
    class Shouting(transformers.CLIPTokenizerFast):
        def __call__(self, text, **kwargs):
            return super().__call__(text + " dog", **kwargs)

    published.clip_tokenizer(tmp_path)
    source = Shouting(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    with pytest.raises(
        UserError, match=r"^here: the tokenizer Shouting and its fast version encode 'a photo of a cat'"
    ):
        fixed_length(source, 16, where="here")


def test_control_tokens_in_a_text_are_what_they_are_for_the_source(tmp_path):
    source = published.clip_tokenizer(tmp_path)
    for split in (False, True):
        source.split_special_tokens = split
        expected = source("a <|endoftext|>", padding="max_length", max_length=16)["input_ids"]
        assert fixed_length(source, 16, where="here").encode("a <|endoftext|>").ids == expected
        assert (expected[2] == source.eos_token_id) == (not split)  # after <|startoftext|> and "a"
