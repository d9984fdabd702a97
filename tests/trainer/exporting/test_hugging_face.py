"""What is exported opens in transformers, without code of ours, and embeds as the encoder does."""

import copy
import dataclasses
import json
import re
import shutil
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from PIL import Image

from pipeline.schema import UserError
from trainer import export_encoder
from trainer.configs.base import override
from trainer.configs.experiments import EXPERIMENTS, get_experiment
from trainer.encoder import Encoder
from trainer.encoder.format import content_hash
from trainer.exporting.hugging_face import (
    SpecialTokens,
    _tensors,
    differences,
    reasons_against,
    special_tokens,
    swapped_eos,
    write_clip_folder,
)
from trainer.exporting.trained import TrainedEncoder, read_trained
from trainer.init_from import read_source

TEXTS = (
    "red panda",
    "",
    "Café no. 12_34, हिन्दी",
    "a blue whale and a grey wolf and a white owl under a green tree, " * 5,  # is cut
    "<eos> <pad>",
)


@pytest.fixture(scope="session")
def exported(clip_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("hf") / "folder"
    export_encoder.export(export_encoder.Options(encoder=str(clip_run / "encoder"), output=str(path)))
    return path


def opened(path):
    with jax.numpy_dtype_promotion("standard"):
        kinds = (transformers.AutoModel, transformers.AutoProcessor, transformers.AutoTokenizer)
        return [kind.from_pretrained(path) for kind in kinds]


def unit(vectors):
    return (vectors / vectors.norm(dim=-1, keepdim=True)).detach().numpy()


def test_texts_and_pictures_are_embedded_as_by_the_encoder(clip_run, exported, pictures):
    encoder = Encoder.load(clip_run / "encoder")
    model, processor, _ = opened(exported)
    outputs = model(**processor(text=list(TEXTS), images=pictures, return_tensors="pt"))
    np.testing.assert_allclose(unit(outputs.text_embeds), encoder.embed_texts(TEXTS), atol=1e-5)
    np.testing.assert_allclose(unit(outputs.image_embeds), encoder.embed_pictures(pictures), atol=1e-5)
    # Rows differ by far more than that.
    assert np.abs(np.diff(encoder.embed_texts(TEXTS), axis=0)).max(axis=1).min() > 1e-2
    assert np.abs(np.diff(encoder.embed_pictures(pictures), axis=0)).max(axis=1).min() > 1e-2


def test_the_tokenizer_alone_pads_and_cuts_when_it_is_asked_to(clip_run, exported):
    model, _, tokenizer = opened(exported)
    encoder = Encoder.load(clip_run / "encoder")
    tokens = tokenizer(list(TEXTS), padding=True, truncation=True, return_tensors="pt")
    np.testing.assert_allclose(unit(model.get_text_features(**tokens)), encoder.embed_texts(TEXTS), atol=1e-5)
    short = tokenizer(["red panda"], return_tensors="pt")  # neither padded nor cut
    assert short["input_ids"].shape[1] < 12 and short["input_ids"][0, -1] == tokenizer.eos_token_id
    np.testing.assert_allclose(unit(model.get_text_features(**short)), encoder.embed_texts(["red panda"]), atol=1e-5)


def test_the_scale_of_the_logits_is_that_of_the_run(clip_run, exported):
    log_scale = read_source(str(clip_run)).params["log_scale"]
    assert opened(exported)[0].logit_scale.item() == pytest.approx(float(log_scale))


def test_a_crop_that_starts_at_half_a_pixel_starts_one_pixel_before(clip_run, exported):
    # 9 x 12 becomes 8 x 10, of which rows 1 to 9 are taken; 8 x 11 leaves 3 rows, and the encoder starts at row 2.
    pixels = np.random.default_rng(3).integers(0, 256, (11, 8, 3), np.uint8)
    encoder = Encoder.load(clip_run / "encoder")
    model, processor, _ = opened(exported)
    of_folder = unit(model.get_image_features(**processor(images=[Image.fromarray(pixels)], return_tensors="pt")))
    shifted = encoder.embed_pictures([Image.fromarray(pixels[1:9]), Image.fromarray(pixels)])
    np.testing.assert_allclose(of_folder[0], shifted[0], atol=1e-5)
    assert np.abs(of_folder[0] - shifted[1]).max() > 1e-3


def test_the_code_of_the_card_runs_as_it_is_written(exported, monkeypatch, capsys):
    (code,) = re.findall(r"^```python\n(.*?)^```$", (exported / "README.md").read_text(), re.M | re.S)
    picture = exported.parent / "picture.png"
    Image.new("RGB", (20, 16), (200, 10, 10)).save(picture)
    monkeypatch.chdir(exported)
    with jax.numpy_dtype_promotion("standard"):
        exec(code.replace("picture.png", str(picture)), {})
    first, second = map(float, re.findall(r"0\.\d+", capsys.readouterr().out))
    assert first + second == pytest.approx(1, abs=1e-3)


def test_the_card_states_data_recipe_and_what_differs(clip_run, exported):
    card = (exported / "README.md").read_text()
    config = json.loads((clip_run / "config.json").read_text())
    assert f"| fingerprint of the set (SHA-256) | `{config['data']}` |" in card
    assert "| steps | 2 of 16 pictures |" in card
    assert f"`{Encoder.load(clip_run / 'encoder').hash}`" in card
    (recipe,) = re.findall(r"```json\n(.*?)```", card, re.S)
    assert json.loads(recipe)["optimizer"]["learning_rate"] == 1e-3
    assert "Nothing yet." in card and "- The encoder has a classifier of entities" in card


def write_result(path, encoder_hash):
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "benchmark": path.stem,
        "protocol": {"version": 3, "settings": {}},
        "metrics": {"mAP": 0.5},
        "model": {"hash": encoder_hash},
    }
    path.write_text(json.dumps(result))


