"""Writes the towers of an encoder as ONNX files, converted by jax2onnx and compared with JAX before they are kept.

The models are converted, not the encoder's exported programs, for which the converter has no rule; so this works for
encoders of this trainer, whatever their towers.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib.util
import json
import logging
import multiprocessing
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pipeline.schema import UserError
from pipeline.storage.disk import write_whole
from trainer.encoder.format import METADATA_FILE
from trainer.encoder.write import l2_normalise
from trainer.exporting.trained import TrainedEncoder
from trainer.state import make_models

OPSET = 23
_LARGEST_DIFFERENCE = 1e-5  # of a value of an embedding of length 1
_CHECKED_BATCHES = (1, 3)


def usage(encoder: TrainedEncoder) -> str:
    """Returns the part of the model card that says how the files are used."""
    preprocessing = encoder.preprocessing
    antialias = "with" if preprocessing.antialias else "without"
    size = preprocessing.image_size_px
    pictures = f"""Two files of ONNX, opset {OPSET}, for batches of any size; both give `embeddings`, float32
[batch, {encoder.experiment.embedding_dim}], of length 1.

`image.onnx` takes `images`, float32 [batch, {size}, {size}, 3]: the picture on white, its short side resized to {size}
pixels ({preprocessing.resize}, {antialias} antialias), the centre crop, divided by 255, less the mean
{list(preprocessing.mean)}, divided by {list(preprocessing.std)}.
"""
    if not encoder.metadata["has_text"]:
        return pictures
    return f"""{pictures}
`text.onnx` takes `tokens`, int32 [batch, {encoder.experiment.text.context_length}], of the tokenizer, which pads and
cuts:

```python
import numpy as np
import onnxruntime
import tokenizers

tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")
session = onnxruntime.InferenceSession("text.onnx")
tokens = np.array([tokenizer.encode(text).ids for text in ["a red panda", "a tree"]], np.int32)
(embeddings,) = session.run(["embeddings"], {{"tokens": tokens}})
```
"""


def differences(encoder: TrainedEncoder) -> list[str]:
    """Returns sentences on how the files differ from the encoder."""
    found = ["Rows of `image.onnx` and `text.onnx` were compared with JAX when they were written: equal to 1e-5."]
    if encoder.experiment.dtype != "float32":
        found.append(
            f"The encoder computes its matrix products in {encoder.experiment.dtype}; the files compute in float32, "
            "and equal the encoder up to that rounding."
        )
    if encoder.experiment.classifies:
        found.append("The encoder has a classifier of entities, which is not part of this folder.")
    return found


def write_onnx_folder(encoder: TrainedEncoder, output: str, *, card: str) -> None:
    """Writes `image.onnx`, where there is a text tower `text.onnx` and `tokenizer.json`, and the card to `output`.

    Raises:
        UserError: the packages are missing, a file differs from JAX, or `output` holds an encoder.
        OSError: the files cannot be written.
    """
    if os.path.exists(os.path.join(output, METADATA_FILE)):
        raise UserError(f"--output {output} is an encoder, whose files would be replaced; choose another folder")
    _check_packages()
    if encoder.metadata["has_text"]:
        encoder.read_tokenizer()
    os.makedirs(output, exist_ok=True)
    # The converter replaces functions of JAX for good, so it runs in a process of its own.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context, initializer=_start) as process:
        process.submit(_write_towers, encoder, output, _CHECKED_BATCHES, _LARGEST_DIFFERENCE).result()
    if encoder.metadata["has_text"]:
        with open(encoder.tokenizer_path, "rb") as file:
            write_whole(os.path.join(output, "tokenizer.json"), file.read())
    size = encoder.experiment.image.image_size_px
    preprocessing = {"image_size_px": size, **encoder.metadata["preprocessing"]}
    write_whole(os.path.join(output, "preprocessing.json"), json.dumps(preprocessing, indent=1).encode())
    write_whole(os.path.join(output, "README.md"), card.encode())


def _start() -> None:
    """Prepares the process of the converter: an accelerator's memory may be taken by the one that started it."""
    jax.config.update("jax_platforms", "cpu")
    # The converter reports at length that it skips plugins for libraries that are not used here.
    logging.getLogger("jax2onnx").setLevel(logging.ERROR)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)


