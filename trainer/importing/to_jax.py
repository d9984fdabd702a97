"""Turns a torch module into a JAX function of its parameters, by torchax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
import torchax

from pipeline.schema import UserError
from trainer.importing.folders import one_line

Function = Callable[[dict[str, jax.Array], jax.Array], jax.Array]


def to_jax(module: torch.nn.Module, *, where: str) -> tuple[dict[str, np.ndarray], Function]:
    """Returns the module's parameters by name, and its function (parameters, inputs [B, ...]) -> float32 [B, D].

    Parameters keep their precision and their memory; shared ones occur once. The function computes in float32. Buffers
    (tables of positions, statistics of batch norm) are constants of it, so that nothing trains them.

    Args:
        where: names the model in errors.
        module: takes one tensor with the batch along its first axis. Its rows do not depend on each other.

    Raises:
        UserError: a parameter is not finite. The function raises it too, where torchax cannot trace the module.
    """
    module.eval()
    _register_plain_tensors(module)
    for name, value in module.named_parameters():
        if not torch.isfinite(value).all():
            raise UserError(f"{where}: {name} has values that are not finite; fetch the weights again")
    params = {name: _as_numpy(value) for name, value in module.named_parameters()}
    buffers = {name: _as_numpy(_in_float32(value)) for name, value in module.named_buffers()}
    environment = torchax.default_env()

    def of_one(params: dict[str, jax.Array], inputs: jax.Array) -> jax.Array:
        tensors = {name: jnp.asarray(value) for name, value in buffers.items()}
        tensors |= {name: value.astype(jnp.float32) for name, value in params.items()}
        with environment, torch.no_grad():
            outputs = torch.func.functional_call(
                module, environment.j2t_iso(tensors), (environment.j2t_iso(inputs[jnp.newaxis]),)
            )
        embedding: jax.Array = environment.t2j_iso(outputs)[0]
        return embedding

    def function(params: dict[str, jax.Array], inputs: jax.Array) -> jax.Array:
        # torch's sizes are integers, so a batch of unknown size goes through `vmap`. Its promotion is not JAX's.
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            try:
                return jax.vmap(of_one, in_axes=(None, 0))(params, inputs)
            except Exception as error:  # whatever the module does that torchax or a batch cannot
                raise UserError(f"{where}: torchax cannot turn the model into JAX ({one_line(error)})") from error

    return params, function


def _in_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Returns an array of the tensor's memory, contiguous."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.float64:
        tensor = tensor.float()
    if tensor.dtype == torch.bfloat16:  # which NumPy lacks
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    array: np.ndarray = tensor.numpy()
    return array


def _register_plain_tensors(module: torch.nn.Module) -> None:
    """Makes tensors that are plain attributes buffers: torchax reads only what is registered."""
    for owner in module.modules():
        plain: dict[str, Any] = {name: value for name, value in vars(owner).items() if isinstance(value, torch.Tensor)}
        for name, value in plain.items():
            delattr(owner, name)
            owner.register_buffer(name, value, persistent=False)
