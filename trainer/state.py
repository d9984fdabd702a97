"""The training state: parameters and optimiser moments."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from trainer.configs.base import Experiment, ImageTower, TextTower
from trainer.mesh import AnyMesh, gathered, replicated, state_shardings
from trainer.models.attention import fastest_attention
from trainer.models.classifier import init_classifier, padded
from trainer.models.layers import Layers
from trainer.models.text_tower import TextModel
from trainer.models.vit import ImageModel, scale_by_data


class State(flax.struct.PyTreeNode):
    """What a step changes and a checkpoint holds."""

    params: dict[str, Any]  # image, and as the losses need: text, log_scale, class_vectors, log_class_scale
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Models:
    """The towers of an experiment; without contrastive loss there is no text tower."""

    image: ImageModel
    text: TextModel | None

    @property
    def attention(self) -> str:
        """What computes the towers' attention."""
        names = {"xla": "XLA", "cudnn": "cuDNN's flash attention"}
        towers = {"image": self.image, "text": self.text}
        return ", ".join(f"{name} tower: {names[t.layers.attention]}" for name, t in towers.items() if t is not None)


def make_models(experiment: Experiment, mesh: Mesh | None = None) -> Models:
    """Returns the towers that the experiment's losses need.

    Args:
        experiment: what they are for.
        mesh: the devices that they train on. Scanned blocks are split over them, each is made whole when it runs, and
            attention is the fastest that they have. None: as in an exported encoder, blocks are whole already, and the
            program runs on any device.
    """
    dtype, image, text = jnp.dtype(experiment.dtype), experiment.image, experiment.text
    layers = Layers(scan=experiment.scan_layers, remat=experiment.remat)

    def of(tower: ImageTower | TextTower, *, causal: bool) -> Layers:
        if mesh is None:
            return layers
        attention = fastest_attention(
            mesh.devices.flat[0].platform,
            num_heads=tower.num_heads,
            head_width=tower.width // tower.num_heads,
            causal=causal,
            dtype=experiment.dtype,
        )
        gather = functools.partial(gathered, mesh)
        return dataclasses.replace(layers, unroll=experiment.scan_unroll, gather=gather, attention=attention)

    image_model = ImageModel(image, experiment.embedding_dim, dtype, of(image, causal=False))
    text_model = TextModel(text, experiment.embedding_dim, dtype, of(text, causal=text.pool == "last"))
    return Models(image_model, text_model if experiment.contrasts else None)


def abstract_state(
    experiment: Experiment, models: Models, optimizer: optax.GradientTransformation, mesh: AnyMesh, num_classes: int
) -> State:
    """Returns the shapes, dtypes and shardings of the state, which a checkpoint is restored with."""
    size = experiment.image.image_size_px
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(_init(experiment, models, optimizer, mesh, num_classes), images)
    abstract: State = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes),
    )
    return abstract


def init_state(
    experiment: Experiment,
    models: Models,
    optimizer: optax.GradientTransformation,
    mesh: AnyMesh,
    num_classes: int,
    images: np.ndarray,
) -> State:
    """Returns the state at step 0, on the mesh.

    Args:
        experiment: the run.
        models: its towers.
        optimizer: its optimiser.
        mesh: the devices.
        num_classes: classes of the set.
        images: normalised float32 [N, S, S, 3]; used to scale the parameters if `image.scale_init_by_data` is set.
    """
    abstract = abstract_state(experiment, models, optimizer, mesh, num_classes)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    init = jax.jit(_init(experiment, models, optimizer, mesh, num_classes), out_shardings=shardings)
    state: State = init(images)
    return state


def _init(
    experiment: Experiment, models: Models, optimizer: optax.GradientTransformation, mesh: AnyMesh, num_classes: int
) -> Callable[[jax.Array], State]:
    def init(images: jax.Array) -> State:
        keys = jax.random.split(jax.random.key(experiment.seed), 3)
        image_params = models.image.init(keys[0], images)["params"]
        image_params = jax.lax.with_sharding_constraint(image_params, replicated(mesh))
        if experiment.image.scale_init_by_data:
            image_params = scale_by_data(models.image, image_params, images)
        params: dict[str, Any] = {"image": image_params}
        if models.text is not None:
            tokens = jnp.ones((1, experiment.text.context_length), jnp.int32)
            params["text"] = models.text.init(keys[1], tokens)["params"]
            params["log_scale"] = jnp.log(jnp.float32(1 / experiment.loss.contrastive_temperature))
        if experiment.classifies:
            # Sampling divides the rows into blocks that must be the same on every mesh.
            rows = padded(num_classes, experiment.loss.sample_blocks if experiment.samples else mesh.size)
            params["class_vectors"] = init_classifier(
                keys[2], num_classes, rows, experiment.embedding_dim, experiment.loss.class_std
            )
            params["log_class_scale"] = jnp.log(jnp.float32(experiment.loss.class_scale))
        return State(params=params, opt_state=optimizer.init(params))

    return init
