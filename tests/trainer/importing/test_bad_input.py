"""What cannot be imported is refused in one line that says why, and what to do."""

import json
import re
import sys

import pytest
import safetensors.torch
import torch
import transformers

from pipeline.schema import UserError
from tests.trainer.importing import published
from trainer import import_encoder as module
from trainer.encoder import Encoder
from trainer.import_encoder import Options, import_encoder
from trainer.importing.parts import ImageOptions


@pytest.fixture
def folder(tmp_path):
    return published.clip(tmp_path / "model")


def refused(folder, message, **options):
    output = folder.parent / "encoder"
    with pytest.raises(UserError, match=message) as caught:
        import_encoder(Options(model=str(folder), output=str(output), **options))
    assert "\n" not in str(caught.value)
    assert not (output / "encoder.json").exists()


def changed(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, rf"^{folder} has no weights \(\*\.safetensors\); fetch them into it$")


def test_a_folder_with_a_part_of_the_weights(folder):
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(
        folder, rf"^the weights in {folder} lack visual_projection.weight \(1 in all\), which CLIPModel needs; fetch"
    )


def test_weights_of_another_shape(folder):
    changed(folder / "config.json", projection_dim=20)
    refused(folder, rf"^{folder} cannot be read as CLIPModel: ")


def rewritten(folder, change):
    """Changes the tensors in a folder's weights."""
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    change(weights)
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("size", [0, 5000, -1000])
def test_weights_that_were_cut(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refused(folder, rf"^{folder} cannot be read as CLIPModel: Error while deserializing header: ")


PROJECTION = "visual_projection.weight"


def test_weights_that_are_integers(folder):
    rewritten(folder, lambda weights: weights.update({PROJECTION: weights[PROJECTION].to(torch.int32)}))
    refused(
        folder, rf"^{folder} cannot be read as CLIPModel: Error\(s\) in loading state_dict for Linear: .*floating poin"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder, value):
    rewritten(folder, lambda weights: weights[PROJECTION].view(-1)[3].fill_(value))
    refused(folder, rf"^{folder}: {PROJECTION} has values that are not finite; fetch the weights again$")


def test_weights_of_twice_the_precision_become_float32(folder):
    rewritten(folder, lambda weights: weights.update({name: value.double() for name, value in weights.items()}))
    import_encoder(Options(model=str(folder), output=str(folder.parent / "encoder")))
    assert {str(value.dtype) for value in Encoder.load(folder.parent / "encoder").image_params.values()} == {"float32"}


def test_weights_with_more_layers_than_the_config_says(folder):
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    layer = r"vision_model.encoder.layers.1.layer_norm1.bias"
    refused(folder, rf"^the weights in {folder} have {layer} \(16 such in all\), but CLIPModel has fewer layers by con")


def test_other_tensors_beside_the_weights_are_left_out(folder):
    rewritten(folder, lambda weights: weights.update({"head.weight": torch.ones(3)}))
    import_encoder(Options(model=str(folder), output=str(folder.parent / "encoder")))
    assert "head.weight" not in Encoder.load(folder.parent / "encoder").image_params


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_size", 64), ("hidden_size", "large"), ("patch_size", 0), ("image_size", "x"), ("hidden_act", "nothing")],
)
def test_a_config_that_is_wrong_about_a_tower(folder, field, value):
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, rf"^{folder} cannot be read as CLIPModel: .")


@pytest.mark.parametrize("content", ["", "{}", "[]"])
def test_a_tokenizer_that_is_damaged(folder, content):
    (folder / "tokenizer.json").write_text(content)
    refused(folder, rf"^{folder}: the tokenizer cannot be read: .")


def test_a_tokenizer_without_room(folder):
    changed(folder / "tokenizer_config.json", model_max_length=0)
    refused(folder, rf"^{folder}: the tokenizer takes 0 tokens \(model_max_length in tokenizer_config.json\)$")


