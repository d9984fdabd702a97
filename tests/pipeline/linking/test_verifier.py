"""A verifier of the user's: how it is found, what becomes of its faults, and what annotations know of its files."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from PIL import Image

from pipeline.linking.verifier import VerifierCandidate, load_verifier, scores_of, verifier_fingerprint
from pipeline.schema import UserError
from tests.pipeline import verifiers

HERE = "tests.pipeline.verifiers"
REMEDY = "repair it, and run again: finished shards are kept"
LONG = "E1 and " + "more " * 20  # 107 characters, of which messages show 80


def candidates(*entity_ids: str, start: int = 0) -> list[VerifierCandidate]:
    return [
        VerifierCandidate(
            entity_id=one, name=one, description="", start=start, end=start + 2, probability=0.5, similarity=None
        )
        for one in entity_ids
    ]


def scores(function: str, text: str = "E1 and more") -> list[list[float]]:
    """Returns the scores of a name with two candidates and of one with one, by a function of the test's verifiers."""
    picture = Image.new("RGB", (1, 1))
    return scores_of(f"{HERE}:{function}", [picture, picture], [text, "E2"], [candidates("E1", "E2"), candidates("E2")])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fails_later", "raised RuntimeError: the second picture is odd ("),
        ("too_few", "returned scores for 1 names, and 2 were given; "),
        ("too_many", "returned 3 scores for the 2 candidates of 'E1' in the text 'E1 and more'; "),
        ("one_number", "returned float where a list of 2 lists of scores, one per name is needed; "),
        ("mapping", "returned dict where a list of 2 lists of scores, one per name is needed; "),
        ("flat", "returned float where a list of scores, one per candidate, is needed; "),
        ("letters", "returned str where a list of scores, one per candidate, is needed; "),
        ("not_finite", "returned nan for E1 in the text 'E1 and more'; a finite number is needed; "),
        ("words", "returned 'good' for E1 in the text 'E1 and more'; a finite number is needed; "),
        ("truth", "returned True for E1 in the text 'E1 and more'; a finite number is needed; "),
        ("last_is_none", "returned None for E2 in the text 'E1 and more'; a finite number is needed; "),
    ],
)
def test_a_faulty_verifier_is_named_with_its_fault_and_a_remedy(function: str, message: str) -> None:
    with pytest.raises(UserError) as stop:
        scores(function)
    assert str(stop.value).startswith(f"--verifier {HERE}:{function} {message}")
    assert str(stop.value).endswith(f"; {REMEDY}") and "\n" not in str(stop.value)


def test_a_verifier_that_raises_is_reported_with_the_innermost_line_and_the_first_text() -> None:
    line = next(
        number
        for number, text in enumerate(Path(verifiers.__file__).read_text().splitlines(), 1)
        if "raise Run" in text
    )
    with pytest.raises(UserError) as stop:
        scores("fails_within", text=LONG)
    assert str(stop.value) == (
        f"--verifier {HERE}:fails_within raised RuntimeError: the model is not there ({verifiers.__file__}, line "
        f"{line}) for a batch of 2 names, the first in the text {LONG[:80]!r}; {REMEDY}"
    )
    assert isinstance(stop.value.__cause__, RuntimeError)
    with pytest.raises(UserError, match=r"raised ValueError: no message \("):
        scores("fails_silently")


def test_texts_and_candidates_of_unequal_number_are_an_error() -> None:
    picture = Image.new("RGB", (1, 1))
    with pytest.raises(ValueError, match="shorter"):
        scores_of(f"{HERE}:one_each", [picture, picture], ["a", "b"], [candidates("E1")])


def test_messages_quote_80_characters_of_a_text_and_of_a_value() -> None:
    with pytest.raises(UserError) as stop:
        scores("long_value", text=LONG)
    assert str(stop.value) == (
        f"--verifier {HERE}:long_value returned {'array of words ' * 5}array for E1 in the text {LONG[:80]!r}; "
        f"a finite number is needed; {REMEDY}"
    )
    with pytest.raises(UserError, match=re.escape(f"of 'E1' in the text {LONG[:80]!r}; {REMEDY}")):
        scores("too_many", text=LONG)


def test_the_name_in_the_text_is_quoted_where_it_stands() -> None:
    with pytest.raises(UserError, match="2 scores for the 1 candidates of 'Rome' in the text 'near Rome';"):
        one = VerifierCandidate(
            entity_id="E1", name="E1", description="", start=5, end=9, probability=0.5, similarity=None
        )
        scores_of(f"{HERE}:too_many", [Image.new("RGB", (1, 1))], ["near Rome"], [[one]])


