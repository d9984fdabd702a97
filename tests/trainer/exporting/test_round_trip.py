"""An encoder that is exported for Hugging Face and imported again embeds as before."""

import json

import jax
import numpy as np
import pytest
import transformers

from tests.trainer.importing import published
from trainer import export_encoder
from trainer.configs.base import Experiment, ImageTower, Loss, TextTower, override
from trainer.encoder import Encoder
from trainer.import_encoder import Options, import_encoder
from trainer.train import train

TEXTS = ["red panda", "", "Café no. 12_34", "a blue whale and a grey wolf " * 5, "<eos> <pad>"]


@pytest.fixture(autouse=True)
def promotion_of_torchax():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_texts_and_pictures_are_embedded_as_before(clip_run, tmp_path, pictures):
    folder, output = str(tmp_path / "hf"), str(tmp_path / "encoder")
    export_encoder.export(export_encoder.Options(encoder=str(clip_run / "encoder"), output=folder))
    import_encoder(Options(model=folder, output=output))
    before, after = Encoder.load(clip_run / "encoder"), Encoder.load(output)
    np.testing.assert_allclose(after.embed_texts(TEXTS), before.embed_texts(TEXTS), atol=1e-5)
    np.testing.assert_allclose(after.embed_pictures(pictures), before.embed_pictures(pictures), atol=1e-5)
    assert (after.context_length, after.image_size_px) == (before.context_length, before.image_size_px)


def test_a_run_that_started_from_a_published_clip_is_exported_with_its_tokenizer(tmp_path, write_set, pictures):
    folder = published.clip(tmp_path / "model", hidden_act="quick_gelu")
    import_encoder(Options(model=str(folder), output=str(tmp_path / "imported")))
    vocabulary = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    tower = {"width": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2, "activation": "quick_gelu", "norm_epsilon": 1e-5}
    experiment = Experiment(
        name="from_clip",
        steps=1,
        embedding_dim=24,
        image=ImageTower(image_size_px=32, patch_px=8, pre_norm=True, **tower),
        text=TextTower(vocabulary_size=vocabulary + 1, context_length=16, **tower),
        loss=Loss(classification_weight=0.0, contrastive_weight=1.0),
    )
    experiment = override(experiment, [f"init_from={tmp_path / 'imported'}", "data.batch_size=8", "data.threads=1"])
    train(experiment, data=write_set(tmp_path / "set"), workdir=str(tmp_path / "run"), mesh="1x1")
    encoder = Encoder.load(tmp_path / "run" / "encoder")
    export_encoder.export(
        export_encoder.Options(encoder=str(tmp_path / "run" / "encoder"), output=str(tmp_path / "hf"))
    )
    model, processor = (
        kind.from_pretrained(tmp_path / "hf") for kind in (transformers.AutoModel, transformers.AutoProcessor)
    )
    outputs = model(**processor(text=TEXTS, images=pictures[:2], return_tensors="pt"))
    for theirs, ours in (
        (outputs.text_embeds, encoder.embed_texts(TEXTS)),
        (outputs.image_embeds, encoder.embed_pictures(pictures[:2])),
    ):
        np.testing.assert_allclose(theirs.detach().numpy(), ours, atol=1e-5)