def test_code_of_the_tokenizer_and_of_the_processor_is_never_run(folder):
    for name in ("tokenizer", "processor"):
        (folder / f"{name}.py").write_text("raise SystemExit('run')\n")
    changed(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenizer.T", None]}, tokenizer_class="T")
    refused(folder, rf"^{folder}: the tokenizer cannot be read: .* contains custom code")
    changed(
        folder / "preprocessor_config.json", auto_map={"AutoImageProcessor": "processor.P"}, image_processor_type="P"
    )
    refused(folder, rf"^{folder}/preprocessor_config.json cannot be read \(.* contains custom code")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_preprocessing_that_is_damaged(folder, content):
    (folder / "preprocessor_config.json").write_text(content)
    refused(
        folder, rf"^{folder}/preprocessor_config.json (is not valid JSON|holds a list, not an object).*; fetch it agai"
    )


def test_a_folder_without_config(folder):
    (folder / "config.json").unlink()
    refused(folder, rf"^{folder} has no config.json, so it is no Hugging Face folder; name one that has it$")


def test_a_config_that_was_cut(folder):
    (folder / "config.json").write_text("{")
    refused(folder, rf"^{folder}/config.json is not valid JSON \(.*\); fetch it again$")


def test_another_architecture(folder):
    changed(folder / "config.json", model_type="blip")
    known = "clip, clip_vision_model, siglip, siglip_vision_model, vision-text-dual-encoder, vit, dinov2, "
    refused(folder, rf"^{folder}/config.json has model_type 'blip', which is not known; known are {known}")


def test_pickled_weights_are_read_only_when_that_is_allowed(folder):
    model = transformers.CLIPModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    refused(folder, rf"^{folder}/pytorch_model.bin is a pickle file, .*; give --allow-pickle if you trust its source")
    output = folder.parent / "encoder"
    import_encoder(Options(model=str(folder), output=str(output), allow_pickle=True))
    assert Encoder.load(output).embedding_dim == 24


def test_code_of_the_model_is_never_run(folder):
    (folder / "modeling.py").write_text("raise SystemExit('run')\n")
    changed(folder / "config.json", auto_map={"AutoModel": "modeling.Model"})
    refused(folder, rf"^{folder}/config.json asks for code of its own \(auto_map\), which is never run; use a model of")


def test_a_missing_tokenizer(folder):
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    refused(folder, rf"^{folder} has no tokenizer \(tokenizer.json or .*\); fetch its files, or give --no-text for the")
    output = folder.parent / "encoder"
    import_encoder(Options(model=str(folder), output=str(output), text=False))
    assert not Encoder.load(output).has_text


def test_a_tokenizer_of_another_model(folder):
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    vocabulary["model"]["vocab"]["zzz"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    refused(
        folder, rf"^{folder}: the tokenizer has the id 5000, but the text tower knows only \d+ tokens; use the one of"
    )


def test_pictures_that_are_not_square(folder):
    changed(folder / "preprocessor_config.json", crop_size={"height": 32, "width": 24})
    refused(folder, rf"^{folder}/preprocessor_config.json: crop_size is 32 x 24; an encoder takes square pictures$")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_resize": False}, "do_resize is false; pictures of any size must become the model's input"),
        ({"do_center_crop": False}, "without do_center_crop pictures are not square; an encoder needs square ones"),
        ({"resample": 1}, r"resample is 1; an encoder resizes by 2 \(bilinear\) or 3 \(bicubic\)"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0; an encoder scales pixels by 1/255"),
        ({"resample": "bicubic"}, r"resample is bicubic; an encoder resizes by 2 \(bilinear\) or 3 \(bicubic\)"),
        ({"size": {"shortest_edge": 32.5}}, "resize_px is 32.5; it must be a whole number of pixels"),
        ({"image_mean": [0.5, 0.5]}, r"mean is \(0.5, 0.5\); it must be three numbers"),
        ({"image_mean": 0.5}, "mean is 0.5; it must be three numbers"),
        ({"image_std": [0, 0.1, 0.1]}, r"std is \(0, 0.1, 0.1\); pixels are divided by it, so it must be above 0"),
        ({"size": {"shortest_edge": 16}}, "resize_px is 16, less than the crop of 32 pixels; give at least that"),
    ],
)
def test_a_preprocessing_that_encoders_lack(folder, change, message):
    changed(folder / "preprocessor_config.json", **change)
    refused(folder, rf"^{folder}/preprocessor_config.json: {message}$")


def test_a_crop_that_the_model_does_not_take(folder):
    changed(folder / "preprocessor_config.json", size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40})
    refused(
        folder, rf"^{folder}: the model takes pictures of 32 pixels \(image_size in config.json\), but .* makes 40;"
    )


