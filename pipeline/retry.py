"""`python -m pipeline.retry`: runs the failed rows of a set again, and no others, with the settings of its last run.

The set is then the one that a run would have made in which they had not failed. Rows whose input is damaged fail again
until it is repaired; a repaired file is new, and is annotated as a whole.
"""

from __future__ import annotations

import dataclasses
import posixpath
import sys
from collections.abc import Sequence

import msgspec
import tyro

from pipeline.build_i2e import COMMAND_NAME, BuildI2EConfig, build_i2e
from pipeline.commands import ending_on_user_errors
from pipeline.runners import split_beam_args
from pipeline.schema import UserError
from pipeline.storage.beam_files import read_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetryConfig:
    """Runs the failed rows of a set again."""

    data: str = "runs/demo/i2e"
    """Folder of the set. Inputs and models are where its last run found them: start the command in the same folder."""


def read_command(data: str) -> BuildI2EConfig:
    """Returns the settings of the last run on the folder `data`.

    Raises:
        UserError: there are none, or they are of another version of the program.
    """
    path = posixpath.join(data, COMMAND_NAME)
    try:
        config = msgspec.json.decode(read_bytes(path), type=BuildI2EConfig)
    except OSError as error:
        raise UserError(
            f"--data {data} holds no set that can be retried ({COMMAND_NAME} is missing); give the folder that "
            "python -m pipeline.build_i2e wrote"
        ) from error
    except msgspec.MsgspecError as error:
        raise UserError(
            f"{path} cannot be read ({error}); run python -m pipeline.build_i2e once with the settings of the set"
        ) from error
    return dataclasses.replace(config, output=data)  # the folder may have been moved


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; what follows `--` goes to Beam."""
    arguments, beam_args = split_beam_args(sys.argv[1:] if argv is None else argv)
    config = tyro.cli(RetryConfig, args=arguments, prog="python -m pipeline.retry")
    with ending_on_user_errors():
        manifest = build_i2e(read_command(config.data), beam_args, retry_failed=True)
    if manifest is not None:
        kept = sum(shard["num_records"] for shard in manifest["shards"])
        print(f"{config.data}: {kept} images of {manifest['num_rows']} rows, {manifest['num_classes']} entities")


if __name__ == "__main__":
    main()
