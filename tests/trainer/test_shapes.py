import numpy as np

from trainer.shapes import shapes_of, shapes_that_differ


def test_shapes_are_named_by_their_path():
    assert shapes_of({"image": {"head": {"kernel": np.zeros((3, 2))}}, "log_scale": np.float32(0)}) == {
        "image/head/kernel": (3, 2),
        "log_scale": (),
    }


def test_the_first_five_that_differ_are_named():
    here = {f"{name}/bias": (2,) for name in "abcdefg"}
    assert shapes_that_differ(here, here) == ""
    assert shapes_that_differ({**here, "a/bias": (3,)}, here) == "a/bias: (3,) there, (2,) here"
    five = "; ".join(f"{name}/bias: absent there, (2,) here" for name in "abcde")
    assert shapes_that_differ({}, here) == f"{five}, and 2 more"
    five = "; ".join(f"{name}/bias: (2,) there, absent here" for name in "abcde")
    assert shapes_that_differ({name: here[name] for name in list(here)[:5]}, {}) == five
