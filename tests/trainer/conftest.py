"""Tiny sets and a tiny experiment."""

import io
import json
import pathlib

import jax
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from pipeline.schema import LabelledImage
from pipeline.shard_format import FORMAT_VERSION, ShardWriter
from pipeline.storage.disk import CACHE_VARIABLE
from tests.trainer.sets import NAMES
from trainer import peak
from trainer.configs.base import Data, Experiment, ImageTower, Loss, Optimizer, TextTower
from trainer.train import train


@pytest.fixture(scope="session", autouse=True)
def copies_are_kept_apart(tmp_path_factory):
    """What the tests' sets keep on this machine is not left in the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, write_set, small):
    """A run of the module's experiment `small` that has ended: (set, workdir)."""
    directory = tmp_path_factory.mktemp("finished")
    data = write_set(directory / "set")
    train(small, data=data, workdir=str(directory / "run"), mesh="1x1")
    return data, directory / "run"


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """What one test compiled is read back by the next: many train on the same program.

    The folder is that of this worker alone: JAX does not write in it as a whole, so that a process that reads while
    another writes would meet a part of a program.
    """
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session", autouse=True)
def quick_peak():
    """Each run measures the matmul peak that its rate is compared with: half a second of two cores at full size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peak, "_SIDE", 64)
        yield


@pytest.fixture(scope="module", autouse=True)  # without packages, "package" would last to the end of all tests
def strict_promotion():
    """Operations on mixed dtypes or ranks raise in the tests of this package."""
    strict = {"jax_numpy_dtype_promotion": "strict", "jax_numpy_rank_promotion": "raise"}
    before = {name: getattr(jax.config, name) for name in strict}
    with pytest.MonkeyPatch.context() as patch:
        # optax raises a float to the power of its integer step count.
        for module, name in ((optax, "adamw"), (optax, "scale_by_learning_rate"), (optax.contrib, "muon")):
            patch.setattr(module, name, optimizer_with_standard_promotion(getattr(module, name)))
        for name, value in strict.items():
            jax.config.update(name, value)
        yield
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.fixture
def mixed_dtypes():
    """For towers in bfloat16: layers of flax and the attention of JAX mix it with float32 on purpose."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def optimizer_with_standard_promotion(make):
    def made(*args, **kwargs):
        optimizer = make(*args, **kwargs)

        def update(*args, **kwargs):
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                return optimizer.update(*args, **kwargs)

        return optax.GradientTransformationExtraArgs(optimizer.init, update)

    return made


@pytest.fixture(scope="session")
def write_set():
    return make_set


@pytest.fixture(scope="session")
def tiny():
    return TINY


TINY = Experiment(
    name="tiny",
    steps=10,
    embedding_dim=8,
    image=ImageTower(
        image_size_px=8,
        patch_px=4,
        stem_fold_px=2,
        stem_channels=8,
        width=16,
        depth=1,
        num_heads=2,
        mlp_ratio=2,
        pool="flatten",
        scale_init_by_data=True,
    ),
    text=TextTower(vocabulary_size=300, context_length=12, width=16, depth=1, num_heads=2, mlp_ratio=2, pool="mean"),
    loss=Loss(tile_classes=2),
    data=Data(batch_size=16, threads=1),
    optimizer=Optimizer(kind="muon", learning_rate=1e-3, warmup_steps=2, weight_decay=0.0),
    log_every=1,
    checkpoint_every=4,
)


def make_set(directory: pathlib.Path, *, kind: str = "i2e", version: int = FORMAT_VERSION, images: int = 40) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    shards = []
    for shard in range(2):
        name = f"shard-{shard:05}.tfrecord"
        with ShardWriter(directory / name) as writer:
            for row in range(images // 2):
                pixels = random.integers(0, 256, (10, 9, 3), dtype=np.uint8)
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "PNG")
                classes = tuple(sorted({row % 5, (row * 3 + shard) % 5})) if kind == "i2e" else ()
                writer.write(
                    LabelledImage(
                        image=buffer.getvalue(),
                        image_id=f"{shard}-{row}",
                        text=f"{NAMES[row % 5]} picture {row}",
                        width_px=9,
                        height_px=10,
                        entity_ids=tuple(f"Q{c}" for c in classes),
                        class_ids=classes,
                        similarities=tuple((1 + (row + one) % 8) / 10 for one in classes),
                    )
                )
        stated = {"min_class_id": 0, "max_class_id": 4, "most_entities": 2} if kind == "i2e" else {}
        shards.append({"file": name, "num_records": images // 2, "sha256": str(shard), **stated})
    if kind == "i2e":
        with open(directory / "vocabulary.jsonl", "w") as file:
            for class_id, entity in enumerate(NAMES):
                row = {"class_id": class_id, "entity_id": f"Q{class_id}", "name": entity}
                file.write(json.dumps({**row, "description": "a thing", "image_count": 8}) + "\n")
    manifest = {"format_version": version, "kind": kind, "shards": shards, "num_classes": 5}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return str(directory)
