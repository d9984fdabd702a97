"""Imported models in full shape, with random weights, against their sources: from picture files and strings."""

from __future__ import annotations

import argparse
import json
import os
import runpy
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

TEXTS = ["a photo of a cat", "A RED panda,  sitting!", "", "it's at the café, No. 12_34", "東京 a dog", "dog " * 600]
SIZES = [(640, 427), (333, 500), (224, 224), (150, 211), (1024, 768)]


class Source(NamedTuple):
    """A model as its own library runs it, on disk for the import."""

    model: str
    """What MODEL= would be."""
    pixels: Callable[[Image.Image], Any]
    """An RGB picture to a tensor [3, S, S]."""
    pictures: Callable[[Any], Any]
    """Tensors [B, 3, S, S] to embeddings."""
    texts: Callable[[list[str]], Any] | None = None
    """Strings to embeddings."""


def varied(model: Any) -> Any:
    """Returns the model with norms and biases that differ from 1 and 0, so that each of them counts."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def clip_tokenizer(folder: Path) -> Any:
    """Saves CLIP's tokenizer with its 49,408 tokens, which OpenCLIP brings along."""
    import open_clip
    import transformers

    source = open_clip.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in source.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = ["#version: 0.2", *(" ".join(pair) for pair in source.bpe_ranks)]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = transformers.CLIPTokenizerFast(*files, model_max_length=77)
    tokenizer.save_pretrained(folder)
    return tokenizer


def of_transformers(folder: Path, model: Any, processor: Any, **called: Any) -> Source:
    """Saves a model of transformers, whose tokenizer lies in the folder if it reads texts."""
    varied(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    pictures = getattr(model, "get_image_features", None)
    tokenizer, masked = called.pop("tokenizer", None), called.pop("masked", True)

    def of_texts(texts: list[str]) -> Any:
        tokens = tokenizer(texts, truncation=True, return_tensors="pt", **called)
        return model.get_text_features(**(tokens if masked else {"input_ids": tokens["input_ids"]}))

    return Source(
        model=str(folder),
        pixels=lambda picture: processor(images=[picture], return_tensors="pt")["pixel_values"][0],
        pictures=lambda pixels: pictures(pixels) if pictures else model(pixels).last_hidden_state[:, 0],
        texts=of_texts if tokenizer else None,
    )


def clip(folder: Path, _: Any) -> Source:
    """CLIP B/32."""
    import transformers

    tokenizer = clip_tokenizer(folder)
    config = transformers.CLIPConfig(
        text_config={"bos_token_id": 49406, "eos_token_id": 49407},
        vision_config={"patch_size": 32, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    )
    processor = transformers.CLIPImageProcessor()
    return of_transformers(folder, transformers.CLIPModel(config), processor, tokenizer=tokenizer, padding=True)


def siglip(folder: Path, small: Any) -> Source:
    """SigLIP B/16; its tokenizer is a small one of its kind."""
    import transformers

    small.siglip(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, model_max_length=64)
    tokenizer.save_pretrained(folder)
    model = transformers.SiglipModel(transformers.SiglipConfig())
    called = {"tokenizer": tokenizer, "padding": "max_length", "masked": False}
    return of_transformers(folder, model, transformers.SiglipImageProcessor(), **called)


def siglip2(folder: Path, small: Any) -> Source:
    """SigLIP 2 B/16 with its 256,000 tokens; the tokenizer is a small one of its kind, for lower case."""
    import transformers

    tokenizer = small.gemma_tokenizer(folder)
    config = transformers.SiglipConfig(
        text_config={"vocab_size": 256_000, "hidden_act": "gelu_pytorch_tanh", "projection_size": 768}
    )
    called = {"padding": "max_length", "masked": False, "max_length": 64}
    processor = transformers.SiglipImageProcessor(resample=Image.Resampling.BILINEAR)
    source = of_transformers(folder, transformers.SiglipModel(config), processor, tokenizer=tokenizer, **called)
    return source._replace(texts=lambda texts: source.texts([text.lower() for text in texts]))  # type: ignore[misc]


def dual_encoder(folder: Path, small: Any) -> Source:
    """ViT-B/16 with BERT base."""
    import transformers

    small.dual_encoder(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, model_max_length=512)
    tokenizer.save_pretrained(folder)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.ViTConfig(), transformers.BertConfig(), projection_dim=512
    )
    model = transformers.VisionTextDualEncoderModel(config)
    return of_transformers(folder, model, transformers.ViTImageProcessor(), tokenizer=tokenizer, padding=True)


def vit(folder: Path, _: Any) -> Source:
    """ViT-B/16."""
    import transformers

    model = transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False)
    return of_transformers(folder, model, transformers.ViTImageProcessor())


def dinov2(folder: Path, _: Any) -> Source:
    """DINOv2 B/14, whose positions are those of 518 pixels."""
    import transformers

    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, do_convert_rgb=True
    )
    model = transformers.Dinov2Model(transformers.Dinov2Config(image_size=518, patch_size=14))
    return of_transformers(folder, model, processor)


def dinov3(folder: Path, _: Any) -> Source:
    """DINOv3 B/16."""
    import transformers

    config = transformers.DINOv3ViTConfig(
        hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_register_tokens=4
    )
    return of_transformers(folder, transformers.DINOv3ViTModel(config), transformers.DINOv3ViTImageProcessorFast())


