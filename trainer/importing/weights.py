"""Weights in files: safetensors are read, pickles only when that is allowed, and all of a model's must be there."""

from __future__ import annotations

from typing import Any

import safetensors.torch
import torch

from pipeline.schema import UserError
from trainer.importing.folders import one_line


def check_pickle(path: str, allow_pickle: bool) -> None:
    """Checks that a file may be read.

    Raises:
        UserError: it is a pickle, and those are not allowed.
    """
    if not allow_pickle and not path.endswith(".safetensors"):
        raise UserError(
            f"{path} is a pickle file, which can run code when it is read; give --allow-pickle if you trust "
            "its source, or save the model with safetensors"
        )


def state_in(path: str, allow_pickle: bool) -> dict[str, torch.Tensor]:
    """Returns the tensors in a file of weights, by name.

    Raises:
        UserError: it cannot be read, or is a pickle, and those are not allowed.
    """
    check_pickle(path, allow_pickle)
    try:
        if path.endswith(".safetensors"):
            state: Any = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged file brings about
        raise UserError(f"{path} cannot be read ({one_line(error)}); fetch it again") from error
    for name in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    return {name.removeprefix("module."): value for name, value in state.items() if isinstance(value, torch.Tensor)}


def fill(module: torch.nn.Module, state: dict[str, torch.Tensor], *, where: str) -> None:
    """Puts tensors into a module, in their own precision; others than the module's are left out.

    Raises:
        UserError: the module needs one that is not there or that has another shape.
    """
    wanted = module.state_dict()
    lacking = [name for name, value in wanted.items() if name not in state or state[name].shape != value.shape]
    if lacking:
        raise UserError(
            f"{where} lacks {lacking[0]} of shape {list(wanted[lacking[0]].shape)} ({len(lacking)} tensors in all), "
            "which the model needs; name the model that the weights are of"
        )
    module.load_state_dict({name: state[name] for name in wanted}, assign=True)