def test_a_model_of_pictures_that_are_not_square(tmp_path):
    folder = published.vit(tmp_path / "model")
    changed(folder / "config.json", image_size=[32, 64])
    refused(
        folder, rf"^{folder}( cannot be read as ViTModel: |/config.json: image_size is \[32, 64\]; an encoder takes)"
    )


def test_a_preprocessing_that_nothing_states_is_asked_for_and_taken(folder):
    (folder / "preprocessor_config.json").unlink()
    flags = (
        "--image.resize-px --image.fit --image.resize --image.antialias --image.round-pixels --image.alpha "
        "--image.crop-start --image.std"
    )
    stated = ImageOptions(image_size_px=32, mean=(0.5, 0.4, 0.3))
    message = "preprocessor_config.json does not say how pictures are preprocessed; say it with "
    refused(folder, f"{message}{re.escape(flags)}$", image=stated)
    options = ImageOptions(
        image_size_px=32,
        resize_px=36,
        fit="short_side",
        resize="bilinear",
        antialias=False,
        round_pixels=False,
        alpha="drop",
        crop_start="rounded",
        mean=(0.5, 0.4, 0.3),
        std=(0.1, 0.2, 0.3),
    )
    output = folder.parent / "encoder"
    import_encoder(Options(model=str(folder), output=str(output), image=options))
    preprocessing = Encoder.load(output).preprocessing
    assert (preprocessing.resize_px, preprocessing.antialias, preprocessing.std) == (36, False, (0.1, 0.2, 0.3))
    assert not preprocessing.round_pixels


def test_an_option_of_preprocessing_counts_more_than_the_files(folder):
    output = folder.parent / "encoder"
    import_encoder(Options(model=str(folder), output=str(output), image=ImageOptions(alpha="white")))
    assert Encoder.load(output).preprocessing.alpha == "white"


@pytest.mark.parametrize("length", [1, 17])
def test_a_context_that_the_model_does_not_take(folder, length):
    refused(folder, f"^--context-length is {length}; the model takes from 2 to 16 tokens$", context_length=length)


def test_siglip_reads_a_fixed_number_of_tokens(tmp_path):
    folder = published.siglip(tmp_path / "model")
    refused(folder, "^--context-length is 8, but SigLIP reads the last of 16 tokens; leave it out$", context_length=8)


def test_a_name_of_the_hub_without_network(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^MODEL is an/model: there is no such folder, and the hub could not be asked"):
        import_encoder(Options(model="an/model", output=str(tmp_path)))
    with pytest.raises(UserError, match=r"fetch the model's files where there is a network, and give MODEL= their fol"):
        import_encoder(Options(model="an/model", output=str(tmp_path)))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=rf"^MODEL is {tmp_path}/none, and there is no such folder$"):
        import_encoder(Options(model=f"{tmp_path}/none", output=str(tmp_path)))


def test_the_command_reports_an_error_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module.jax.config, "update", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["import", "--model", str(tmp_path), "--output", str(tmp_path / "encoder")])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} has no config.json")


def test_the_command_writes_an_encoder(folder, monkeypatch, capsys):
    output = folder.parent / "encoder"
    monkeypatch.setattr(module.jax.config, "update", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["import", "--model", str(folder), "--output", str(output), "--licence", "mit"])
    module.main()
    assert capsys.readouterr().out == f"wrote {output} (hash {Encoder.load(output).hash[:12]})\n"
    assert json.loads((output / "encoder.json").read_text())["provenance"]["imported_from"]["licence"] == "mit"
