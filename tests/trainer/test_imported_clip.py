"""A training run starts from an imported CLIP: its towers embed as the CLIP does."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from pipeline.schema import UserError
from tests.trainer.importing import published
from trainer.configs.base import Experiment, ImageTower, Loss, TextTower, override
from trainer.encoder import Encoder
from trainer.import_encoder import Options, import_encoder
from trainer.init_from import check_fields, read_source, read_tokenizer, with_source
from trainer.mesh import make_mesh
from trainer.optimizer import make_optimizer
from trainer.state import init_state, make_models
from trainer.train import train

TEXTS = ["a photo of a cat", "!", "", "stop! now! at the café!", "dog " * 200]


def experiment_for(folder, activation):
    vocabulary = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    tower = {"width": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2, "activation": activation, "norm_epsilon": 1e-5}
    return Experiment(
        name="from_clip",
        steps=1,
        embedding_dim=24,
        image=ImageTower(image_size_px=32, patch_px=8, pre_norm=True, **tower),
        text=TextTower(vocabulary_size=vocabulary + 1, context_length=16, **tower),
        loss=Loss(classification_weight=0.0, contrastive_weight=1.0),
    )


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def clip(request, tmp_path_factory):
    """Returns (folder of the encoder, config of towers of its kind)."""
    folder = published.clip(tmp_path_factory.mktemp("clip") / "model", hidden_act=request.param)
    output = folder.parent / "encoder"
    import_encoder(Options(model=str(folder), output=str(output)))
    return output, experiment_for(folder, request.param)


def started(experiment, path):
    images = np.zeros((1, 32, 32, 3), np.float32)
    optimizer = make_optimizer(experiment.optimizer, experiment.steps)
    state = init_state(experiment, make_models(experiment), optimizer, make_mesh(1, 1), 0, images)
    source = read_source(str(path))
    check_fields(source, experiment)
    return with_source(state, source, ())


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("scan", [False, True])
def test_the_towers_of_a_run_that_starts_from_a_clip_embed_as_it_does(clip, scan):
    path, experiment = clip
    experiment = dataclasses.replace(experiment, scan_layers=scan)
    state, lines = started(experiment, path)
    assert "log_scale: taken" in lines
    weights = safetensors.numpy.load_file(path.parent / "model" / "model.safetensors")
    np.testing.assert_allclose(state.params["log_scale"], weights["logit_scale"], rtol=1e-6)
    models, encoder = make_models(experiment), Encoder.load(path, batch_size=5)
    images = np.random.default_rng(0).normal(size=(5, 32, 32, 3)).astype(np.float32)
    ours = models.image.apply({"params": state.params["image"]}, images)
    np.testing.assert_allclose(unit(np.asarray(ours)), encoder.embed_images(images), atol=1e-5)
    tokenizer = read_tokenizer(str(path))
    tokens = np.asarray([encoded.ids for encoded in tokenizer.encode_batch(TEXTS)], np.int32)
    assert tokens.shape == (5, 16) and (tokens[2, 2:] == 0).all() and (tokens[:, :2] > 0).all()
    ours = models.text.apply({"params": state.params["text"]}, tokens)
    np.testing.assert_allclose(unit(np.asarray(ours)), encoder.embed_texts(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ("image.activation=gelu_tanh", "image.activation="),
        ("text.num_heads=2", "text.num_heads=4"),
        ("image.norm_epsilon=1e-6", "image.norm_epsilon=1e-05"),
        ("image.pre_norm=false", "image.pre_norm=True"),
    ],
)
def test_towers_that_compute_otherwise_are_refused_with_what_to_set(clip, change, setting):
    path, experiment = clip
    message = f"^init_from {path} was trained in towers of another kind; give --set {setting}"
    with pytest.raises(UserError, match=message):
        started(override(experiment, [change]), path)


def test_a_run_trains_from_a_clip_and_keeps_its_tokenizer(clip, write_set, tmp_path, capsys):
    path, experiment = clip
    experiment = override(experiment, [f"init_from={path}", "data.batch_size=8", "data.threads=1"])
    train(experiment, data=write_set(tmp_path / "set"), workdir=str(tmp_path / "run"), mesh="1x1")
    assert f"initial parameters from {path}: image tower: 41 arrays taken; text tower: 37 " in capsys.readouterr().out
    trained, tokenizer = Encoder.load(tmp_path / "run" / "encoder"), read_tokenizer(str(path))
    assert trained._tokenizer.encode("a photo").ids == tokenizer.encode("a photo").ids
    # One step at the start of the warm-up hardly changes what texts mean.
    assert (trained.embed_texts(TEXTS) * Encoder.load(path).embed_texts(TEXTS)).sum(axis=1).min() > 0.9
    assert jax.tree.leaves(trained.image_params)[0].dtype == np.float32


def test_models_of_other_layers_cannot_start_a_run(tmp_path):
    folder = published.vit(tmp_path / "model")
    import_encoder(Options(model=str(folder), output=str(tmp_path / "encoder")))
    message = f"^init_from {tmp_path}/encoder is an imported vit, whose layers are not those of our towers; a CLIP that"
    with pytest.raises(UserError, match=message):
        read_source(str(tmp_path / "encoder"))
