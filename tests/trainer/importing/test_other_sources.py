"""Models of OpenCLIP, of timm and of the user's own code."""

import json
import sys

import numpy as np
import open_clip
import pytest
import safetensors.torch
import timm
import timm.data
import torch
import transformers
from PIL import Image

from pipeline.schema import UserError
from tests.trainer.importing import published
from trainer.encoder import Encoder, Preprocessing
from trainer.import_encoder import Options, import_encoder
from trainer.importing import open_clip_models

_WIDTHS = {"width": 32, "layers": 2}
TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "head_width": 16, **_WIDTHS},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "heads": 2, **_WIDTHS},
}


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """Returns (model, file of weights) of an OpenCLIP with random weights; its name is Tiny-CLIP."""
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "Tiny-CLIP.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder)
    model = randomised(open_clip.create_model("Tiny-CLIP"))
    safetensors.torch.save_model(model, str(folder / "weights.safetensors"))
    return model, folder / "weights.safetensors"


def randomised(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def unit(tensor):
    vectors = tensor.detach().numpy()
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def imported(model, output, **options):
    import_encoder(Options(model=str(model), output=str(output), **options))
    return Encoder.load(output, batch_size=4)


def embedded(encoder, paths):
    return encoder.embed_images(np.stack([encoder.preprocess(Image.open(path)) for path in paths]))


def test_open_clip_embeds_pictures_and_texts_as_the_source_does(tiny_clip, tmp_path):
    model, weights = tiny_clip
    encoder = imported(f"open_clip:Tiny-CLIP:{weights}", tmp_path / "encoder")
    paths = published.pictures(tmp_path / "pictures")
    stated = open_clip.get_model_preprocess_cfg(model)
    transform = open_clip.image_transform(stated["size"], is_train=False, mean=stated["mean"], std=stated["std"])
    # OpenCLIP drops transparency after it has resized a picture, an encoder before.
    pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    np.testing.assert_allclose(embedded(encoder, paths), unit(model.encode_image(pixels)), atol=1e-5)
    texts = [*published.TEXTS, "it's 12:30, isn't it? #1 -- ★ 東京 Ελλάδα", "tabs\tand\nlines", "I'll we've"]
    tokens = open_clip.get_tokenizer("Tiny-CLIP")(texts)
    np.testing.assert_array_equal([one.ids for one in encoder._tokenizer.encode_batch(texts)], tokens.numpy())
    expected = unit(model.encode_text(tokens))
    assert np.abs(expected[0] - expected[1]).max() > 0.02
    np.testing.assert_allclose(encoder.embed_texts(texts), expected, atol=1e-5)
    # Each tower has its own parameters, and none that it does not read.
    held = [*encoder.image_params.values(), *encoder._text_params.values()]
    assert sum(value.size for value in held) == sum(value.numel() for value in model.parameters()) - 1  # logit_scale


TOWERS_OF_SIGLIP = {
    "embed_dim": 32,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear"},
    "text_cfg": {
        "context_length": 20,
        "hf_tokenizer_name": "nowhere/to-be-found",  # files in the folder count
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "heads": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        **_WIDTHS,
    },
}
PREPROCESSING_OF_SIGLIP = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


def open_clip_folder(folder, config, *, preprocessing=None):
    """Saves a model of OpenCLIP with random weights beside the tokenizer in the folder; returns the model."""
    content = {"model_cfg": config, "preprocess_cfg": preprocessing or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    model = randomised(open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False))
    safetensors.torch.save_model(model, str(folder / "open_clip_model.safetensors"))
    return model


def with_vocabulary(config, size, **text):
    return {**config, "text_cfg": {**config["text_cfg"], "vocab_size": size, **text}}


TEXTS_FOR_OPEN_CLIP = [*published.TEXTS, "“It’s” a_cat -- ﬁne! (#1) ½", "tabs\tand\nlines", "DOG. the   fox"]


def test_an_open_clip_folder_with_a_tokenizer_of_transformers(tmp_path):
    folder = tmp_path / "model"
    tokenizer = published.gemma_tokenizer(folder)
    model = open_clip_folder(
        folder, with_vocabulary(TOWERS_OF_SIGLIP, len(tokenizer)), preprocessing=PREPROCESSING_OF_SIGLIP
    )
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    encoder = imported(folder, tmp_path / "encoder")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS_FOR_OPEN_CLIP)
    assert tokens.shape == (9, 20)
    ids = [one.ids for one in encoder._tokenizer.encode_batch(TEXTS_FOR_OPEN_CLIP)]
    np.testing.assert_array_equal(ids, tokens.numpy())
    expected = unit(model.encode_text(tokens))
    assert np.abs(expected[0] - expected[1]).max() > 0.02
    np.testing.assert_allclose(encoder.embed_texts(TEXTS_FOR_OPEN_CLIP), expected, atol=1e-5)
    stated = open_clip.get_model_preprocess_cfg(model)
    transform = open_clip.image_transform(
        160, False, mean=stated["mean"], std=stated["std"], resize_mode="squash", interpolation="bicubic"
    )
    paths = published.pictures(tmp_path / "pictures")
    pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    np.testing.assert_allclose(embedded(encoder, paths), unit(model.encode_image(pixels)), atol=1e-5)
    provenance = json.loads((tmp_path / "encoder" / "encoder.json").read_text())["provenance"]["imported_from"]
    assert (provenance["licence"], provenance["weights"]) == ("apache-2.0", "open_clip_model.safetensors")


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64")  # of its mask
def test_an_open_clip_with_a_text_tower_of_transformers(tmp_path):
    folder = tmp_path / "model"
    published.dual_encoder(tmp_path / "dual")
    bert = transformers.BertTokenizerFast.from_pretrained(tmp_path / "dual")
    bert.save_pretrained(folder)
    transformers.BertConfig(
        vocab_size=len(bert), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    ).save_pretrained(tmp_path / "bert")
    text = {"hf_model_name": str(tmp_path / "bert"), "hf_tokenizer_name": "bert", "hf_proj_type": "mlp"}
    config = {**TINY, "text_cfg": {**text, "hf_pooler_type": "mean_pooler", "context_length": 20}}
    model = open_clip_folder(folder, config)
    encoder = imported(folder, tmp_path / "encoder")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS_FOR_OPEN_CLIP)
    np.testing.assert_allclose(encoder.embed_texts(TEXTS_FOR_OPEN_CLIP), unit(model.encode_text(tokens)), atol=1e-5)


