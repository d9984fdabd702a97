import pathlib

import pytest
import tokenizers

from trainer.tokenizer import BOS_ID, EOS_ID, PAD_ID, train_tokenizer

GOLDEN = pathlib.Path(__file__).parent / "golden" / "encoder" / "tokenizer.json"
TEXTS = ["red panda, a mammal", "blue whale, a mammal", "हिन्दी", "किला", "केला"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 400, 48)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("किला", "केला"),  # fort, banana (Hindi)
        ("हिन्दी", "हनद"),  # with and without its vowels
        ("กิน", "กัน"),  # eat, together (Thai)
        ("கிளி", "களி"),  # parrot, clay (Tamil)
        ("দিন", "দান"),  # day, gift (Bengali)
        ("かき", "かぎ"),  # persimmon, key
        ("ハハ", "パパ"),  # mother, father
        ("мой", "мои"),  # my, of one and of many
        ("שָׁלוֹם", "שלום"),  # with and without points
    ],
)
def test_marks_that_tell_words_apart_are_kept(tokenizer, one, other):
    assert tokenizer.encode(one).ids != tokenizer.encode(other).ids


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Café", "CAFE"),
        ("Cafe\u0301", "cafe"),
        ("Tiếng Việt", "tieng viet"),  # two marks on one letter
        ("İzmir", "izmir"),
        ("Αθήνα", "αθηνα"),
        ("ﬁsh", "fish"),
        ("パパ", "ﾊﾟﾊﾟ"),  # full and half width
        ("й", "и\u0306"),  # composed and decomposed
        ("한", "\u1112\u1161\u11ab"),
    ],
)
def test_spellings_of_one_word_have_the_same_ids(tokenizer, one, other):
    assert tokenizer.encode(one).ids == tokenizer.encode(other).ids


def test_a_syllable_is_not_taken_apart_into_letters(tokenizer):
    # <bos>, the space before a word, three bytes of UTF-8, <eos>.
    assert len([token for token in tokenizer.encode("한").ids if token != PAD_ID]) == 6


@pytest.mark.parametrize("written", ["<pad>", "<bos>", "<eos>"])
def test_a_control_token_that_a_text_spells_is_text(written):
    tokenizer = train_tokenizer([f"{written} tag", f"the {written}"] * 50, 400, 16)
    for text in (written, f"a {written} b", f"a{written}"):
        ids = tokenizer.encode(text).ids
        assert ids[0] == BOS_ID and ids.count(BOS_ID) == ids.count(EOS_ID) == 1
        end = ids.index(EOS_ID)
        assert PAD_ID not in ids[:end] and set(ids[end + 1 :]) == {PAD_ID}
        assert end > 3
    assert tokenizer.encode(written).ids != tokenizer.encode("").ids


def test_the_file_says_all_that_the_tokenizer_does(tokenizer, tmp_path):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    read = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("Red panda", "किला", "<pad>", "a " * 60):
        assert read.encode(text).ids == tokenizer.encode(text).ids
        assert len(read.encode(text).ids) == 48


def test_a_tokenizer_of_an_earlier_version_gives_the_ids_that_its_encoder_was_trained_on():
    tokenizer = tokenizers.Tokenizer.from_file(str(GOLDEN))
    assert tokenizer.encode("किला").ids == tokenizer.encode("केला").ids  # as when it was written
    assert tokenizer.encode("Café").ids == tokenizer.encode("cafe").ids
