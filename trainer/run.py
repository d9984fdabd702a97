"""The parts of a run, made from its experiment, data and mesh, and its state at the start."""

from __future__ import annotations

import dataclasses
import os

import jax
import numpy as np
import optax
import tokenizers
from etils import epath
from jax.sharding import Mesh

from trainer.configs.base import Experiment
from trainer.data import Corpus, ReadExample, first_images, make_example, make_tokenizer
from trainer.encoder import Preprocessing
from trainer.example import Example
from trainer.files import reporting_store_errors, write_file
from trainer.init_from import check_fields, read_source, read_tokenizer, with_source
from trainer.optimizer import make_optimizer
from trainer.processes import say, wait_for_all
from trainer.state import Models, State, abstract_state, init_state, make_models
from trainer.workdir import TOKENIZER_FILE

_INIT_IMAGES = 256  # images over which the initial parameters are scaled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of one run."""

    experiment: Experiment
    corpus: Corpus
    devices: Mesh
    workdir: str
    preprocessing: Preprocessing
    tokenizer: tokenizers.Tokenizer | None
    example: Example
    models: Models
    optimizer: optax.GradientTransformation
    abstract: State  # shapes and shardings of the state


def make_run(experiment: Experiment, corpus: Corpus, devices: Mesh, workdir: str) -> Run:
    """Returns the parts of a run; its tokenizer is written to `workdir` if it is not there."""
    preprocessing = Preprocessing(image_size_px=experiment.image.image_size_px, antialias=experiment.image.antialias)
    tokenizer = _tokenizer(corpus, experiment, workdir) if experiment.contrasts else None
    models = make_models(experiment)
    optimizer = make_optimizer(experiment.optimizer, experiment.steps)
    return Run(
        experiment=experiment,
        corpus=corpus,
        devices=devices,
        workdir=workdir,
        preprocessing=preprocessing,
        tokenizer=tokenizer,
        example=make_example(corpus, experiment, preprocessing, tokenizer),
        models=models,
        optimizer=optimizer,
        abstract=abstract_state(experiment, models, optimizer, devices, corpus.num_classes),
    )


def new_state(run: Run) -> State:
    """Returns the state at step 0, on the mesh: random parameters, or those that `init_from` names.

    Raises:
        UserError: `init_from` names none, or they do not fit.
    """
    size = run.preprocessing.image_size_px
    images = np.zeros((1, size, size, 3), np.float32)  # of which only the shape counts
    if run.experiment.image.scale_init_by_data:
        count = min(_INIT_IMAGES, run.corpus.image_set.num_records)
        read = ReadExample(run.corpus.records, run.example, run.experiment.data.num_skippable)
        images = first_images(read, run.preprocessing, count)
    state = init_state(run.experiment, run.models, run.optimizer, run.devices, run.corpus.num_classes, images)
    if not run.experiment.init_from:
        return state
    with reporting_store_errors(run.experiment.init_from, option="init_from"):
        source = read_source(run.experiment.init_from)
    check_fields(source, run.experiment)
    state, lines = with_source(state, source, run.corpus.entity_ids)
    say(f"initial parameters from {run.experiment.init_from}: {'; '.join(lines)}")
    return state


def _tokenizer(corpus: Corpus, experiment: Experiment, workdir: str) -> tokenizers.Tokenizer:
    """Returns the run's tokenizer, which process 0 trains once and keeps in `workdir`."""
    path = os.path.join(workdir, TOKENIZER_FILE)
    if jax.process_index() == 0 and not epath.Path(path).exists():
        # A text tower goes with the tokenizer that it was trained on.
        with reporting_store_errors(experiment.init_from, option="init_from"):
            given = read_tokenizer(experiment.init_from) if experiment.init_from else None
        made = make_tokenizer(corpus, experiment) if given is None else given
        write_file(path, made.to_str(pretty=True).encode())
    wait_for_all("tokenizer")
    return tokenizers.Tokenizer.from_str(epath.Path(path).read_text())