def test_a_token_at_the_end_that_open_clip_leaves_out_is_left_out(tmp_path):
    folder = tmp_path / "model"
    published.dual_encoder(tmp_path / "dual")
    bert = transformers.BertTokenizerFast.from_pretrained(tmp_path / "dual")
    bert.save_pretrained(folder)
    config = with_vocabulary(
        TINY, len(bert), hf_tokenizer_name="bert", tokenizer_kwargs={"strip_sep_token": True}, pool_type="last"
    )
    open_clip_folder(folder, config)
    encoder = imported(folder, tmp_path / "encoder")
    ids = [one.ids for one in encoder._tokenizer.encode_batch(TEXTS_FOR_OPEN_CLIP)]
    np.testing.assert_array_equal(ids, open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS_FOR_OPEN_CLIP).numpy())


def refused_folder(folder, output, message, **options):
    with pytest.raises(UserError, match=message) as caught:
        imported(folder, output, **options)
    assert "\n" not in str(caught.value)


def test_an_open_clip_folder_that_lacks_something_is_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    config = with_vocabulary(TINY, 400, hf_tokenizer_name="nowhere/to-be-found", context_length=20)
    open_clip_folder(folder, config)
    message = rf"^{folder}/open_clip_config.json: the tokenizer {folder} cannot be read \(.*\); fetch the model's"
    refused_folder(folder, tmp_path / "encoder", message)
    assert not imported(folder, tmp_path / "pictures", text=False).has_text
    content = json.loads((folder / "open_clip_config.json").read_text())
    content["model_cfg"]["text_cfg"]["tokenizer_mode"] = "clips"
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    refused_folder(folder, tmp_path / "encoder", "open_clip_config.json tokenizes with tokenizer_mode, which cannot be")
    content["model_cfg"]["vision_cfg"]["patch_size"] = "large"
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    refused_folder(folder, tmp_path / "encoder", r"open_clip_config.json: OpenCLIP cannot make the model \(")
    (folder / "open_clip_config.json").write_text("{}")
    refused_folder(folder, tmp_path / "encoder", "open_clip_config.json has no model_cfg, so it is not a config of Ope")
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_model.bin")
    (folder / "open_clip_config.json").write_text('{"model_cfg": {}}')
    refused_folder(folder, tmp_path / "encoder", "open_clip_model.bin is a pickle file, which can run code when it is")
    (folder / "open_clip_model.bin").unlink()
    refused_folder(folder, tmp_path / "encoder", rf"^{folder} has no weights \(\*.safetensors\); fetch them into it$")


