"""Any torch module: `module:function` names Python code of the user's that returns one with its preprocessing."""

from __future__ import annotations

import importlib

import torch

from pipeline.schema import UserError
from trainer.encoder import Preprocessing
from trainer.importing.parts import ChannelsFirst, Parts


def read(model: str) -> Parts:
    """Returns the parts that function `model`, "package.module:function", returns.

    It takes nothing, and returns a torch module, of pictures [B, 3, S, S] to embeddings [B, D], and a `Preprocessing`;
    or, for a model with texts, `Parts`.

    Raises:
        UserError: there is no such function, or it returns something else.
    """
    module_name, _, function_name = model.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"MODEL is {model}, but there is no such function ({error})") from error
    returned = function()
    if isinstance(returned, Parts):
        return returned
    if not (
        isinstance(returned, tuple)
        and len(returned) == 2
        and isinstance(returned[0], torch.nn.Module)
        and isinstance(returned[1], Preprocessing)
    ):
        raise UserError(
            f"MODEL is {model}, which returned {type(returned).__name__}; it must return a torch.nn.Module and a "
            "trainer.encoder.Preprocessing"
        )
    return Parts(
        family="function",
        image=ChannelsFirst(returned[0]),
        text=None,
        preprocessing=returned[1],
        licence=None,
        source={"model": model},
    )
