"""`python -m pipeline.build_i2e`: image-text pairs -> an Image-to-Entities set.

    read -> validate -> find mentions -> propose candidates -> disambiguate -> score images      (annotate)
         -> select labels -> deduplicate -> build vocabulary -> write shards                     (assemble)

The command is resumable: run it again after a kill, or with other thresholds. Units that are annotated are skipped
when inputs, models, code and config are unchanged, and so are the shards of a set that would be the same again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import posixpath
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import tyro

from pipeline.commands import ending_on_user_errors
from pipeline.config import (
    AnnotateConfig,
    AssembleConfig,
    UnitConfig,
    check_annotate_config,
    check_assemble_config,
    check_unit_config,
)
from pipeline.jobs.annotate import Models, annotate, annotation_fingerprint, model_stages
from pipeline.jobs.assemble import assemble
from pipeline.jobs.plan import plan
from pipeline.runners import RunnerConfig, is_awaited, reporting_worker_errors, set_store_options, split_beam_args
from pipeline.schema import UserError
from pipeline.sources.inputs import list_inputs
from pipeline.storage.beam_files import read_json, write_json
from pipeline.storage.commits import prepare_output
from pipeline.storage.lock import output_lock

COMMAND_NAME = "units/command.json"  # the settings of the last run on the output
_OUTPUT_SHARE = 1.1  # free space to ask for, as a share of the input: pictures are copied, annotations are small


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildI2EConfig:
    """Mines an Image-to-Entities set from image-text pairs."""

    input: str = "runs/demo/corpus/pairs-*.tar"
    """WebDataset tars, in quotes: a path, a glob, braces such as {000..099}, several of these with commas between, or @
    and a file that lists them."""
    kb: str = "runs/demo/kb"
    """Folder of the knowledge base (python -m pipeline.build_kb). It, the tagger and the encoder lie on each worker's
    disk, or in a store (gs://), from which each machine copies them once."""
    ner_model: str = "runs/demo/tagger/best-model.pt"
    """Path or hub name of a Flair tagger. It runs on a GPU if there is one; FLAIR_DEVICE=cpu in the environment puts
    it, and the sentence encoder, on the CPU."""
    encoder: str = "runs/demo/models/bootstrap/encoder"
    """Folder of the encoder that compares pictures with entities."""
    output: str = "runs/demo/i2e"
    """Folder for the set and its annotations."""
    from_set: str | None = None
    """Folder of an earlier set that this one continues, which may be the output itself: its threshold and class ids
    stay, new classes follow, and unchanged shards are kept or copied."""
    wait: bool = False
    """Wait while another run writes to the output, instead of ending with an error."""
    units: UnitConfig = UnitConfig()
    annotate: AnnotateConfig = AnnotateConfig()
    assemble: AssembleConfig = AssembleConfig()
    runner: RunnerConfig = RunnerConfig()
    only_annotate: bool = False
    """End after the job that annotates; the command without it assembles the set."""


def build_i2e(
    config: BuildI2EConfig, beam_args: tuple[str, ...] = (), *, retry_failed: bool = False
) -> dict[str, Any] | None:
    """Returns the manifest of the set at `config.output`; None if it was told to assemble none.

    With `retry_failed` the failed rows of annotated units are run again.

    Raises:
        UserError: an input, a setting or the disk is at fault.
    """
    with reporting_worker_errors(config.output), contextlib.ExitStack() as locks:
        set_store_options(config.runner, beam_args)
        check_unit_config(config.units)
        check_annotate_config(config.annotate)
        check_assemble_config(config.assemble)
        min_score = config.assemble.select.min_verifier_score
        if min_score is not None and config.annotate.verify.verifier is None:
            raise UserError(f"--min-verifier-score is {min_score:g}, and there is no verifier; give --verifier too")
        shards = list_inputs(config.input)
        models = Models(kb=config.kb, ner_model=config.ner_model, encoder=config.encoder)
        fingerprint = annotation_fingerprint(models, config.annotate)
        prepare_output(config.output, needed_bytes=int(_OUTPUT_SHARE * sum(shard.size_bytes for shard in shards)))
        locks.enter_context(output_lock(config.output, command="build_i2e", wait=config.wait))
        _save_command(config)
        # A job that nobody waits for cannot make the plan of the next.
        planner = config.runner if is_awaited(config.runner, beam_args) else RunnerConfig()
        units = plan(shards, config.output, config=config.units, runner=planner, beam_args=beam_args)
        annotated = annotate(
            units,
            config.output,
            stages=lambda: model_stages(models, config.annotate),
            fingerprint=fingerprint,
            config=config.annotate,
            runner=config.runner,
            retry_failed=retry_failed,
            beam_args=beam_args,
        )
        if config.only_annotate or not is_awaited(config.runner, beam_args):
            return None
        return assemble(
            annotated,
            config.output,
            kb_path=config.kb,
            hashes=fingerprint,
            config=config.assemble,
            annotate_config=config.annotate,
            runner=config.runner,
            earlier_set=config.from_set,
            beam_args=beam_args,
        )


def _save_command(config: BuildI2EConfig) -> None:
    """Saves the settings beside the set, from which its failed rows can be run again."""
    path = posixpath.join(config.output, COMMAND_NAME)
    settings = json.loads(msgspec.json.encode(config))
    if read_json(path) != settings:
        write_json(path, settings)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; what follows `--` goes to Beam."""
    arguments, beam_args = split_beam_args(sys.argv[1:] if argv is None else argv)
    config = tyro.cli(tyro.conf.OmitArgPrefixes[BuildI2EConfig], args=arguments, prog="python -m pipeline.build_i2e")
    with ending_on_user_errors():
        manifest = build_i2e(config, beam_args)
    if manifest is None:
        return
    kept = sum(shard["num_records"] for shard in manifest["shards"])
    print(f"{config.output}: {kept} images of {manifest['num_rows']} rows, {manifest['num_classes']} entities")


if __name__ == "__main__":
    main()
