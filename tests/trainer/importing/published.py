"""Small models with random weights, saved as the folders in which models are published."""

import json
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from PIL import Image
from tokenizers import models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "a photo of a cat, a dog and a red panda",
    "the quick brown fox jumps over the lazy dog",
    "naïve café in Tokyo 12345 don't stop me now",
] * 20
TEXTS = ["a photo of a cat", "A RED panda,  sitting!", "", "don't stop at the café", "a [PAD] cat", "dog " * 200]
_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT = {**_VISION, "vocab_size": 400, "max_position_embeddings": 16}


def clip(folder: Path, *, hidden_act: str = "quick_gelu", dtype: torch.dtype = torch.float32) -> Path:
    """Saves a CLIP."""
    tokenizer = clip_tokenizer(folder)
    end, size = tokenizer.eos_token_id, len(tokenizer)
    config = transformers.CLIPConfig(
        text_config={
            **_TEXT,
            "vocab_size": size,
            "eos_token_id": end,
            "bos_token_id": end - 1,
            "hidden_act": hidden_act,
        },
        vision_config={**_VISION, "image_size": 32, "patch_size": 8, "hidden_act": hidden_act},
        projection_dim=24,
    )
    save(transformers.CLIPModel(config), folder, dtype)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return folder


def clip_tokenizer(folder: Path):
    """Saves a byte-level BPE as CLIP's."""
    folder.mkdir(parents=True, exist_ok=True)
    bpe = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(CORPUS, trainers.BpeTrainer(initial_alphabet=alphabet, end_of_word_suffix="</w>"))
    vocabulary = list(bpe.get_vocab())
    vocabulary = [
        *alphabet,
        *(f"{one}</w>" for one in alphabet),
        *(t for t in vocabulary if len(t.removesuffix("</w>")) > 1),
    ]
    vocabulary = list(dict.fromkeys(vocabulary)) + ["<|startoftext|>", "<|endoftext|>"]
    merges = json.loads(bpe.to_str())["model"]["merges"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    tokenizer = transformers.CLIPTokenizerFast(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def siglip(folder: Path) -> Path:
    """Saves a SigLIP with its SentencePiece tokenizer."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS),
            model_writer=file,
            vocab_size=90,
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    transformers.SiglipTokenizer(str(folder / "spiece.model"), model_max_length=16).save_pretrained(folder)
    config = transformers.SiglipConfig(
        text_config={**_TEXT, "projection_size": 32}, vision_config={**_VISION, "image_size": 32, "patch_size": 8}
    )
    save(transformers.SiglipModel(config), folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def dual_encoder(folder: Path) -> Path:
    """Saves a ViT joined with a BERT."""
    folder.mkdir(parents=True, exist_ok=True)
    words = sorted({word.strip(",.!") for text in CORPUS for word in text.split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *(chr(c) for c in range(97, 123))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.ViTConfig(**_VISION, image_size=32, patch_size=8),
        transformers.BertConfig(**_TEXT),
        projection_dim=24,
    )
    save(transformers.VisionTextDualEncoderModel(config), folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, do_convert_rgb=True).save_pretrained(folder)
    return folder


def vit(folder: Path) -> Path:
    """Saves a ViT."""
    folder.mkdir(parents=True, exist_ok=True)
    save(transformers.ViTModel(transformers.ViTConfig(**_VISION, image_size=32, patch_size=8)), folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, do_convert_rgb=True).save_pretrained(folder)
    return folder


def dinov2(folder: Path) -> Path:
    """Saves a DINOv2 whose positions are those of larger pictures than its processor makes."""
    folder.mkdir(parents=True, exist_ok=True)
    config = transformers.Dinov2Config(**_VISION, image_size=56, patch_size=8)
    save(transformers.Dinov2Model(config), folder)
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}, do_convert_rgb=True
    )
    processor.save_pretrained(folder)
    return folder


def dinov3(folder: Path) -> Path:
    """Saves a DINOv3."""
    folder.mkdir(parents=True, exist_ok=True)
    config = transformers.DINOv3ViTConfig(**_VISION, image_size=32, patch_size=8, num_register_tokens=2)
    save(transformers.DINOv3ViTModel(config), folder)
    transformers.DINOv3ViTImageProcessorFast(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save(model, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Saves a model with parameters that are large enough for every part of it to count."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.to(dtype).eval().save_pretrained(folder)


def pictures(folder: Path) -> list[Path]:
    """Saves a wide, a tall, a grey and a transparent picture of odd sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    paths = []
    for number, (mode, size) in enumerate([("RGB", (67, 45)), ("RGB", (45, 91)), ("L", (53, 53)), ("RGBA", (38, 61))]):
        channels = {"RGB": (3,), "L": (), "RGBA": (4,)}[mode]
        # Smooth, as photographs are: noise would test only how far filters overshoot.
        coarse = random.integers(60, 196, (6, 6, *channels), np.uint8)
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        paths.append(folder / f"{number}.png")
        picture.save(paths[-1])
    return paths


def gemma_tokenizer(folder: Path):
    """Saves a tokenizer as that of SigLIP 2: Gemma's BPE of pieces with bytes for what it lacks, <eos> at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    # Pieces as SentencePiece's: single characters, bytes, and merges of characters that follow each other.
    words = sorted({f"▁{word}" for text in CORPUS for word in text.lower().split()})
    characters = sorted({letter for word in words for letter in word} | set("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    merges: dict[tuple[str, str], None] = {}
    pieces: dict[str, None] = {}
    for word in words:
        for end in range(2, len(word) + 1):
            merges[word[: end - 1], word[end - 1]] = None
            pieces[word[:end]] = None
    vocabulary = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *characters, *pieces]
    bpe = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(dict.fromkeys(vocabulary))},
            merges=list(merges),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer = transformers.GemmaTokenizerFast(
        tokenizer_object=bpe, add_bos_token=False, add_eos_token=True, padding_side="right"
    )
    tokenizer.save_pretrained(folder)  # model_max_length is left at "no limit", as it is there
    return tokenizer


def siglip2(folder: Path) -> Path:
    """Saves a SigLIP 2 of fixed resolution."""
    tokenizer = gemma_tokenizer(folder)
    config = transformers.SiglipConfig(
        text_config={**_TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 32},
        vision_config={**_VISION, "image_size": 32, "patch_size": 8},
    )
    save(transformers.SiglipModel(config), folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}, resample=2).save_pretrained(folder)
    return folder