def _write_towers(encoder: TrainedEncoder, output: str, batches: tuple[int, ...], largest_difference: float) -> None:
    """Writes `image.onnx`, and where there is a text tower `text.onnx`."""
    # What changes how a tower runs, not what it computes, and what ONNX does not have.
    plain = dataclasses.replace(encoder.experiment, scan_layers=False, remat="none", dtype="float32")
    models, weights = make_models(plain), encoder.read_weights()
    size, random, most = plain.image.image_size_px, np.random.default_rng(0), max(batches)
    write = functools.partial(_write, batches=batches, largest_difference=largest_difference)
    write(
        os.path.join(output, "image.onnx"),
        _embed(models.image, _nested(weights, "image/")),
        input_name="images",
        examples=random.normal(size=(most, size, size, 3)).astype(np.float32),
    )
    if models.text is not None:
        length = plain.text.context_length
        tokens = random.integers(0, plain.text.vocabulary_size, (most, length), np.int32)
        tokens[1, length // 2 :] = 0  # a padded text
        write(
            os.path.join(output, "text.onnx"),
            _embed(models.text, _nested(weights, "text/")),
            input_name="tokens",
            examples=tokens,
        )


def _check_packages() -> None:
    missing = [name for name in ("jax2onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format onnx needs {' and '.join(missing)}; install the extra: pip install '.[onnx]'")


def _embed(model: Any, params: Any) -> Callable[[jax.Array], jax.Array]:
    return lambda values: l2_normalise(model.apply({"params": params}, values))


def _nested(weights: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name, value in weights.items():
        if name.startswith(prefix):
            *parents, last = name.removeprefix(prefix).split("/")
            inner = params
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = jnp.asarray(value)
    return params


def _write(
    path: str,
    function: Callable[[jax.Array], jax.Array],
    *,
    input_name: str,
    examples: np.ndarray,
    batches: tuple[int, ...],
    largest_difference: float,
) -> None:
    """Writes `function` of rows like those of `examples`, for any number of rows, and compares it with JAX."""
    import jax2onnx
    import onnxruntime

    rows = jax.ShapeDtypeStruct(("batch", *examples.shape[1:]), examples.dtype)
    with contextlib.suppress(FileNotFoundError):
        os.remove(f"{path}.data")  # of an earlier export: large tensors lie in such a file
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as folder:
        made = os.path.join(folder, os.path.basename(path))
        # The converter asks for float64 now and then and gets float32, as the comparison below shows.
        with jax.default_matmul_precision("highest"), warnings.catch_warnings(action="ignore"):
            jax2onnx.to_onnx(
                function,
                inputs=[rows],
                opset=OPSET,
                return_mode="file",
                output_path=made,
                input_names=[input_name],
                output_names=["embeddings"],
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        session = onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"])
        for count in batches:
            (actual,) = session.run(["embeddings"], {input_name: examples[:count]})
            expected = np.asarray(jax.jit(function)(jnp.asarray(examples[:count])))
            difference = float(np.abs(actual - expected).max())
            if not difference <= largest_difference:
                raise UserError(
                    f"{os.path.basename(path)} differs from the encoder by {difference:.1e}, more than "
                    f"{largest_difference:.0e}, so it was not written; use the encoder itself"
                )
        names = os.listdir(folder)
        for name in names:
            # The converter creates the file of large tensors so that only its owner can read it.
            shutil.copymode(made, os.path.join(folder, name))
        for name in names:
            os.replace(os.path.join(folder, name), os.path.join(os.path.dirname(path), name))
