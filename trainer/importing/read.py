"""Finds out of which family a model is, and reads its parts."""

from __future__ import annotations

import os
import re

from trainer.importing.parts import ImageOptions, Parts


def read(
    model: str, options: ImageOptions, *, context_length: int | None, allow_pickle: bool, with_text: bool
) -> Parts:
    """Returns the parts of a model; the arguments are those of `trainer.importing.hugging_face.read`.

    Raises:
        UserError: it cannot be imported; the message says why.
    """
    # Each family's library is loaded only for its own models.
    is_folder = os.path.isdir(model)
    if not is_folder and model.startswith("timm:"):
        from trainer.importing import timm_models

        return timm_models.read(model, options, allow_pickle=allow_pickle)
    if not is_folder and re.fullmatch(r"(?!open_clip:)[A-Za-z_][\w.]*:[A-Za-z_]\w*", model):
        from trainer.importing import python_function

        return python_function.read(model)
    # Some folders are in both layouts; that of transformers comes first.
    of_open_clip = is_folder and "open_clip_config.json" in (names := os.listdir(model)) and "config.json" not in names
    if of_open_clip or (not is_folder and model.startswith("open_clip:")):
        from trainer.importing import open_clip_models

        return open_clip_models.read(
            model, options, context_length=context_length, allow_pickle=allow_pickle, with_text=with_text
        )
    from trainer.importing import hugging_face

    return hugging_face.read(
        model, options, context_length=context_length, allow_pickle=allow_pickle, with_text=with_text
    )