def test_an_architecture_whose_weights_differ_in_preprocessing_asks_for_it():
    agreed, unknown = open_clip_models._of_all("ViT-B-16-SigLIP", ["webli"])
    assert (agreed["mean"], agreed["resize_mode"], unknown) == ((0.5, 0.5, 0.5), "squash", frozenset())
    tags = open_clip.list_pretrained_tags_by_model("ViT-L-14")
    assert open_clip_models._of_all("ViT-L-14", tags)[1] == {"mean", "std"}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("open_clip:ViT-B-33:openai", "OpenCLIP has no model ViT-B-33; the nearest is ViT-B-32"),
        ("open_clip:ViT-B-32", r"give open_clip:ViT-B-32:WEIGHTS, where WEIGHTS is a file or one of openai, laion400m"),
        ("timm:vit_tiny_patch17_224", r"timm .* has no model vit_tiny_patch17_224; the nearest is vit_tiny_patch16_2"),
        ("nowhere:function", r"but there is no such function \(No module named 'nowhere'\)$"),
        ("json:nothing", r"but there is no such function \(module 'json' has no attribute 'nothing'\)$"),
        ("os:getcwd", r"which returned str; it must return a torch.nn.Module and a trainer.encoder.Preprocessing$"),
    ],
)
def test_a_source_that_is_not_there_is_refused(model, message, tmp_path):
    with pytest.raises(UserError, match=f"^MODEL is {model}.*{message}"):
        import_encoder(Options(model=model, output=str(tmp_path)))


def test_weights_of_another_model_are_refused(tiny_clip, tmp_path):
    _, weights = tiny_clip
    with pytest.raises(UserError, match=rf"^{weights} lacks cls_token of shape \[1, 1, 192\] \(\d+ tensors in all\), "):
        import_encoder(Options(model=f"timm:vit_tiny_patch16_224:{weights}", output=str(tmp_path)))


def test_a_pickled_checkpoint_is_read_only_when_that_is_allowed(tiny_clip, tmp_path):
    model, weights = tiny_clip
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "e.pt")
    with pytest.raises(UserError, match=rf"^{tmp_path}/e.pt is a pickle file, .*; give --allow-pickle if you trust"):
        imported(f"open_clip:Tiny-CLIP:{tmp_path}/e.pt", tmp_path / "encoder")
    pickled = imported(f"open_clip:Tiny-CLIP:{tmp_path}/e.pt", tmp_path / "encoder", allow_pickle=True)
    assert pickled.hash == imported(f"open_clip:Tiny-CLIP:{weights}", tmp_path / "other").hash


