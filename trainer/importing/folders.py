"""The files of a folder in which a model is published."""

from __future__ import annotations

import glob
import json
import os
import re
from typing import Any

from pipeline.schema import UserError
from pipeline.storage import disk


def one_line(error: BaseException) -> str:
    """Returns what an error of a library says, in one line of at most 300 characters; its type if it says nothing."""
    said = disk.one_line(error) or type(error).__name__
    return said if len(said) <= 300 else f"{said[:297]}..."


def read_json(path: str) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        UserError: the file holds something else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object; fetch it again")
    return content


def weights_in(folder: str, pickles: tuple[str, ...] = ("*.bin",)) -> str:
    """Returns the first file of safetensors, or where there is none the first one of the patterns `pickles`.

    Raises:
        UserError: there is neither.
    """
    for pattern in ("*.safetensors", *pickles):
        if found := sorted(glob.glob(os.path.join(glob.escape(folder), pattern))):
            return found[0]
    raise UserError(f"{folder} has no weights (*.safetensors); fetch them into it")


def licence_in(folder: str) -> str | None:
    """Returns the licence in the front matter of the folder's README.md."""
    path = os.path.join(folder, "README.md")
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8", errors="replace") as file:
        front = re.match(r"---\n(.*?)\n---", file.read(), re.DOTALL)
    found = re.search(r"^license:[ \t]*(\S.*)$", front[1], re.MULTILINE) if front else None
    return found[1].strip() if found else None
