"""A store on this machine, and Google's client libraries, both of which the tests install once below .cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
EMULATOR = ROOT / "infra" / "storage_emulator"
REQUIREMENTS = ROOT / "infra" / "dataflow" / "requirements.txt"
BUCKET, LOCKED_BUCKET = "mofi", "locked"
START_SEC = 60


class Store:
    """The emulator's buckets, by name of object."""

    def __init__(self, url: str, credentials: Path, authority: Path, libraries: Path):
        self.url = url
        self.libraries = libraries
        self.cache = authority.with_name("cache")
        self.environment = {
            "STORAGE_EMULATOR_HOST": url,
            "GOOGLE_APPLICATION_CREDENTIALS": str(credentials),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(libraries)]),
        }
        # Each library that a run writes with finds the emulator in its own way, TensorFlow as a proxy.
        self.environment_of_runs = {
            **self.environment,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "TENSORSTORE_CA_BUNDLE": str(authority),
            "CURL_CA_BUNDLE": str(authority),
            "https_proxy": url,
            "no_proxy": "127.0.0.1",
        }

    def upload(self, path: Path, name: str) -> None:
        """Writes a file, or the files of a folder, under `name`."""
        if path.is_dir():
            for file in sorted(path.iterdir()):
                self.upload(file, f"{name}/{file.name}")
        else:
            self.write(name, path.read_bytes())

    def write(self, name: str, content: bytes) -> None:
        """Writes an object."""
        query = urllib.parse.urlencode({"uploadType": "media", "name": name})
        url = f"{self.url}/upload/storage/v1/b/{BUCKET}/o?{query}"
        urllib.request.urlopen(urllib.request.Request(url, data=content, method="POST")).close()

    def names(self, prefix: str) -> list[str]:
        """Returns the names of the objects that start with `prefix`."""
        query = urllib.parse.urlencode({"prefix": prefix})
        with urllib.request.urlopen(f"{self.url}/storage/v1/b/{BUCKET}/o?{query}") as answer:
            return [item["name"] for item in json.load(answer).get("items", [])]

    def read(self, name: str) -> bytes:
        """Returns the content of an object."""
        quoted = urllib.parse.quote(name, safe="")
        with urllib.request.urlopen(f"{self.url}/storage/v1/b/{BUCKET}/o/{quoted}?alt=media") as answer:
            content: bytes = answer.read()
        return content

    def digests(self, prefix: str) -> dict[str, str]:
        """Returns the hashes of the objects below the folder `prefix`, by their names in it."""
        return {
            name.removeprefix(f"{prefix}/"): hashlib.sha256(self.read(name)).hexdigest()
            for name in self.names(f"{prefix}/")
        }


@contextmanager
def running_store(folder: Path) -> Iterator[Store]:
    """Starts the emulator with an empty bucket, and one that refuses to be written; ends it with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    credentials, authority = folder / "key.json", folder / "authority.pem"
    command = [str(_build_emulator()), "-port", str(port), "-bucket", BUCKET, "-read-only", LOCKED_BUCKET]
    command += ["-credentials", str(credentials), "-authority", str(authority)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as emulator:
        try:
            store = Store(f"http://127.0.0.1:{port}", credentials, authority, _install_libraries())
            deadline = time.monotonic() + START_SEC
            while True:
                with suppress(urllib.error.URLError, ConnectionError):
                    store.names("")
                    break
                assert emulator.poll() is None and time.monotonic() < deadline, "the emulator does not start"
                time.sleep(0.1)
            yield store
        finally:
            emulator.kill()


def _build_emulator() -> Path:
    """Returns the program that infra/storage_emulator makes; Go's module proxy has its parts."""
    sources = b"".join((EMULATOR / name).read_bytes() for name in ("main.go", "go.mod", "go.sum"))
    program = CACHE / f"storage_emulator-{hashlib.sha256(sources).hexdigest()[:12]}"
    if not program.exists():
        assert shutil.which("go"), "'go' is missing; install Go 1.25 or later for the storage emulator"
        unfinished = program.with_name(f"{program.name}.{uuid.uuid4().hex}.tmp")
        subprocess.run(["go", "build", "-buildvcs=false", "-o", str(unfinished), "."], cwd=EMULATOR, check=True)
        unfinished.rename(program)
    return program


def _install_libraries() -> Path:
    """Returns a folder with Google's client libraries: in .venv they would slow each import of Beam."""
    folder = CACHE / f"gcp-{hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]}"
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
        command = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "install",
            "--quiet",
            "--require-hashes",
            "--python",
            sys.executable,
        ]
        subprocess.run([*command, "--target", str(unfinished), "-r", str(REQUIREMENTS)], check=True)
        with suppress(OSError):  # another process was quicker
            unfinished.rename(folder)
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder
