"""ONNX files of the towers, run by onnxruntime, embed as the encoder does."""

import importlib.util
import re
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from pipeline.schema import UserError
from trainer import export_encoder
from trainer.configs.base import override
from trainer.encoder import Encoder
from trainer.exporting import onnx as onnx_module
from trainer.train import train

TEXTS = ["red panda", "", "a blue whale and a grey wolf and a white owl under a green tree"]


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory, write_set, tiny):
    """The workdir of a run with the demo's towers: a folded stem, all tokens side by side, texts by their mean.

    The table of its tokens has 1.28 MB, which is too much for a tensor inside the file.
    """
    directory = tmp_path_factory.mktemp("demo")
    shape = override(
        tiny, ["steps=2", "optimizer.kind=adamw", "loss.classification_weight=0", "text.vocabulary_size=20000"]
    )
    train(shape, data=write_set(directory / "set"), workdir=str(directory / "run"), mesh="1x1")
    return directory / "run"


def export(run, output):
    export_encoder.export(export_encoder.Options(encoder=str(run / "encoder"), output=str(output), format="onnx"))


def run_file(path, inputs):
    (name,) = inputs
    (embedded,) = onnxruntime.InferenceSession(path).run(["embeddings"], {name: inputs[name]})
    return embedded


@pytest.mark.parametrize("which", ["clip_run", "demo_run"])
def test_both_towers_embed_as_the_encoder(which, request, tmp_path, pictures):
    run = request.getfixturevalue(which)
    export(run, tmp_path / "onnx")
    encoder = Encoder.load(run / "encoder")
    rows = np.stack([encoder.preprocess(picture) for picture in pictures])
    embedded = run_file(tmp_path / "onnx" / "image.onnx", {"images": rows})
    np.testing.assert_allclose(embedded, encoder.embed_images(rows), atol=1e-5)
    (code,) = re.findall(r"^```python\n(.*?)^```$", (tmp_path / "onnx" / "README.md").read_text(), re.M | re.S)
    scope = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "onnx")
        exec(code.replace('["a red panda", "a tree"]', repr(TEXTS)), scope)
    np.testing.assert_allclose(scope["embeddings"], encoder.embed_texts(TEXTS), atol=1e-5)
    beside = tmp_path / "onnx" / "text.onnx.data"
    assert beside.exists() == (which == "demo_run")
    assert not beside.exists() or beside.stat().st_mode == (tmp_path / "onnx" / "text.onnx").stat().st_mode
    model = onnx.load(tmp_path / "onnx" / "image.onnx")
    assert [(one.domain, one.version) for one in model.opset_import] == [("", onnx_module.OPSET)]
    assert f"opset {onnx_module.OPSET}" in (tmp_path / "onnx" / "README.md").read_text()


def test_the_converter_leaves_jax_as_it_was(clip_run, tmp_path):
    before = dict(vars(jnp))
    export(clip_run, tmp_path / "onnx")
    assert "jax2onnx" not in sys.modules and {**vars(jnp)} == before


def test_an_image_tower_alone_has_one_file(clip_run, tmp_path, write_set, tiny):
    shape = override(tiny, ["steps=2", "optimizer.kind=adamw", "loss.contrastive_weight=0"])
    train(shape, data=write_set(tmp_path / "set"), workdir=str(tmp_path / "run"), mesh="1x1")
    export(tmp_path / "run", tmp_path / "onnx")
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {"image.onnx", "preprocessing.json", "README.md"}
    assert "text.onnx" not in (tmp_path / "onnx" / "README.md").read_text().replace("`text.onnx` were", "")


def test_a_file_that_differs_is_not_written(clip_run, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_module, "_LARGEST_DIFFERENCE", 0.0)
    monkeypatch.setattr(onnx_module, "_CHECKED_BATCHES", (2, 3))
    with pytest.raises(UserError, match=r"^image.onnx differs from the encoder by \d\.\de-\d\d, more than 0e\+00"):
        export(clip_run, tmp_path / "onnx")
    assert list((tmp_path / "onnx").iterdir()) == []


def test_missing_packages_are_named_with_the_extra(clip_run, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jax2onnx" else found(name))
    with pytest.raises(UserError, match=r"^--format onnx needs jax2onnx; install the extra: pip install '.\[onnx\]'$"):
        export(clip_run, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_an_encoder_is_not_mixed_with_onnx_files(clip_run, tmp_path):
    shutil.copytree(clip_run / "encoder", tmp_path / "onnx")
    with pytest.raises(UserError, match=r"onnx is an encoder, whose files would be replaced; choose another folder$"):
        export(clip_run, tmp_path / "onnx")