def test_metrics_are_written_into_the_card_with_the_versions_of_their_protocols(
    clip_run, tmp_path, monkeypatch, capsys
):
    write_result(tmp_path / "results" / "gpr1200.json", Encoder.load(clip_run / "encoder").hash)
    (tmp_path / "results" / "other.json").write_text("[]")
    arguments = ["--encoder", str(clip_run / "encoder"), "--output", str(tmp_path / "hf")]
    monkeypatch.setattr(sys, "argv", ["export", *arguments, "--results", str(tmp_path / "results")])
    export_encoder.main()
    assert capsys.readouterr().out == f"wrote {tmp_path / 'hf'}; README.md there says how it is used\n"
    assert "| gpr1200 | 3 | mAP | 0.5000 |" in (tmp_path / "hf" / "README.md").read_text()


def refused(tmp_path, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["export", "--output", str(tmp_path / "hf"), *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        export_encoder.main()
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_results_of_another_encoder_are_refused(clip_run, tmp_path, monkeypatch, capsys):
    write_result(tmp_path / "results" / "knn.json", "0123456789abcdef")
    given = ("--encoder", clip_run / "encoder", "--results")
    message = refused(tmp_path, monkeypatch, capsys, *given, tmp_path / "results")
    assert message.startswith(f"error: {tmp_path}/results/knn.json is of the encoder 0123456789ab, not of ")
    (tmp_path / "results" / "knn.json").write_text("{")
    message = refused(tmp_path, monkeypatch, capsys, *given, tmp_path / "results")
    assert message.startswith(f"error: {tmp_path}/results/knn.json is not valid JSON (")
    (tmp_path / "results" / "knn.json").unlink()
    message = refused(tmp_path, monkeypatch, capsys, *given, tmp_path / "results")
    assert message == f"error: --results {tmp_path}/results holds no results; give the --output of make eval\n"
    message = refused(tmp_path, monkeypatch, capsys, *given, tmp_path / "none")
    assert message.startswith(f"error: --results {tmp_path}/none cannot be read (No such file or directory); give")


def test_what_is_no_encoder_of_this_trainer_is_refused(clip_run, tmp_path, monkeypatch, capsys):
    message = refused(tmp_path, monkeypatch, capsys, "--encoder", tmp_path)
    assert message.startswith(f"error: {tmp_path} holds no finished encoder (encoder.json is missing)")
    shutil.copytree(clip_run / "encoder", tmp_path / "other")
    metadata = json.loads((tmp_path / "other" / "encoder.json").read_text())
    del metadata["provenance"]
    (tmp_path / "other" / "encoder.json").write_text(json.dumps(metadata))
    message = refused(tmp_path, monkeypatch, capsys, "--encoder", tmp_path / "other")
    assert "other/encoder.json states no config of a training" in message and "make encoder wrote" in message


def test_an_encoder_is_not_written_over(clip_run, tmp_path, monkeypatch, capsys):
    shutil.copytree(clip_run / "encoder", tmp_path / "hf")
    message = refused(tmp_path, monkeypatch, capsys, "--encoder", clip_run / "encoder")
    assert message.startswith(f"error: --output {tmp_path}/hf is an encoder, whose tokenizer would be replaced")
    assert Encoder.load(tmp_path / "hf").hash == Encoder.load(clip_run / "encoder").hash


def described(experiment, *, has_text=True):
    """An encoder of an experiment, as far as it decides what can be written."""
    preprocessing = {"resize": "bilinear", "antialias": experiment.image.antialias, "mean": [0] * 3, "std": [1] * 3}
    metadata = {
        "image_size_px": experiment.image.image_size_px,
        "has_text": has_text,
        "preprocessing": preprocessing,
        "provenance": {},
    }
    return TrainedEncoder(path="encoder", metadata=metadata, experiment=experiment)


@pytest.mark.parametrize("name", ["multitask_s16", "multitask_b16", "multitask_l14", "contrastive_b16"])
def test_the_class_token_towers_can_be_written_as_they_are(name):
    encoder = described(get_experiment(name))
    assert reasons_against(encoder, antialias=False) == []
    assert not any("antialias" in note for note in differences(encoder))
    assert any("in bfloat16; this model computes in float32" in note for note in differences(encoder))


def test_an_encoder_without_antialias_is_written_where_that_is_accepted():
    encoder = described(override(get_experiment("multitask_b16"), ["image.antialias=false"]))
    assert reasons_against(encoder, antialias=True) == []
    (reason,) = reasons_against(encoder, antialias=False)
    assert reason.startswith("it shrinks pictures without antialias") and "--antialias accepts that" in reason
    assert any("shrinks pictures without antialias" in note for note in differences(encoder))


def test_other_towers_are_refused_with_each_reason(clip_run, tmp_path):
    assert set(EXPERIMENTS) >= {"multitask_h14", "multitask_demo"}
    of_h14 = reasons_against(described(get_experiment("multitask_h14")), antialias=False)
    assert of_h14 == [
        "its image tower pools by mean, CLIP's reads a class token",
        "its image tower has no norm before the blocks (image.pre_norm), CLIP's has one",
    ]
    of_demo = " ".join(reasons_against(described(get_experiment("multitask_demo")), antialias=False))
    parts = ("pools by flatten", "mixes blocks of 4 pixels", "no norm before", "has a bias", "text tower pools by mean")
    for part in parts:
        assert part in of_demo
    of_images = reasons_against(described(get_experiment("supervised_b16"), has_text=False), antialias=False)
    assert of_images == ["it has no text tower, CLIP has two towers"]
    encoder = read_trained(str(clip_run / "encoder"))
    pooled = dataclasses.replace(encoder, experiment=override(encoder.experiment, ["image.pool=mean"]))
    message = (
        "cannot be written as Hugging Face's CLIP: its image tower pools by mean, .*token. --format onnx writes it"
    )
    with pytest.raises(UserError, match=message):
        write_clip_folder(pooled, str(tmp_path), card="")
    assert list(tmp_path.iterdir()) == []


def test_a_parameter_without_a_place_stops_the_export(clip_run):
    encoder = read_trained(str(clip_run / "encoder"))
    weights = {**encoder.read_weights(), "image/new/scale": np.ones(3, np.float32)}
    with pytest.raises(AssertionError, match="^image/new/scale have no place in a CLIPModel$"):
        list(_tensors(encoder, weights, (1, 2)))


def with_tensors(folder, **changed):
    """Changes tensors of an encoder, whose hash then is that of what it holds."""
    path = folder / "weights.safetensors"
    weights = safetensors.numpy.load_file(path)
    weights.update({name.replace("__", "/"): value(weights) for name, value in changed.items()})
    safetensors.numpy.save_file({name: value for name, value in weights.items() if value is not None}, path)


def with_config(folder, **changed):
    path = folder / "encoder.json"
    metadata = json.loads(path.read_text())
    metadata["provenance"]["config"]["image"].update(changed)
    path.write_text(json.dumps(metadata))


def head(change):
    return lambda folder: with_tensors(folder, image__head__kernel=lambda held: change(held["image/head/kernel"]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            head(lambda _: None),
            "weights.safetensors: image/head/kernel has the shape None, but the config in",
        ),
        (
            head(lambda held: held * np.nan),
            "image/head/kernel has values that are not finite floats",
        ),
        (
            head(lambda held: held.astype(np.int32)),
            "image/head/kernel has values that are not finite fl",
        ),
        (
            lambda folder: with_tensors(folder, image__new__scale=lambda _: np.ones(3, np.float32)),
            r"weights.safetensors: image/new/scale has the shape \(3,\), but the config in encoder.json asks for None",
        ),
        (
            lambda folder: with_config(folder, depth=3),
            r"has the shape \(2, .*encoder.json asks for \(3,",
        ),
        (
            lambda folder: with_config(folder, activation="none"),
            "encoder.json: no tower can be made of its config",
        ),
        (
            lambda folder: (folder / "weights.safetensors").write_bytes(b""),
            r"safetensors cannot be read \(Error",
        ),
        (
            lambda folder: (folder / "weights.safetensors").unlink(),
            r"safetensors cannot be read \(No such",
        ),
        (
            lambda folder: (folder / "tokenizer.json").write_bytes(b""),
            r"tokenizer.json cannot be read \(EOF while",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer.json cannot be read \(No such file"),
    ],
)
def test_an_encoder_whose_files_do_not_fit_each_other_is_refused(damage, message, clip_run, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(clip_run / "encoder", folder)
    damage(folder)
    path = folder / "encoder.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps({**metadata, "hash": content_hash(str(folder), metadata)}))
    options = export_encoder.Options(encoder=str(folder), output=str(tmp_path / "hf"))
    with pytest.raises(UserError, match=message) as caught:
        export_encoder.export(options)
    assert "\n" not in str(caught.value) and not (tmp_path / "hf").exists()


OURS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<bos>"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<eos>"}}],
    "special_tokens": {"<eos>": {"ids": [2]}, "<bos>": {"ids": [1]}},
}


