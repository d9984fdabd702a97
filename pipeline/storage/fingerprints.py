"""Hashes of files, code and configs: equal hashes mean that a result would be the same again."""

from __future__ import annotations

import ast
import dataclasses
import functools
import glob
import hashlib
import json
import os
from collections.abc import Iterable
from typing import Any

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the folder `pipeline`


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a local file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_files(patterns: Iterable[str]) -> list[str]:
    """Returns the files that the glob patterns match, which are relative to the folder `pipeline`."""
    return [path for pattern in patterns for path in glob.glob(os.path.join(_ROOT, pattern))]


def code_fingerprint(paths: Iterable[str]) -> str:
    """Returns a hash of Python files, which comments, docstrings and layout do not change."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        with open(path, encoding="utf-8") as file:
            digest.update(_meaning(file.read()))
    return digest.hexdigest()


@functools.cache  # the same files are asked for several times, and parsing takes long
def _meaning(code: str) -> bytes:
    tree = ast.parse(code)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [item for item in body if not _is_docstring(item)]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).digest()


def config_fingerprint(config: Any) -> str:
    """Returns a hash of a config dataclass."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode()).hexdigest()


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
