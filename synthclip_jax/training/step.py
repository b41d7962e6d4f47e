"""One training step as a compiled program: what it computes, and where everything it touches lives.

    program = make_program(config, mesh, length)
    state = program.init(key)
    state, metrics = program.step(state, images, tokens)

The program is known before there is any data or device memory: `program.lower()` works on abstract arrays, also for
the devices of a machine that is not here (`synthclip_jax.plan`).

The gradient of a contrastive loss needs the embeddings of the whole batch. With `train.microbatch` it is computed in
three passes: embed every microbatch without keeping activations; differentiate the loss with respect to all
embeddings; embed every microbatch again and pull its share of that gradient back (GradCache, arXiv 2101.06983). The
sum is the gradient of the whole batch, at the price of one more forward pass.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Int32, UInt8

from synthclip_jax.config.schema import Config
from synthclip_jax.devices import sharding
from synthclip_jax.model.flops import kept_patches
from synthclip_jax.model.preprocess import normalise
from synthclip_jax.model.towers import make_model
from synthclip_jax.training.losses import make_loss
from synthclip_jax.training.optim import Length, clamp_logit_scale, make_optimizer, trainable_mask


class TrainState(NamedTuple):
    """Everything that a step changes."""

    params: dict
    ema: dict | None  # moving average of the parameters, where config.train.ema asks for one
    opt_state: optax.OptState
    step: Int[Array, ""]  # steps done
    skipped: Int[Array, ""]  # of these, steps whose update was left out since it was not finite


class Batch(NamedTuple):
    """What one step sees; every leaf has the batch as its first axis."""

    images: UInt8[Array, "b h w 3"]
    tokens: Int32[Array, "b t"]
    kept: Int32[Array, "b k"] | None  # patches that are left after patch dropout


Metrics = dict[str, Float[Array, ""]]
GPU_OPTIONS = {
    # XLA would make one product of those for keys and values in the text tower, and cut it up for cuDNN's attention.
    "xla_gpu_dot_merger_threshold_mb": 0,
    # With all products by cuBLAS a step takes 2% less. A plan needs it, too: without a card XLA cannot time kernels,
    # and would write every product in Triton's language, in tiles that it guesses.
    "xla_gpu_enable_triton_gemm": False,
}


class Program(NamedTuple):
    """A training step and its surroundings. Trees of shapes carry their shardings."""

    graphdef: nnx.GraphDef  # of the model as it is used, with full products
    state: TrainState  # of jax.ShapeDtypeStruct
    batch: tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]  # images, tokens
    init: Callable[[Array], TrainState]  # compiled; parameters are born where they live
    step: jax.stages.Wrapped  # (state, images, tokens) -> (state, metrics), compiled; the state given is used up

    def lower(self) -> jax.stages.Lowered:
        """The step on abstract arrays, ready to be compiled."""
        return self.step.lower(self.state, *self.batch)


def make_program(config: Config, mesh: Mesh, length: Length) -> Program:
    """The program that `config` describes on a mesh.

    Raises:
      ConfigError: a regular expression of `config.train` matches no parameter.
    """
    train = config.train
    inits = train.logit_scale_init, train.logit_bias_init
    make = functools.partial(make_model, config.model, config.data.image_size, *inits, sharding.platform(mesh))
    model = make()
    trained = model if train.products == "full" else make(products=train.products)
    param_shardings = sharding.infer_shardings(model.shapes, mesh)
    mask = trainable_mask(model.shapes, train.frozen)
    optimizer, schedule = make_optimizer(train, length)
    gradients = _make_gradients(config, mesh, trained.graphdef)

    def fresh(params: dict) -> TrainState:
        ema = jax.tree.map(jnp.copy, params) if train.ema else None
        zero = jnp.zeros((), jnp.int32)
        return TrainState(params, ema, optimizer.init(_select(params, mask)), zero, zero)

    def step(state: TrainState, images: UInt8[Array, "b h w 3"], tokens: Int32[Array, "b t"]):
        trainable, frozen = _select(state.params, mask), _select(state.params, mask, False)
        batch = Batch(images, tokens, _draw_patches(config, state.step, len(images)))
        (loss, metrics), grads = gradients(trainable, frozen, batch)
        grads = jax.lax.with_sharding_constraint(grads, _select(param_shardings, mask))
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, trainable)
        params = _merge(optax.apply_updates(trainable, updates), frozen)
        params = clamp_logit_scale(params, train.logit_scale_max)
        new = TrainState(params, _average(train.ema, state, params), opt_state, state.step + 1, state.skipped)
        metrics |= {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": schedule(state.step - state.skipped),
        }
        if train.non_finite == "skip":
            finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
            left_out = state._replace(step=state.step + 1, skipped=state.skipped + 1)
            new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, left_out)
            metrics["updates_skipped"] = new.skipped
        return new, metrics

    shapes = jax.eval_shape(fresh, model.shapes)
    placement = sharding.infer_shardings(shapes, mesh)
    rows, size = sharding.batch_sharding(mesh), config.data.image_size
    images = jax.ShapeDtypeStruct((train.batch_size, size, size, 3), jnp.uint8, sharding=rows)
    tokens = jax.ShapeDtypeStruct((train.batch_size, config.model.text.context_length), jnp.int32, sharding=rows)
    return Program(
        model.graphdef,
        jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placement),
        (images, tokens),
        jax.jit(lambda key: fresh(model.init(key)), out_shardings=placement),
        jax.jit(
            step,
            donate_argnums=0,
            out_shardings=(placement, NamedSharding(mesh, P())),
            compiler_options=GPU_OPTIONS if sharding.platform(mesh) in ("gpu", "cuda") else None,
        ),
    )


def _make_gradients(config: Config, mesh: Mesh, graphdef: nnx.GraphDef) -> Callable[..., Any]:
    """`(trainable, frozen, batch) -> ((loss, metrics), gradient with respect to trainable)`."""
    train = config.train
    loss_of = make_loss(train, mesh)

    def embed(trainable: dict, frozen: dict, batch: Batch) -> tuple[Float[Array, "b embed"], Float[Array, "b embed"]]:
        model = nnx.merge(graphdef, _merge(trainable, frozen))
        images = normalise(batch.images, config.data.mean, config.data.std)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return model.encode_image(images, kept=batch.kept), model.encode_text(batch.tokens)

    def loss_on(embeddings, trainable: dict, frozen: dict) -> tuple[Float[Array, ""], Metrics]:
        model = nnx.merge(graphdef, _merge(trainable, frozen))
        return loss_of(*embeddings, *model.logit_scale_and_bias())

    def at_once(trainable: dict, frozen: dict, batch: Batch):
        def loss(trainable):
            return loss_on(embed(trainable, frozen, batch), trainable, frozen)

        return jax.value_and_grad(loss, has_aux=True)(trainable)

    def accumulated(trainable: dict, frozen: dict, batch: Batch):
        parts = _split(batch, train.microbatch, mesh)
        embeddings = jax.lax.map(lambda part: embed(trainable, frozen, part), parts)
        joined = jax.tree.map(lambda x: _join(x, mesh), embeddings)
        value, (pulls, grads) = jax.value_and_grad(loss_on, (0, 1), has_aux=True)(joined, trainable, frozen)

        def pull_back(grads, part):
            batch, pull = part
            more = jax.vjp(lambda trainable: embed(trainable, frozen, batch), trainable)[1](pull)[0]
            return jax.tree.map(jnp.add, grads, more), None

        return value, jax.lax.scan(pull_back, grads, (parts, _split(pulls, train.microbatch, mesh)))[0]

    gradients = accumulated if train.microbatch not in (0, train.batch_size) else at_once
    context = config.model.text.context_length
    buckets = [*sorted(length for length in set(config.data.text_buckets) if length < context), context]
    if len(buckets) == 1:
        return gradients

    def bucketed(trainable: dict, frozen: dict, batch: Batch):
        """Nothing after the end token counts, so that the text may be cut behind the longest caption of the batch."""

        def trimmed(length: int):
            return lambda batch: gradients(trainable, frozen, batch._replace(tokens=batch.tokens[:, :length]))

        # The end token has the largest id of all. The choice is made on the devices, where all hosts see it alike.
        longest = batch.tokens.argmax(axis=1).max() + 1
        bucket = jnp.searchsorted(jnp.asarray(buckets), longest)
        (loss, metrics), grads = jax.lax.switch(bucket, [trimmed(length) for length in buckets], batch)
        return (loss, metrics | {"text_length": jnp.asarray(buckets, jnp.float32)[bucket]}), grads

    return bucketed


def _split(tree: Any, microbatch: int, mesh: Mesh) -> Any:
    """[b, ...] to [b / microbatch, microbatch, ...]. Every device keeps its rows: each part has rows of all devices."""
    shards = sharding.batch_shards(mesh)
    rows = NamedSharding(mesh, P(None, sharding.BATCH_AXES))

    def split(x: Array) -> Array:
        parts, rest = len(x) // microbatch, x.shape[1:]
        x = x.reshape(shards, parts, microbatch // shards, *rest).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x.reshape(parts, microbatch, *rest), rows)

    return jax.tree.map(split, tree)


def _join(x: Float[Array, "n m e"], mesh: Mesh) -> Float[Array, "b e"]:
    """The inverse of `_split`."""
    parts, microbatch, *rest = x.shape
    shards = sharding.batch_shards(mesh)
    x = x.reshape(parts, shards, microbatch // shards, *rest).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(x.reshape(parts * microbatch, *rest), sharding.batch_sharding(mesh))


def _draw_patches(config: Config, step: Int[Array, ""], batch_size: int) -> Int32[Array, "b k"] | None:
    """The patches that each image keeps, drawn anew at every step for the whole batch; None: all of them."""
    if not config.train.patch_dropout:
        return None
    patches = (config.data.image_size // config.model.vision.patch_size) ** 2
    key = jax.random.fold_in(seed_key(config.seed), step)
    order = jax.random.uniform(key, (batch_size, patches))
    kept = jax.lax.top_k(order, kept_patches(patches, config.train.patch_dropout))[1]
    return jnp.sort(kept, axis=1)


def seed_key(seed: int) -> Array:
    """A key from a seed of 63 bits."""
    return jax.random.fold_in(jax.random.key(seed & 0xFFFFFFFF), seed >> 32)


def _average(decay: float, state: TrainState, params: dict) -> dict | None:
    """The moving average after an update. Early on it forgets faster, or it would remember the random start."""
    if not decay:
        return None
    done = state.step.astype(jnp.float32)
    decay = jnp.minimum(decay, (1 + done) / (10 + done))
    return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), state.ema, params)


def _select(tree: Any, mask: Any, wanted: bool = True) -> Any:
    """The leaves that the mask marks (or does not mark); None in place of the others."""
    return jax.tree.map(lambda leaf, marked: leaf if marked == wanted else None, tree, mask)


def _merge(tree: Any, other: Any) -> Any:
    """One tree of two that have None where the other one has a leaf."""
    return jax.tree.map(lambda a, b: b if a is None else a, tree, other, is_leaf=lambda leaf: leaf is None)
