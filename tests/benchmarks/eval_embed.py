"""Times the embedding of JPEGs: which share of the time is spent inside the encoder."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.models.embed import embed_images, load_encoder
from evaluation.sets.images import folder_images


class Timed:
    """An encoder that adds up the seconds inside `embed_images`."""

    def __init__(self, encoder):
        self.encoder, self.seconds = encoder, 0.0
        self.hash, self.preprocessing, self.preprocess = encoder.hash, encoder.preprocessing, encoder.preprocess
        self.num_devices = encoder.num_devices

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Returns the encoder's embeddings of preprocessed `images`."""
        start = time.monotonic()
        rows = self.encoder.embed_images(images)
        self.seconds += time.monotonic() - start
        return rows


def write_jpegs(folder: Path, count: int) -> list[str]:
    """Returns the names of smooth, noisy JPEGs of 400 x 300 pixels, as photographs on the web have."""
    rng = np.random.default_rng(0)
    names = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (400, 300), Image.Resampling.BICUBIC
        )
        noisy = np.clip(np.asarray(coarse, np.int16) + rng.integers(-12, 13, (300, 400, 3), np.int16), 0, 255)
        names.append(f"{number:05d}.jpg")
        Image.fromarray(noisy.astype(np.uint8)).save(folder / names[-1], quality=85)
    return names


def write_vit(folder: Path, width: int, depth: int) -> None:
    """Writes an untrained ViT of patches of 16 at 224 pixels: its speed is that of a trained one."""
    import jax
    import jax.numpy as jnp

    from trainer.configs.experiments import get_experiment
    from trainer.encoder import Preprocessing
    from trainer.encoder.write import save_encoder
    from trainer.state import make_models

    base = get_experiment("multitask_b16")
    tower = dataclasses.replace(base.image, width=width, depth=depth, num_heads=width // 64)
    experiment = dataclasses.replace(base, image=tower, dtype="float32", remat=False)
    model = make_models(experiment).image
    size = tower.image_size_px
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]
    save_encoder(
        folder,
        image_function=lambda p, images: jnp.asarray(model.apply({"params": p}, images)),
        image_params=params,
        preprocessing=Preprocessing(image_size_px=size, antialias=False),
    )


def main() -> None:
    """Prints images per second and the share of the time inside the encoder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--encoder", help="folder of an encoder; by default an untrained ViT is made")
    parser.add_argument("--width", type=int, default=384, help="of the ViT; 384 and depth 12 is ViT-S/16")
    parser.add_argument("--depth", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "jpegs").mkdir()
        images = folder_images("jpegs", folder / "jpegs", write_jpegs(folder / "jpegs", options.count))
        if not options.encoder:
            write_vit(folder / "encoder", options.width, options.depth)
        encoder = Timed(load_encoder(options.encoder or folder / "encoder"))
        encoder.encoder.embed_images(np.zeros((1, *[encoder.encoder.image_size_px] * 2, 3), np.float32))  # compiles
        start = time.monotonic()
        embed_images(encoder, images, cache_dir=folder / "cache")
        seconds = time.monotonic() - start
        print(
            f"{options.count} JPEGs in {seconds:.1f} s, {options.count / seconds:.0f} images/s; "
            f"inside the encoder {encoder.seconds:.1f} s, {encoder.seconds / seconds:.3f} of it"
        )


if __name__ == "__main__":
    main()
