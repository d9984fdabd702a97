"""An imported model against torch: speed, parity in full shape, memory of the import, size on disk."""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = {
    "clip_b32": {
        "text_config": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8},
        "vision_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "patch_size": 32},
        "projection_dim": 512,
    },
    "clip_l14": {
        "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
        },
        "projection_dim": 768,
    },
}
# Runs in a process of its own, which says what the import took above what the libraries take.
IMPORT = """
import json, sys, time
import torch, torchax, transformers, jax
from trainer.import_encoder import Options, import_encoder
def kilobytes(name):  # of this program alone: getrusage would count the one that started it
    return int(open("/proc/self/status").read().split(name + ":")[1].split()[0])
before, start = kilobytes("VmRSS"), time.perf_counter()
import_encoder(Options(model=sys.argv[1], output=sys.argv[2]))
took = time.perf_counter() - start
print(json.dumps({"peak_bytes": 1024 * (kilobytes("VmHWM") - before), "seconds": took}))
"""


def saved(name: str, folder: Path, dtype: str, tokenizer: Path) -> None:
    """Saves a CLIP of full shape with random weights, and the tokenizer of folder `tokenizer`."""
    import torch
    import transformers

    torch.manual_seed(0)
    pieces = transformers.AutoTokenizer.from_pretrained(tokenizer)
    config = transformers.CLIPConfig(**SHAPES[name])
    config.text_config.eos_token_id = pieces.eos_token_id
    transformers.CLIPModel(config).to(getattr(torch, dtype)).save_pretrained(folder)
    transformers.CLIPImageProcessor().save_pretrained(folder)
    pieces.save_pretrained(folder)


def imported(folder: Path, output: Path) -> dict[str, Any]:
    """Imports in a process of its own; returns its peak of memory above its start, and its seconds."""
    command = [sys.executable, "-c", IMPORT, str(folder), str(output)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def unit(vectors: np.ndarray) -> np.ndarray:
    """Returns the vectors at length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="clip_b32")
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="of the weights in the folder"
    )
    parser.add_argument("--batch", type=int, default=16, help="pictures, and texts, a call")
    parser.add_argument("--repeats", type=int, default=5, help="0: memory and disk alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        measure(options, Path(directory))


def measure(options: argparse.Namespace, directory: Path) -> None:
    """Prints the figures of one shape."""
    folder, output = directory / "model", directory / "encoder"
    builders = runpy.run_path(str(Path(__file__).parents[1] / "trainer" / "importing" / "published.py"))
    builders["clip_tokenizer"](directory / "tokenizer")
    saved(options.shape, folder, options.dtype, directory / "tokenizer")
    weights = (folder / "model.safetensors").stat().st_size
    took = imported(folder, output)
    on_disk = sum(path.stat().st_size for path in output.iterdir())
    print(f"{options.shape}, {options.dtype}: weights {weights / 1e9:.3f} GB, import {took['seconds']:.1f} s")
    print(f"  peak of the import above its start {took['peak_bytes'] / weights:.2f} x the weights")
    print(f"  size on disk {on_disk / weights:.3f} x the weights")
    if options.repeats:
        against_torch(options, folder, output)


def against_torch(options: argparse.Namespace, folder: Path, output: Path) -> None:
    """Prints speed and parity against torch, call by call in turns."""
    import torch
    import transformers

    from trainer.encoder import Encoder

    encoder = Encoder.load(output, batch_size=options.batch)
    model = transformers.CLIPModel.from_pretrained(folder).float().eval()
    size = encoder.image_size_px
    pixels = np.random.default_rng(0).normal(size=(options.batch, size, size, 3)).astype(np.float32)
    texts = [f"a photo of a cat, number {number}" for number in range(options.batch)]
    tokens = torch.tensor([one.ids for one in encoder._tokenizer.encode_batch(texts)])  # type: ignore[union-attr]
    channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    calls = {
        "pictures": (
            lambda: encoder.embed_images(pixels),
            lambda: model.get_image_features(pixel_values=channels_first),
        ),
        "texts": (lambda: encoder.embed_texts(texts), lambda: model.get_text_features(input_ids=tokens)),
    }
    with torch.inference_mode():
        for what, pair in calls.items():
            ours, theirs = (np.asarray(call()) for call in pair)
            seconds = np.zeros((options.repeats, 2))
            for repeat in range(options.repeats):
                for which, call in enumerate(pair):
                    start = time.perf_counter()
                    call()
                    seconds[repeat, which] = time.perf_counter() - start
            mine, torchs = seconds.min(axis=0)  # of several: others may use the machine too
            print(
                f"  {options.batch} {what}: {mine:.3f} s, torch {torchs:.3f} s: {torchs / mine:.2f} x its speed; "
                f"greatest difference {np.abs(ours - unit(theirs)).max():.1e}"
            )


if __name__ == "__main__":
    main()
