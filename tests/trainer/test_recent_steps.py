import numpy as np
import pytest

from pipeline.schema import UserError
from trainer import recent_steps
from trainer.recent_steps import RecentSteps


class Record:
    def __init__(self, position):
        self.image_id = f"i{position}"


class Recorder:
    """A set of which every record exists."""

    def __getitem__(self, position):
        return Record(position)


def step(**changes):
    metrics = {"loss": np.float32(1), "gradient_norm": np.float32(2), "contrastive_loss": np.float32(3)}
    return {
        **metrics,
        "finite_gradients": np.asarray([True, True]),
        "finite_params": np.asarray([True, True]),
        **changes,
    }


PARAMS = {"image": {"bias": np.zeros(1), "kernel": np.zeros(1)}}
NAN, INF = np.float32("nan"), np.float32("inf")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"contrastive_loss": INF, "loss": INF, "gradient_norm": NAN}, "contrastive_loss is inf"),
        ({"loss": NAN, "gradient_norm": NAN}, "loss is nan"),
        (
            {"finite_gradients": np.asarray([True, False]), "gradient_norm": NAN},
            "the gradient of image/kernel is not finite",
        ),
        ({"finite_params": np.asarray([False, False])}, "the update of image/bias is not finite"),
        ({"gradient_norm": INF}, "gradient_norm is inf"),
    ],
)
def test_the_first_step_and_its_first_number_are_named(tmp_path, changes, fault):
    recent = RecentSteps(str(tmp_path), Recorder(), PARAMS)
    recent.add(1, step(), np.asarray([8, 9]))
    recent.add(2, step(**changes), np.asarray([4, 5, 6, 7]))
    recent.add(3, step(loss=NAN), np.asarray([1, 2]))
    with pytest.raises(UserError, match=f"^{fault} at step 2, whose images were i4, i5, i6 and 1 more, see {tmp_path}"):
        recent.looked_at()


def test_the_metrics_of_the_last_step_are_returned_and_the_others_forgotten(tmp_path):
    recent = RecentSteps(str(tmp_path), Recorder(), PARAMS)
    recent.add(1, step(), np.asarray([8]))
    recent.add(2, step(loss=np.float32(0.5)), np.asarray([9]))
    assert recent.looked_at() == {"loss": 0.5, "gradient_norm": 2.0, "contrastive_loss": 3.0}
    assert str(recent.stopped(2, "x")).startswith("x at step 2, whose images were i9 and 0 more")


def test_no_more_than_two_steps_are_queued(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(recent_steps.jax, "block_until_ready", lambda metrics: waited.append(metrics["loss"]))
    recent = RecentSteps(str(tmp_path), Recorder(), PARAMS)
    for number in range(1, 6):
        recent.add(number, step(loss=np.float32(number)), np.asarray([0]))
    assert waited == [1, 2, 3]