def test_a_checkpoint_that_was_cut_is_refused(tiny_clip, tmp_path):
    _, weights = tiny_clip
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=rf"^{tmp_path}/cut.safetensors cannot be read \(.*\); fetch it again$"):
        imported(f"open_clip:Tiny-CLIP:{tmp_path}/cut.safetensors", tmp_path / "encoder")


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_timm_embeds_pictures_as_the_source_does(name, tmp_path):
    torch.manual_seed(0)
    classifier = timm.create_model(name, num_classes=10)  # the head is left out
    for key, buffer in classifier.named_buffers():  # statistics of batch norm
        if buffer.is_floating_point():
            buffer.uniform_(*((-0.1, 0.1) if "mean" in key else (0.5, 1.5)))
    safetensors.torch.save_file(classifier.state_dict(), tmp_path / "weights.safetensors")
    encoder = imported(f"timm:{name}:{tmp_path}/weights.safetensors", tmp_path / "encoder")
    paths = published.pictures(tmp_path / "pictures")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(classifier), is_training=False)
    pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    source = timm.create_model(name, num_classes=0).eval()
    source.load_state_dict(classifier.state_dict(), strict=False)
    np.testing.assert_allclose(embedded(encoder, paths), unit(source(pixels)), atol=1e-5)
    assert set(encoder.image_params) == {f"model.{key}" for key, _ in source.named_parameters()}


def test_a_function_of_the_users_gives_a_module_and_its_preprocessing(tmp_path, monkeypatch):
    (tmp_path / "of_mine.py").write_text(
        "import torch\nfrom trainer.encoder import Preprocessing\n"
        "def model():\n"
        "    torch.manual_seed(1)\n"
        "    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 4, 4), torch.nn.Flatten(), torch.nn.Linear(20, 7))\n"
        "    return layers, Preprocessing(image_size_px=8, fit='squash')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    encoder = imported("of_mine:model", tmp_path / "encoder")
    module, preprocessing = sys.modules["of_mine"].model()
    assert encoder.preprocessing == preprocessing == Preprocessing(image_size_px=8, fit="squash")
    pixels = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    expected = unit(module(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    np.testing.assert_allclose(encoder.embed_images(pixels), expected, atol=1e-6)


def test_a_module_that_cannot_be_traced_is_refused(tmp_path, monkeypatch):
    (tmp_path / "untraced.py").write_text(
        "import torch\nfrom trainer.encoder import Preprocessing\n"
        "class Branching(torch.nn.Module):\n"
        "    def forward(self, images):\n"
        "        return images.mean((2, 3)) if images.sum() > 0 else images.sum((2, 3))\n"
        "def model():\n"
        "    return Branching(), Preprocessing(image_size_px=2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    refused_folder(
        "untraced:model", tmp_path / "encoder", r"^untraced:model: torchax cannot turn the model into JAX \("
    )


def test_tensors_that_are_plain_attributes_and_half_precision_are_part_of_a_module(tmp_path, monkeypatch):
    (tmp_path / "plain.py").write_text(
        "import torch\nfrom trainer.encoder import Preprocessing\n"
        "class Scaled(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.scale = torch.arange(1, 4).half()\n"
        "        self.register_buffer('order', torch.tensor([2, 0, 1]))\n"
        "        self.shift = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]).half(), requires_grad=False)\n"
        "    def forward(self, images):\n"
        "        return (images.mean((2, 3)) * self.scale + self.shift)[:, self.order]\n"
        "def model():\n"
        "    return Scaled(), Preprocessing(image_size_px=2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    encoder = imported("plain:model", tmp_path / "encoder")
    # Means of 1, 1, 1, times (1, 2, 3), plus (1, 2, 3), in the order 2, 0, 1: 6, 2, 4.
    expected = np.asarray([[6, 2, 4]]) / np.sqrt(56)
    np.testing.assert_allclose(encoder.embed_images(np.ones((1, 2, 2, 3), np.float32)), expected, atol=1e-6)
    assert {name: str(value.dtype) for name, value in encoder.image_params.items()} == {"model.shift": "float16"}
