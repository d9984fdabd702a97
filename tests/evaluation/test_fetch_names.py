import functools
import hashlib
import io
import json
import zipfile

import pytest

from evaluation.fetch_names import VERSION, download_wheel, main, unpack
from pipeline.schema import UserError

NAMES = {"imagenet1k": ["tench"]}


@functools.cache  # the archive holds the time
def wheel():
    """A wheel as pip accepts it, with code that fails when it is run."""
    buffer, info = io.BytesIO(), f"clip_benchmark-{VERSION}.dist-info"
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("clip_benchmark/__init__.py", "raise RuntimeError('its code was run')")
        archive.writestr("clip_benchmark/datasets/en_classnames.json", json.dumps(NAMES))
        archive.writestr("clip_benchmark/datasets/en_zeroshot_classification_templates.json", "{}")
        archive.writestr("clip_benchmark/datasets/other.json", "{}")
        archive.writestr(
            "clip_benchmark/datasets/builder.py",
            "raise RuntimeError('its code was run')\nall_imagenet_wordnet_ids = [\n  'n01440764', 'n01443537']\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: clip-benchmark\nVersion: {VERSION}\nRequires-Dist: not-to-be-found\n",
        )
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes wheels from, instead of the network."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", folder.as_uri()), ("CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


def test_pip_gets_the_wheel_without_its_dependencies(index):
    (index / f"clip_benchmark-{VERSION}-py3-none-any.whl").write_bytes(wheel())
    assert download_wheel() == wheel()


def test_only_the_two_files_are_unpacked_and_the_wordnet_ids_written(tmp_path):
    paths = unpack(wheel(), tmp_path / "names", sha256=hashlib.sha256(wheel()).hexdigest())
    assert sorted(path.name for path in (tmp_path / "names").iterdir()) == sorted(path.name for path in paths)
    assert [path.name for path in paths] == [
        "en_classnames.json",
        "en_zeroshot_classification_templates.json",
        "imagenet_wordnet_ids.json",
    ]
    assert json.loads(paths[0].read_text()) == NAMES
    assert json.loads(paths[2].read_text()) == ["n01440764", "n01443537"]


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path, capsys):
    path = tmp_path / "other.whl"
    path.write_bytes(wheel())
    assert main(["--wheel", str(path), "--output", str(tmp_path / "names")]) == 2
    said = capsys.readouterr().err
    assert hashlib.sha256(wheel()).hexdigest() in said and "get that version" in said
    assert not (tmp_path / "names").exists()


def test_a_wheel_that_cannot_be_had_is_one_line_with_pips_reason(index, capsys):
    assert main(["--output", str(index / "names")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: pip cannot get clip-benchmark {VERSION} (ERROR: No matching distribution")
    assert said.count("\n") == 1 and "--wheel" in said


def test_a_missing_wheel_is_named(tmp_path, capsys):
    assert main(["--wheel", str(tmp_path / "none.whl"), "--output", str(tmp_path)]) == 2
    assert "none.whl cannot be read (No such file or directory)" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .*give another --output"):
        unpack(wheel(), tmp_path / "file" / "names", sha256=hashlib.sha256(wheel()).hexdigest())


def test_a_python_without_pip_is_told_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["--output", str(tmp_path)]) == 2
    assert "has no pip; install it (uv pip install pip)" in capsys.readouterr().err
