"""What a training step needs, by arithmetic alone: for GPUs, and to see which changes are worth compiling.

Activations are what JAX keeps between the forward and the backward pass, by the shapes of the step's own residuals.
A compiler fuses some of them away and needs scratch space for others, so that this is right to a few tens of percent.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from synthclip_jax import config as config_lib
from synthclip_jax.config.generation import Images
from synthclip_jax.config.schema import Config, Train
from synthclip_jax.devices import sharding
from synthclip_jax.model import flops
from synthclip_jax.model.blocks import attention_kernel, remat_policy
from synthclip_jax.model.preprocess import normalise
from synthclip_jax.model.towers import make_model
from synthclip_jax.plan.chips import Topology
from synthclip_jax.training.optim import Length, trainable_mask
from synthclip_jax.training.step import Program, make_program

# A prime, by which residuals that grow with the batch are told from those that do not.
_PROBE = 1009


class Need(NamedTuple):
    """Bytes on one device."""

    parameters: float
    optimizer: float
    ema: float
    batch: float
    gradients: float
    activations: float
    loss: float

    @property
    def arguments(self) -> float:
        return self.parameters + self.optimizer + self.ema + self.batch

    @property
    def temporary(self) -> float:
        return self.gradients + self.activations + self.loss

    @property
    def total(self) -> float:
        return self.arguments + self.temporary


class Work(NamedTuple):
    """What one step does. FLOPs of all devices; bytes of one device.

    Attributes:
      model: 3 x forward FLOPs, the numerator of MFU.
      recomputed: FLOPs done twice.
      loss: FLOPs of the loss, in float32.
      memory: bytes to and from HBM.
      wire: bytes sent to other devices.
      unread: FLOPs that `model` counts and nobody does (`flops.unread_flops`).
    """

    model: float
    recomputed: float
    loss: float
    memory: float
    wire: float
    unread: float = 0.0

    def product_seconds(self, peak: float, float32_cost: float) -> float:
        """How long the products take at so many FLOP/s of all devices; those in float32 take `float32_cost` as long."""
        return (self.model - self.unread + self.recomputed + self.loss * float32_cost) / peak


def any_length(train: Train) -> Length:
    """A length of the run for where it does not matter: neither memory nor time of a step depend on it."""
    return Length(train.batch_size, train.batch_size, 2, 1)


def state_bytes(program: Program) -> dict[str, float]:
    """Bytes on one device of what the step is given, by kind."""

    def local(tree: Any) -> float:
        return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))

    state = program.state
    counters = local((state.step, state.skipped))
    return {
        "parameters": local(state.params),
        "optimizer": local(state.opt_state) + counters,
        "ema": local(state.ema),
        "batch": local(program.batch),
    }


def estimate(config: Config, topology: Topology) -> Need:
    """Memory that the step of `config` needs on each device of a machine.

    Raises:
      MeshError: batch, mesh and machine do not fit together.
      ConfigError: a regular expression of `config.train` matches no parameter.
    """
    shape = sharding.mesh_shape(config.train.mesh, topology.chips)
    mesh = AbstractMesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape))
    train = config.train
    sharding.check_batch(train.batch_size, mesh, train.microbatch)
    given = _given(
        with_changes(config, {"model.remat": "none", "train.microbatch": 0, "train.loss_method": "dense"}), mesh
    )
    shards = sharding.batch_shards(mesh)
    part = (train.microbatch or train.batch_size) / shards
    kernel = attention(config, topology)
    policy = remat(config, topology)
    per_pair, block = _residuals(_model_key(with_changes(config, {"model.attention": kernel})), policy)
    accumulated = train.microbatch not in (0, train.batch_size)
    rows = min(train.loss_block, train.batch_size / shards) if train.loss_method == "ring" else 0
    # Logits, and two arrays of their size for the gradient; ring has one block of each.
    logits = 3 * 4 * (rows**2 if rows else train.batch_size**2 / shards)
    embeddings = 4 * 4 * (train.batch_size / shards if rows else train.batch_size) * config.model.embed_dim
    return Need(
        **given,
        # While a microbatch adds its gradient, there are two.
        gradients=given["parameters"] * (2 if accumulated else 1),
        activations=part * (per_pair + (block if policy != "none" else 0)) / shape["tensor"],
        loss=logits + embeddings,
    )


def work(config: Config, topology: Topology, need: Need) -> Work:
    """What the step does, with the least bytes that must move: activations out and back, parameters, gradients."""
    config = with_changes(config, {"model.remat": remat(config, topology)})
    train, model = config.train, config.model
    accumulated = train.microbatch not in (0, train.batch_size)
    of_pair = (model, config.data.image_size, None, train.patch_dropout)
    parts = train.batch_size / train.microbatch if accumulated else 1
    shape = sharding.mesh_shape(train.mesh, topology.chips)
    shards = shape["data"] * shape["fsdp"]
    ring = train.loss_method == "ring"
    gradients = need.parameters * shape["fsdp"]  # of the whole model, or of this device's share of each layer
    split = (shape["fsdp"] - 1) / shape["fsdp"]
    # Gradients are summed once a microbatch; with fsdp, parameters are also fetched for both passes.
    wire = parts * 2 * (shards - 1) / shards * gradients + parts * split * gradients
    wire += 4 * 4 * train.batch_size * model.embed_dim * (shards - 1) / shards
    state = need.parameters + need.optimizer + need.ema
    return Work(
        model=train.batch_size * flops.train_flops(*of_pair),
        recomputed=train.batch_size * flops.recomputed_flops(*of_pair, accumulated),
        loss=train.batch_size * flops.loss_flops(model.embed_dim, train.batch_size, ring),
        memory=2 * (parts * need.activations + state) + need.gradients + need.batch,
        wire=wire,
        unread=train.batch_size * flops.unread_flops(*of_pair),
    )


def with_changes(config: Config, changes: Mapping[str, Any]) -> Config:
    """The config with other values, by keys such as `train.microbatch`."""
    changed = ml_collections.ConfigDict(config).copy_and_resolve_references()
    changed.update_from_flattened_dict(changes)
    return ml_collections.FrozenConfigDict(changed)


def attention(config: Config, topology: Topology) -> str:
    """The kernel of attention that a config takes on a machine; see `attention_kernel`."""
    tokens = (config.data.image_size // config.model.vision.patch_size) ** 2 + 1
    return attention_kernel(config.model, "tpu" if topology.is_tpu else "gpu", tokens)


def remat(config: Config, topology: Topology) -> str:
    """What is recomputed on a machine; see `remat_policy`."""
    return remat_policy(config.model, "tpu" if topology.is_tpu else "gpu")


@functools.cache
def _given(config: Config, mesh: AbstractMesh) -> dict[str, float]:
    """`state_bytes` of a config; of configs that agree in what it depends on, once."""
    return state_bytes(make_program(config, mesh, any_length(config.train)))


def _model_key(config: Config) -> Config:
    """What the residuals depend on, so that they are worked out once for many changes."""
    return ml_collections.FrozenConfigDict(
        {
            "model": config_lib.plain(config.model) | {"remat": "none"},
            "data": {key: config.data[key] for key in ("image_size", "mean", "std")},
            "train": {key: config.train[key] for key in ("frozen", "patch_dropout")},
        }
    )


@functools.cache
def _residuals(key: ml_collections.FrozenConfigDict, remat: str) -> tuple[float, float]:
    """Bytes kept for one pair between the passes, and what the recomputation of one block needs at most."""
    kept = _residual_bytes(key, remat)
    everything = kept if remat == "none" else _residual_bytes(key, "none")
    # The last layer keeps next to nothing.
    return kept, everything / max(1, min(key.model.vision.layers, key.model.text.layers) - 1)


def _residual_bytes(key: Any, remat: str) -> float:
    size, context = key.data.image_size, key.model.text.context_length
    model = ml_collections.ConfigDict(key.model.to_dict() | {"remat": remat, "attention": "xla"})
    graphdef, _, params = make_model(model, size)
    mask = trainable_mask(params, key.train.frozen)
    patches = (size // key.model.vision.patch_size) ** 2
    left = flops.kept_patches(patches, key.train.patch_dropout)

    def embed(params: Any, images: Images, tokens: Any, kept: Any):
        params = jax.tree.map(lambda x, trainable: x if trainable else jax.lax.stop_gradient(x), params, mask)
        model = nnx.merge(graphdef, params)
        images = normalise(images, key.data.mean, key.data.std)
        return model.encode_image(images, kept=kept), model.encode_text(tokens)

    def residuals(params, images, tokens, kept):
        return jax.vjp(lambda params: embed(params, images, tokens, kept), params)[1]

    images = jax.ShapeDtypeStruct((_PROBE, size, size, 3), jnp.uint8)
    tokens = jax.ShapeDtypeStruct((_PROBE, context), jnp.int32)
    kept = jax.ShapeDtypeStruct((_PROBE, left), jnp.int32) if key.train.patch_dropout else None
    lengths = (left + 1, context)

    def counts(x: Any) -> bool:
        # A fused kernel keeps no matrix of attention weights.
        square = x.shape[-2:] in [(length, length) for length in lengths]
        return any(size % _PROBE == 0 for size in x.shape) and not (square and key.model.attention != "xla")

    found = jax.tree.leaves(jax.eval_shape(residuals, params, images, tokens, kept))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in found if counts(x)) / _PROBE
