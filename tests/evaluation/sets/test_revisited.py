import io
import os
import pickle

import numpy as np
import pytest

from evaluation.sets.revisited import QueryTruth, read_ground_truth
from pipeline.schema import UserError

CONTENT = {
    "imlist": ["a", "b", "c", "d"],
    "qimlist": ["q"],
    "gnd": [{"easy": np.array([1]), "hard": [2], "junk": np.array([], int), "bbx": [1.0, 2.0, np.float64(3), 4]}],
}
# What Python 2 and numpy 1 wrote for {'imlist': ['a'], 'qimlist': ['q'], 'gnd': [{'easy': array([0]), 'hard': [],
# 'junk': [], 'bbx': [1.0, 2.0, 3.0, 4.0]}]}, with protocol 0: bytes as text.
PYTHON_2 = (
    b"(dp0\nS'imlist'\np1\n(lp2\nS'a'\np3\nasS'qimlist'\np4\n(lp5\nS'q'\np6\nasS'gnd'\np7\n(lp8\n(dp9\nS'easy'\np10\n"
    b"cnumpy.core.multiarray\n_reconstruct\np11\n(cnumpy\nndarray\np12\n(I0\ntp13\nS'b'\np14\ntp15\nRp16\n"
    b"(I1\n(I1\ntp17\ncnumpy\ndtype\np18\n(S'i8'\np19\nI0\nI1\ntp20\nRp21\n(I3\nS'<'\np22\nNNNI-1\nI-1\nI0\ntp23\nb"
    b"I00\nS'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00'\np24\ntp25\nbsS'hard'\np26\n(lp27\nsS'junk'\np28\n(lp29\ns"
    b"S'bbx'\np30\n(lp31\nF1.0\naF2.0\naF3.0\naF4.0\nasas."
)


def pickled(content, protocol=2):
    return io.BytesIO(pickle.dumps(content, protocol))


class Attack:
    def __reduce__(self):
        return os.system, ("touch never",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_ground_truth_with_arrays_is_read(protocol):
    truth = read_ground_truth(pickled(CONTENT, protocol))
    assert truth.gallery_names == ("a", "b", "c", "d")
    assert truth.queries == (QueryTruth(easy=(1,), hard=(2,), junk=(), box=(1.0, 2.0, 3.0, 4.0)),)


@pytest.mark.parametrize("protocol", [0, 2])
def test_arrays_of_names_and_of_any_shape_are_read(protocol):
    gnd = [
        {"easy": np.array([[1], [3]], ">i2"), "hard": (), "junk": np.array([[2.0]]), "bbx": np.array([[1, 2, 3, 4]])}
    ]
    content = {"imlist": np.array(["a", "b", "c", "d"]), "qimlist": np.array(["q"], object), "gnd": np.array(gnd)}
    truth = read_ground_truth(pickled(content, protocol))
    assert truth.gallery_names == ("a", "b", "c", "d") and truth.query_names == ("q",)
    assert truth.queries == (QueryTruth(easy=(1, 3), hard=(), junk=(2,), box=(1.0, 2.0, 3.0, 4.0)),)


@pytest.mark.parametrize("protocol", range(4))
def test_the_old_module_names_of_numpy_are_read(protocol):
    old = pickle.dumps(CONTENT, protocol).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core" in old
    assert read_ground_truth(io.BytesIO(old)).queries[0].easy == (1,)


def test_a_pickle_of_python_2_is_read():
    truth = read_ground_truth(io.BytesIO(PYTHON_2))
    assert truth.gallery_names == ("a",) and truth.queries == (
        QueryTruth(easy=(0,), hard=(), junk=(), box=(1.0, 2.0, 3.0, 4.0)),
    )


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "content",
    [
        Attack(),
        {**CONTENT, "gnd": Attack()},
        {**CONTENT, "more": {"deep": [{"deeper": (Attack(),)}]}},
        {**CONTENT, "gnd": [{**CONTENT["gnd"][0], "junk": np.array([Attack()])}]},
    ],
)
def test_a_pickle_that_would_run_code_is_refused(content, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"names (posix|nt)\.system"):
        read_ground_truth(pickled(content, protocol))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"c__builtin__\ngetattr\n.",
        b"(i__main__\nAnything\n.",
        b"cnumpy.core.multiarray\nfromfile\n.",
        b"cnumpy\nload\n.",
        b"cnumpy.testing._private.utils\nrunstring\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0cf2py.os.name\x93.",
    ],
)
def test_any_other_name_is_refused(content):
    with pytest.raises(UserError, match="which is not a NumPy array"):
        read_ground_truth(io.BytesIO(content))


def test_arrays_of_types_that_hold_pointers_are_refused():
    # A record with an object in it, made from raw bytes, would be read as an address.
    for code in (b"V8", b"O8,i8", b"M8"):
        with pytest.raises(UserError, match="only numbers and text are read"):
            read_ground_truth(io.BytesIO(b"cnumpy\ndtype\n(S'" + code + b"'\nI0\nI1\ntR."))
    raw_objects = pickle.dumps({**CONTENT, "gnd": [{"easy": np.array([1])}]}, 0).replace(b"Vi8", b"VO8")
    with pytest.raises(UserError, match="an array of objects is not a list"):
        read_ground_truth(io.BytesIO(raw_objects))


def test_cut_or_wrong_ground_truths_are_errors():
    with pytest.raises(UserError, match="cannot be read"):
        read_ground_truth(io.BytesIO(pickled(CONTENT).getvalue()[:40]))
    with pytest.raises(UserError, match="cannot be read"):
        read_ground_truth(io.BytesIO(b"<html>not found</html>"))
    wrong = {**CONTENT, "gnd": [{**CONTENT["gnd"][0], "hard": [4]}]}
    with pytest.raises(UserError, match=r"q has position \[4\] of 4 pictures"):
        read_ground_truth(pickled(wrong))
    with pytest.raises(UserError, match="has picture 2 twice"):
        read_ground_truth(pickled({**CONTENT, "gnd": [{**CONTENT["gnd"][0], "junk": [2]}]}))
    with pytest.raises(UserError, match="not a whole number"):
        read_ground_truth(pickled({**CONTENT, "gnd": [{**CONTENT["gnd"][0], "junk": [0.5]}]}))
    with pytest.raises(UserError, match="1 queries and 2 names"):
        read_ground_truth(pickled({**CONTENT, "qimlist": ["q", "r"]}))


@pytest.mark.parametrize("box", [[3, 2, 1, 4], [1, 4, 3, 2], [1, 2, 1, 4], [1, 2, float("nan"), 4]])
def test_a_box_without_inside_is_an_error(box):
    wrong = {**CONTENT, "gnd": [{**CONTENT["gnd"][0], "bbx": box}]}
    with pytest.raises(UserError, match="q has the box .* left must be below right and top below bottom"):
        read_ground_truth(pickled(wrong))


def test_the_original_ground_truth_is_of_another_version():
    with pytest.raises(UserError, match="no field 'easy'; it is of another version"):
        read_ground_truth(pickled({**CONTENT, "gnd": [{"ok": [1], "junk": [2], "bbx": [0, 0, 1, 1]}]}))