@pytest.mark.parametrize("function", ["judge.length", "generator", "whole_numbers", "tensor"])
def test_lists_arrays_and_generators_of_numbers_will_do(function: str) -> None:
    found = scores(function)
    assert found == [[11.0, 11.0], [2.0]]  # "E1 and more", "E2"
    assert all(type(value) is float for row in found for value in row)


def test_the_verifier_gets_the_pictures() -> None:
    pictures = [Image.new("RGB", (1, 1), (red, 0, 0)) for red in (7, 9)]
    ones = candidates("E1")
    assert scores_of(f"{HERE}:brightness", pictures, ["a", "b"], [ones, ones]) == [[7.0], [9.0]]


def test_an_array_with_a_row_per_name_will_do() -> None:
    picture = Image.new("RGB", (1, 1))
    ones = candidates("E1", "E2")
    assert scores_of(f"{HERE}:table", [picture, picture], ["a", "abc"], [ones, ones]) == [[1.0, 1.0], [3.0, 3.0]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("by_colour", "by_colour is not of the form module:function, such as mine.judges:by_colour"),
        (":by_colour", ":by_colour is not of the form module:function, such as mine.judges:by_colour"),
        (f"{HERE}:", f"{HERE}: is not of the form module:function, such as mine.judges:by_colour"),
        (
            "no.such.module:f",
            "no.such.module:f: the module no.such.module cannot be imported (No module named 'no'); "
            "it must be on the Python path of every worker",
        ),
        (f"{HERE}:absent", f"{HERE}:absent: {HERE} has no absent; name one of its functions"),
        (f"{HERE}:judge.absent", f"{HERE}:judge.absent: {HERE} has no judge.absent; name one of its functions"),
        (f"{HERE}:a:b", f"{HERE}:a:b: {HERE} has no a:b; name one of its functions"),
        (f"{HERE}:not_callable", f"{HERE}:not_callable is of type int, which cannot be called; name a function"),
    ],
)
def test_a_name_that_names_no_callable_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError) as stop:
        load_verifier(name)
    assert str(stop.value) == f"--verifier {message}"


def test_a_module_that_raises_when_it_is_imported_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_judge.py").write_text("raise ValueError('two\\nlines')\n")
    with pytest.raises(UserError, match=r"broken_judge cannot be imported \(two lines\); it must"):
        load_verifier("broken_judge:judge")


def test_annotations_depend_on_the_file_of_the_verifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = "def judge(images, texts, candidates): return []\n"
    (tmp_path / "mine_judge.py").write_text(source)
    assert verifier_fingerprint("mine_judge:judge") == f"mine_judge:judge@{sha256(source)}"
    (tmp_path / "mine_judge.py").write_text("# changed\n" + source)
    assert verifier_fingerprint("mine_judge:judge") == f"mine_judge:judge@{sha256('# changed' + chr(10) + source)}"


def test_a_verifier_that_its_module_imports_counts_with_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    inner, outer = "def judge(images, texts, candidates): return []\n", "from inner_judge import judge\n"
    (tmp_path / "inner_judge.py").write_text(inner)
    (tmp_path / "outer_judge.py").write_text(outer)
    assert verifier_fingerprint("outer_judge:judge") == f"outer_judge:judge@{sha256(outer)}@{sha256(inner)}"


def test_a_wrapped_verifier_counts_with_the_file_of_the_function_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    inner = "def judge(images, texts, candidates): return []\n"
    outer = "import functools, wrapped_inner\njudge = functools.cache(wrapped_inner.judge)\n"
    (tmp_path / "wrapped_inner.py").write_text(inner)
    (tmp_path / "wrapped_outer.py").write_text(outer)
    assert verifier_fingerprint("wrapped_outer:judge") == f"wrapped_outer:judge@{sha256(outer)}@{sha256(inner)}"


def test_a_verifier_without_a_file_of_its_own_is_known_by_the_rest() -> None:
    assert verifier_fingerprint("sys:getsizeof") == "sys:getsizeof"
    source = Path(verifiers.__file__).read_text()
    # An object that can be called has no source of its own.
    assert verifier_fingerprint(f"{HERE}:part") == f"{HERE}:part@{sha256(source)}"


def sha256(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()
