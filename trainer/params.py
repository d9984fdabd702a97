"""Prints the parameters of an experiment by module: `python -m trainer.params --config NAME`."""

from __future__ import annotations

import dataclasses

import tyro
from clu import parameter_overview

from pipeline.commands import ending_on_user_errors
from trainer.configs.base import check, override
from trainer.configs.experiments import get_experiment
from trainer.mesh import abstract_mesh
from trainer.optimizer import make_optimizer
from trainer.state import abstract_state, make_models


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Prints name, shape and size of each parameter of an experiment. Nothing is allocated."""

    config: str
    """Name of the experiment."""
    classes: int = 1_000_000
    """Classes of the set, if the experiment has a classifier."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A field of the experiment to change, e.g. image.depth=6; can be repeated."""


def main() -> None:
    options = tyro.cli(Options, prog="python -m trainer.params")
    with ending_on_user_errors():
        experiment = override(get_experiment(options.config), options.set)
        check(experiment)
        models, optimizer = make_models(experiment), make_optimizer(experiment.optimizer, experiment.steps)
        state = abstract_state(experiment, models, optimizer, abstract_mesh(1, 1), options.classes)
        print(parameter_overview.get_parameter_overview(state.params, include_stats=False))


if __name__ == "__main__":
    main()
