"""Folders of published models become encoders that embed pictures and texts as the source does."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.trainer.importing import published
from trainer.encoder import Encoder
from trainer.import_encoder import Options, import_encoder

PAIRS = ("clip", "siglip", "siglip2", "dual_encoder")
IMAGE_ONLY = ("vit", "dinov2", "dinov3")


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Returns (folder, encoder) of a family; each is made once."""
    made = {}

    def of(name):
        if name not in made:
            folder = getattr(published, name)(tmp_path_factory.mktemp(name) / "model")
            output = tmp_path_factory.mktemp(name) / "encoder"
            import_encoder(Options(model=str(folder), output=str(output)))
            made[name] = folder, Encoder.load(output, batch_size=4)
        return made[name]

    return of


def unit(vectors):
    vectors = vectors.detach().float().numpy()
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def source_images(name, folder, paths):
    """Embeddings by the source's own code, from picture files."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=name == "dinov3")
    pictures = [Image.open(path).convert("RGB") for path in paths]
    pixels = torch.cat([processor(images=[one], return_tensors="pt")["pixel_values"] for one in pictures])
    return embedded_by_source(name, folder, pixels)


def embedded_by_source(name, folder, pixels):
    model = transformers.AutoModel.from_pretrained(folder).eval().float()
    with torch.no_grad():
        if name in IMAGE_ONLY:
            return unit(model(pixel_values=pixels).last_hidden_state[:, 0])
        return unit(model.get_image_features(pixel_values=pixels))


def source_texts(name, folder, texts):
    """Embeddings by the source's own code, from strings."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    of_siglip = name.startswith("siglip")
    if name == "siglip2":  # trained on lower case
        texts = [text.lower() for text in texts]
    padding, length = "max_length" if of_siglip else True, 64 if name == "siglip2" else 16
    tokens = tokenizer(texts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(folder).eval().float()
    names = ("input_ids",) if of_siglip else ("input_ids", "attention_mask")
    with torch.no_grad():
        return unit(model.get_text_features(**{key: tokens[key] for key in names}))


@pytest.mark.parametrize("name", [*PAIRS, *IMAGE_ONLY])
def test_pictures_are_embedded_as_the_source_does(name, imported, tmp_path):
    folder, encoder = imported(name)
    paths = published.pictures(tmp_path)
    actual = encoder.embed_images(np.stack([encoder.preprocess(Image.open(path)) for path in paths]))
    expected = source_images(name, folder, paths)
    assert np.abs(expected[0] - expected[1]).max() > 0.05  # they differ from each other
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("name", [*PAIRS, *IMAGE_ONLY])
def test_equal_pixels_have_equal_embeddings(name, imported):
    folder, encoder = imported(name)
    pixels = np.random.default_rng(3).normal(size=(5, 32, 32, 3)).astype(np.float32)
    expected = embedded_by_source(name, folder, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    np.testing.assert_allclose(encoder.embed_images(pixels), expected, atol=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_texts_are_embedded_as_the_source_does(name, imported):
    folder, encoder = imported(name)
    expected = source_texts(name, folder, published.TEXTS)
    assert np.abs(expected[0] - expected[1]).max() > 0.02
    np.testing.assert_allclose(encoder.embed_texts(published.TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("name", [*PAIRS, *IMAGE_ONLY])
def test_pixels_are_those_of_the_sources_processor_to_one_grey_level(name, imported, tmp_path):
    folder, encoder = imported(name)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=name == "dinov3")
    std = np.asarray(encoder.preprocessing.std, np.float32)
    for path in published.pictures(tmp_path):
        picture = Image.open(path)
        given = picture.convert("RGB") if name in ("siglip", "siglip2", "dinov3") else picture  # these do not convert
        expected = processor(images=[given], return_tensors="pt")["pixel_values"][0].permute(1, 2, 0).numpy()
        levels = np.abs(encoder.preprocess(picture) - expected) * std * 255
        assert levels.max() <= 1.001


def test_a_fast_processor_of_tensors_crops_at_the_same_place(tmp_path):
    folder = published.clip(tmp_path / "model")
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    fast = transformers.CLIPImageProcessorFast(**size)
    fast.save_pretrained(folder)
    import_encoder(Options(model=str(folder), output=str(tmp_path / "encoder")))
    encoder = Encoder.load(tmp_path / "encoder")
    std = np.asarray(encoder.preprocessing.std, np.float32)
    # 67 x 45 becomes 47 x 32: half the surplus of 15 is 7.5.
    for path in published.pictures(tmp_path / "pictures"):
        picture = Image.open(path).convert("RGB")
        expected = fast(images=[picture], return_tensors="pt")["pixel_values"][0].permute(1, 2, 0).numpy()
        levels = np.abs(encoder.preprocess(picture) - expected) * std * 255
        # Its bicubic filter has coarser weights than Pillow's.
        assert levels.max() <= 2.001 and (levels > 0.5).mean() < 0.01


@pytest.mark.parametrize("name", [*PAIRS, *IMAGE_ONLY])
def test_weights_are_on_disk_once_and_each_can_be_trained(name, imported):
    folder, encoder = imported(name)
    assert all(np.issubdtype(value.dtype, np.floating) for value in encoder.image_params.values())
    model = transformers.AutoModel.from_pretrained(folder)
    sizes = {key: value.numel() for key, value in model.named_parameters()}
    # The pooler of the ViT is left out, and so are the scale and bias of the logits.
    unused = [key for key in sizes if (name == "vit" and "pooler" in key) or key in ("logit_scale", "logit_bias")]
    held = sum(value.size for params in (encoder.image_params, encoder._text_params) for value in params.values())
    kept = sum(sizes.values()) - sum(sizes[key] for key in unused)
    if name == "dinov2":  # positions of 4 x 4 patches in place of 7 x 7
        kept -= (7 * 7 - 4 * 4) * 32
    assert held == kept


def test_what_is_known_of_the_source_is_in_the_provenance(tmp_path):
    folder = published.vit(tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# A model\n")
    import_encoder(Options(model=str(folder), output=str(tmp_path / "encoder")))
    provenance = json.loads((tmp_path / "encoder" / "encoder.json").read_text())["provenance"]
    assert provenance["imported_from"] == {
        "model": str(folder),
        "model_type": "vit",
        "class": "ViTModel",
        "revision": None,
        "family": "vit",
        "licence": "apache-2.0",
    }
    assert set(provenance["packages"]) == {"jax", "torch", "torchax", "transformers"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_on_disk_and_is_computed_in_full(dtype, tmp_path):
    folder = published.clip(tmp_path / "model", dtype=dtype)
    import_encoder(Options(model=str(folder), output=str(tmp_path / "encoder")))
    encoder = Encoder.load(tmp_path / "encoder", batch_size=4)
    assert {str(value.dtype) for value in encoder.image_params.values()} == {str(dtype).removeprefix("torch.")}
    paths = published.pictures(tmp_path / "pictures")
    actual = encoder.embed_images(np.stack([encoder.preprocess(Image.open(path)) for path in paths]))
    np.testing.assert_allclose(actual, source_images("clip", folder, paths), atol=1e-5)
    np.testing.assert_allclose(
        encoder.embed_texts(published.TEXTS), source_texts("clip", folder, published.TEXTS), atol=1e-5
    )


def test_the_gradient_is_that_of_the_source(imported):
    folder, encoder = imported("clip")
    pixels = np.random.default_rng(5).normal(size=(2, 32, 32, 3)).astype(np.float32)

    def first(params):
        return encoder.image_function(params, pixels)[:, 0].sum()

    ours = jax.grad(first)(encoder.image_params)
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    embedded = model.get_image_features(pixel_values=torch.from_numpy(pixels).permute(0, 3, 1, 2))
    torch.nn.functional.normalize(embedded)[:, 0].sum().backward()
    theirs = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert set(ours) == set(theirs)
    for name, gradient in theirs.items():
        np.testing.assert_allclose(ours[name], gradient.numpy(), atol=1e-4, err_msg=name)