def test_eos_and_the_last_token_swap_ids():
    tokenizer = {
        "model": {"vocab": {"<pad>": 0, "<bos>": 1, "<eos>": 2, "a": 3, "b": 4}},
        "post_processor": copy.deepcopy(OURS),
        "padding": {"pad_token": "<pad>"},
    }
    special = special_tokens(tokenizer, where="tokenizer.json")
    assert special == SpecialTokens(bos="<bos>", bos_id=1, eos="<eos>", eos_id=2, pad="<pad>")
    assert swapped_eos(tokenizer, special) == 4
    assert tokenizer["model"]["vocab"] == {"<pad>": 0, "<bos>": 1, "<eos>": 4, "a": 3, "b": 2}
    assert tokenizer["post_processor"]["special_tokens"] == {"<eos>": {"ids": [4]}, "<bos>": {"ids": [1]}}


def test_a_tokenizer_of_clip_keeps_its_ids_and_pads_with_its_end():
    tokenizer = {
        "model": {"vocab": {"a": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}},
        "post_processor": {"type": "RobertaProcessing", "cls": ["<|startoftext|>", 2], "sep": ["<|endoftext|>", 3]},
        "padding": {"pad_token": "<pad>"},
    }
    special = special_tokens(tokenizer, where="tokenizer.json")
    assert (special.bos_id, special.eos_id, special.pad) == (2, 3, "<|endoftext|>")
    assert swapped_eos(tokenizer, special) == 3 and tokenizer["model"]["vocab"]["a"] == 1


@pytest.mark.parametrize("processor", [None, {**OURS, "single": OURS["single"][:2]}])
def test_a_tokenizer_without_an_end_is_refused(processor):
    with pytest.raises(UserError, match="^encoder/tokenizer.json puts no tokens at the start and the end of a text"):
        special_tokens({"post_processor": processor}, where="encoder/tokenizer.json")


def test_the_folder_needs_no_code_of_its_own(exported):
    assert {path.name for path in exported.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert "auto_map" not in (exported / "config.json").read_text()
    tensors = safetensors.numpy.load_file(exported / "model.safetensors")
    with torch.device("meta"):
        expected = transformers.CLIPModel(transformers.CLIPConfig.from_pretrained(exported)).state_dict()
    wanted = {name: tuple(value.shape) for name, value in expected.items() if "position_ids" not in name}
    assert {name: value.shape for name, value in tensors.items()} == wanted
