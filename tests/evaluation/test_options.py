import dataclasses

import pytest

from evaluation.options import Options, option, options_help, parse_options
from pipeline.schema import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Some(Options):
    data: str = option("imagenet", help="a folder")
    mode: str = option("1k", choices=("1k", "full"), help="how much")
    k: tuple[int, ...] = option((10, 20), at_least=1, distinct=True, help="neighbours")
    share: float = option(0.1, above=0, below=1, help="of each class")
    most: int | None = option(5, at_least=1, none="all", help="captions")
    names: str | None = option(None, help="a file")
    groups: tuple[str, ...] | None = option(None, none="all", choices=("x", "y"), help="of queries")

    def __post_init__(self) -> None:
        super().__post_init__()
        if " " in self.data:
            raise UserError("data of two words")


def test_options_that_are_not_given_have_their_defaults():
    assert parse_options("some", Some, {}) == Some()
    assert Some().is_default("k") and not Some(k=(10,)).is_default("k")


def test_text_becomes_the_type_of_the_field():
    given = {"data": "my/train", "mode": "full", "k": "1, 5", "share": "0.5", "most": "all", "names": "n.json"}
    expected = Some(data="my/train", mode="full", k=(1, 5), share=0.5, most=None, names="n.json")
    assert parse_options("some", Some, given) == expected
    assert expected.settings("k", "most") == {"k": [1, 5], "most": None}
    assert list(expected.settings()) == ["data", "mode", "k", "share", "most", "names", "groups"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shar": "1"}, "some has no option 'shar', the nearest is 'share'; it has: data (default imagenet), "),
        ({"mode": "2k"}, "some.mode is '2k'; it must be one of 1k, full; the default is 1k"),
        ({"k": "ten"}, "some.k is 'ten'; it must be one or more different whole numbers of at least 1, with commas"),
        ({"k": "0,1"}, "some.k is '0,1'; it must be one or more different"),
        ({"k": "1,1"}, "some.k is '1,1'; it must be one or more different"),
        ({"share": "1"}, "some.share is '1.0'; it must be a number above 0 and below 1; the default is 0.1"),
        ({"share": "nan"}, "some.share is 'nan'; it must be a number above 0"),
        ({"most": "none"}, "some.most is 'none'; it must be a whole number of at least 1, or all; the default is 5"),
        ({"groups": "a"}, "some.groups is 'a'; it must be one of x, y, or all; the default is all"),
        ({"data": "a b"}, "some: data of two words"),
        ({"most": "0"}, "some.most is '0'; it must be a whole number of at least 1, or all"),
    ],
)
def test_what_is_not_allowed_is_an_error_that_says_what_is(given, message):
    with pytest.raises(UserError) as error:
        parse_options("some", Some, given)
    assert str(error.value).startswith(message)


def test_a_value_given_in_python_is_checked_too():
    with pytest.raises(UserError, match="^share is '2.0'"):
        Some(share=2.0)


def test_help_shows_each_option_with_its_default():
    assert options_help(Some)[1:] == [
        "mode (1k): how much (1k or full)",
        "k (10,20): neighbours",
        "share (0.1): of each class",
        "most (5): captions (or all)",
        "names (none): a file",
        "groups (all): of queries (x or y)",
    ]
