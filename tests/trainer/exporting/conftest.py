"""A trained encoder of the shape of CLIP, and pictures."""

import numpy as np
import pytest
from PIL import Image

from trainer.configs.base import override
from trainer.train import train

CLIP_SHAPE = (
    "optimizer.kind=adamw",
    "image.scale_init_by_data=false",
    "image.stem_fold_px=0",
    "image.pool=class_token",
    "image.pre_norm=true",
    "image.depth=2",
    "text.pool=last",
    "text.depth=2",
    "text.activation=quick_gelu",
    "text.norm_epsilon=1e-5",
    "scan_layers=true",
    "steps=2",
)


@pytest.fixture(scope="session")
def clip_run(tmp_path_factory, write_set, tiny):
    """The workdir of a run, whose scanned towers have the parts of B/16's."""
    directory = tmp_path_factory.mktemp("clip")
    data = write_set(directory / "set")
    train(override(tiny, CLIP_SHAPE), data=data, workdir=str(directory / "run"), mesh="1x1")
    return directory / "run"


@pytest.fixture(scope="session")
def pictures():
    """Sizes above, at and below the encoder's 8 pixels, in colour and grey, none of which is resized to 8 + 3 mod 4."""
    random = np.random.default_rng(0)
    sizes = [(8, 8), (24, 16), (9, 8), (50, 20), (16, 25), (5, 5)]
    coloured = [Image.fromarray(random.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]
    return [*coloured, Image.fromarray(random.integers(0, 256, (33, 44), np.uint8))]
