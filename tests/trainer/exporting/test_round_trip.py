"""An encoder that is exported for Hugging Face and imported again embeds as before."""

import jax
import numpy as np

from trainer import export_encoder
from trainer.encoder import Encoder
from trainer.import_encoder import Options, import_encoder

TEXTS = ["red panda", "", "Café no. 12_34", "a blue whale and a grey wolf " * 5]


def test_texts_and_pictures_are_embedded_as_before(clip_run, tmp_path, pictures):
    folder, output = str(tmp_path / "hf"), str(tmp_path / "encoder")
    export_encoder.export(export_encoder.Options(encoder=str(clip_run / "encoder"), output=folder))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        import_encoder(Options(model=folder, output=output))
        before, after = Encoder.load(clip_run / "encoder"), Encoder.load(output)
        np.testing.assert_allclose(after.embed_texts(TEXTS), before.embed_texts(TEXTS), atol=1e-5)
        np.testing.assert_allclose(after.embed_pictures(pictures), before.embed_pictures(pictures), atol=1e-5)
        assert (after.context_length, after.image_size_px) == (before.context_length, before.image_size_px)
