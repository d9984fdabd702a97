"""`python -m pipeline.pack_pairs`: image-text pairs -> a set of raw pairs, without labels, to train an encoder on."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from pipeline.commands import ending_on_user_errors
from pipeline.config import PackConfig, check_pack_config
from pipeline.jobs.pack import pack
from pipeline.runners import RunnerConfig, pipeline_options, reporting_worker_errors, split_beam_args
from pipeline.sources.inputs import list_inputs, with_fingerprint
from pipeline.storage.commits import prepare_output
from pipeline.storage.lock import output_lock

_OUTPUT_SHARE = 1.1  # free space to ask for, as a share of the input


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackPairsConfig:
    """Packs image-text pairs into a set that the trainer reads."""

    input: str = "runs/demo/corpus/pairs-*.tar"
    """WebDataset tars, in quotes: a path, a glob, braces such as {000..099}, several of these with commas between, or @
    and a file that lists them."""
    output: str = "runs/demo/pairs"
    """Folder for the set."""
    wait: bool = False
    """Wait while another run writes to the output, instead of ending with an error."""
    pack: PackConfig = PackConfig()
    runner: RunnerConfig = RunnerConfig()


def pack_pairs(config: PackPairsConfig, beam_args: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns the manifest of the set at `config.output`; shards finished before are skipped.

    Raises:
        UserError: an input, a setting or the disk is at fault, or no pair is usable.
    """
    with reporting_worker_errors(config.output):
        pipeline_options(config.runner, beam_args)
        check_pack_config(config.pack)
        shards = [with_fingerprint(shard) for shard in list_inputs(config.input)]
        prepare_output(config.output, needed_bytes=int(_OUTPUT_SHARE * sum(shard.size_bytes for shard in shards)))
        with output_lock(config.output, command="pack_pairs", wait=config.wait):
            return pack(shards, config.output, config=config.pack, runner=config.runner, beam_args=beam_args)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; what follows `--` goes to Beam."""
    arguments, beam_args = split_beam_args(sys.argv[1:] if argv is None else argv)
    config = tyro.cli(tyro.conf.OmitArgPrefixes[PackPairsConfig], args=arguments, prog="python -m pipeline.pack_pairs")
    with ending_on_user_errors():
        manifest = pack_pairs(config, beam_args)
    count = sum(shard["num_records"] for shard in manifest["shards"])
    print(f"{config.output}: {count} pairs; rejected: {manifest['rejections'] or 'none'}")


if __name__ == "__main__":
    main()