def open_clip(folder: Path, _: Any) -> Source:
    """OpenCLIP's ViT-B-32, from a file of weights."""
    import open_clip
    import safetensors.torch

    model, _, transform = open_clip.create_model_and_transforms("ViT-B-32")
    safetensors.torch.save_model(varied(model), str(folder / "weights.safetensors"))
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    return Source(
        f"open_clip:ViT-B-32:{folder / 'weights.safetensors'}",
        transform,
        model.encode_image,
        lambda texts: model.encode_text(tokenizer(texts)),
    )


def open_clip_siglip2(folder: Path, small: Any) -> Source:
    """OpenCLIP's ViT-B-16-SigLIP2, from its folder; the tokenizer is a small one of its kind."""
    import open_clip
    import safetensors.torch

    small.gemma_tokenizer(folder)
    stated = open_clip.get_pretrained_cfg("ViT-B-16-SigLIP2", "webli")
    config = {
        "model_cfg": open_clip.get_model_config("ViT-B-16-SigLIP2"),
        "preprocess_cfg": {name: stated[name] for name in ("mean", "std", "interpolation", "resize_mode")},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    name = f"local-dir:{folder}"
    model, _, transform = open_clip.create_model_and_transforms(name, load_weights=False)
    safetensors.torch.save_model(varied(model), str(folder / "open_clip_model.safetensors"))
    tokenizer = open_clip.get_tokenizer(name)
    return Source(str(folder), transform, model.encode_image, lambda texts: model.encode_text(tokenizer(texts)))


def timm(folder: Path, _: Any) -> Source:
    """timm's ViT-B/16 at 224 pixels."""
    import safetensors.torch
    import timm
    import timm.data

    model = varied(timm.create_model("vit_base_patch16_224", num_classes=0))
    safetensors.torch.save_file(model.state_dict(), folder / "weights.safetensors")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    return Source(f"timm:vit_base_patch16_224:{folder / 'weights.safetensors'}", transform, model)


FAMILIES = {
    family.__name__: family
    for family in (clip, siglip, siglip2, dual_encoder, vit, dinov2, dinov3, open_clip, open_clip_siglip2, timm)
}


def unit(vectors: Any) -> np.ndarray:
    """Returns the vectors at length 1."""
    array = vectors.detach().float().numpy()
    return np.asarray(array / np.linalg.norm(array, axis=1, keepdims=True))


def picture_files(folder: Path) -> list[Path]:
    """Saves pictures of odd sizes, as smooth as photographs are, one of them grey."""
    random, paths = np.random.default_rng(0), []
    for number, size in enumerate(SIZES):
        coarse = random.integers(0, 256, (9, 9, 3), np.uint8)
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        paths.append(folder / f"{number}.png")
        (picture.convert("L") if number == 3 else picture).save(paths[-1])
    return paths


def line(name: str, folder: Path, small: Any) -> str:
    """Returns what is measured of a family: differences of embeddings of length 1, and of pixels in grey levels."""
    import torch

    from trainer.encoder import Encoder
    from trainer.import_encoder import Options, import_encoder

    torch.manual_seed(0)
    source = FAMILIES[name](folder, small)
    paths = picture_files(folder)
    start = time.perf_counter()
    import_encoder(Options(model=source.model, output=str(folder / "encoder")))
    took = time.perf_counter() - start
    encoder = Encoder.load(folder / "encoder", batch_size=len(TEXTS))
    with torch.no_grad():
        pixels = torch.stack([torch.as_tensor(source.pixels(Image.open(path).convert("RGB"))) for path in paths])
        expected = {"pictures": unit(source.pictures(pixels))}
        actual = {"pictures": encoder.embed_pictures([str(path) for path in paths])}
        if source.texts is not None:
            expected["texts"], actual["texts"] = unit(source.texts(TEXTS)), encoder.embed_texts(TEXTS)
    rows = np.stack([encoder.preprocess(Image.open(path)) for path in paths])
    std = np.asarray(encoder.preprocessing.std, np.float32)
    levels = (np.abs(rows - pixels.permute(0, 2, 3, 1).numpy()) * std * 255).max()
    found = []
    for what, theirs in expected.items():
        ours = actual[what]
        apart = min(np.abs(one - other).max() for k, one in enumerate(theirs) for other in theirs[:k])
        cosine = (ours * theirs).sum(axis=1).min()
        found.append(f"{what} {np.abs(ours - theirs).max():.1e} (1 - cosine {1 - cosine:.0e}; rows {apart:.0e} apart)")
    return f"{name}: {'; '.join(found)}; pixels {levels:.3f} grey levels; import {took:.0f} s"


def main() -> None:
    """Prints a line for each family."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help=f"of {', '.join(FAMILIES)}; none: all")
    families = parser.parse_args().families or list(FAMILIES)
    if unknown := set(families) - set(FAMILIES):
        parser.error(f"{unknown.pop()} is none of {', '.join(FAMILIES)}")
    os.environ |= {"USE_TF": "0", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "JAX_PLATFORMS": "cpu"}
    warnings.simplefilter("ignore")
    small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "trainer" / "importing" / "published.py")))
    for name in families:
        with tempfile.TemporaryDirectory() as directory:
            print(line(name, Path(directory), small), flush=True)


if __name__ == "__main__":
    main()
