"""The state that a run starts from."""

import jax
import numpy as np
import pytest

from trainer import run as run_module
from trainer.configs.base import override
from trainer.data import open_corpus
from trainer.mesh import make_mesh
from trainer.run import make_run, new_state


@pytest.fixture
def start(write_set, tiny, tmp_path):
    """The parameters at step 0, with and without scaling by data."""

    def made(scaled):
        changes = ["loss.contrastive_weight=0", "optimizer.kind=adamw", f"image.scale_init_by_data={scaled}"]
        experiment = override(tiny, changes)
        if not (tmp_path / "set").exists():
            write_set(tmp_path / "set")
        corpus = open_corpus(str(tmp_path / "set"), experiment)
        return jax.device_get(new_state(make_run(experiment, corpus, make_mesh(1, 1), str(tmp_path))).params)

    return made


def test_images_are_read_before_the_first_step_only_where_they_scale_parameters(start, monkeypatch):
    scaled, plain = start("true"), start("false")
    # A bias centres the outputs of the head on the images.
    assert np.any(scaled["image"]["head"]["bias"]) and "bias" not in plain["image"]["head"]
    np.testing.assert_array_equal(scaled["class_vectors"], plain["class_vectors"])
    monkeypatch.setattr(run_module, "first_images", None)
    jax.tree.map(np.testing.assert_array_equal, start("false"), plain)
    with pytest.raises(TypeError):
        start("true")
