"""The compiled program that draws a batch: text, noise, denoising, decoding, resizing, all on the device.

Every device draws its own part of the batch and talks to no other (`shard_map` over `data`). Samplers are tables that
the program is given (`schedules`): steps, guidance and where guidance ends change without a new compilation, except
that guidance in no step, in all steps and in some are three programs: none has a loop that never runs.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float32, PyTree, UInt8, UInt32

from gen.engines.stable_diffusion.attention import kernels_of
from gen.engines.stable_diffusion.resize import resized
from gen.engines.stable_diffusion.schedules import Row, Steps


class Sampling(NamedTuple):
    """How to sample: arguments of the program."""

    steps: Steps
    guidance: float
    guided: int  # steps, from the first on


class Drawn(NamedTuple):
    """What the program gives; arrays on the device."""

    images: UInt8[Array, "batch stored stored 3"]
    finite: Bool[Array, " batch"]
    unsafe: Bool[Array, " batch"]


def key_data(seeds: Sequence[int]) -> UInt32[np.ndarray, "batch 2"]:
    """One threefry key per image, of a seed below 2**64; as `jax.random.key` makes it of 64-bit seeds."""
    return np.array([[seed >> 32, seed & 0xFFFFFFFF] for seed in seeds], np.uint32)


def noise_of(keys: UInt32[Array, "batch 2"], shape: tuple[int, int, int]) -> Float32[Array, "batch side side channels"]:
    """Standard normal noise, of each key alone."""

    def draw(key: UInt32[Array, " 2"]) -> Float32[Array, "side side channels"]:
        return jax.random.normal(jax.random.wrap_key_data(key, impl="threefry2x32"), shape, jnp.float32)

    with jax.threefry_partitionable(True):  # the bits depend on it, whatever the environment says
        return jax.vmap(draw)(keys)


class Program:
    """A pipeline on some devices, for images of one size.

    Args:
      pipeline: what `read_pipeline` gives; its parameters are copied to every device.
      devices: of this process.
      size: side of the images drawn, pixels.
      stored: side of the images given back, at most `size`.
      negative: unconditional text.
      exact: float32 products are computed as such, where the device would round what it multiplies.
    """

    def __init__(
        self,
        pipeline: Any,
        devices: Sequence[jax.Device],
        *,
        size: int,
        stored: int,
        negative: str = "",
        exact: bool = False,
    ):
        self.pipeline, self.size, self.stored, self.exact = pipeline, size, stored, exact
        self.mesh = Mesh(np.array(devices), ("data",))
        everywhere = NamedSharding(self.mesh, P())
        self._by_image = NamedSharding(self.mesh, P("data"))
        self.params, self.negative = placed((pipeline.params, pipeline.tokens([negative])[0]), everywhere)
        self._zeros = pipeline.zeros_without_text and not negative  # in the place of the empty text
        self._compiled: dict[tuple[bool, bool], Any] = {}

    def __call__(self, sampling: Sampling, inputs: dict[str, PyTree]) -> Drawn:
        """Starts a batch; does not wait for its end.

        Args:
          sampling: how.
          inputs: `tokens` of the captions and `keys`, or `noise` in place of keys; the batch is the first axis, a
            multiple of the number of devices.
        """
        loops = (sampling.guided > 0, sampling.guided < sampling.steps.length)
        if loops not in self._compiled:

            def draw(*arguments: Any) -> Drawn:
                return self.draw(loops, *arguments)

            specs = (P(), P(), P(), P("data"))
            self._compiled[loops] = jax.jit(
                jax.shard_map(draw, mesh=self.mesh, in_specs=specs, out_specs=P("data"), check_vma=False)
            )
        return self._compiled[loops](
            self.params, self.negative, jax.tree.map(jnp.asarray, sampling), jax.device_put(inputs, self._by_image)
        )

    def draw(
        self, loops: tuple[bool, bool], params: PyTree, negative: PyTree, sampling: Any, inputs: dict[str, PyTree]
    ) -> Drawn:
        """What a device does with its part of the batch; `loops`: whether there are guided and unguided steps."""
        noise, conditional, unconditional = self.begun(loops, params, negative, inputs)
        return self.ended(params, self.denoised(loops, params, noise, conditional, unconditional, sampling))

    def begun(
        self, loops: tuple[bool, bool], params: PyTree, negative: PyTree, inputs: dict[str, PyTree]
    ) -> tuple[Float32[Array, "batch side side channels"], PyTree, PyTree]:
        """Noise, and what the U-Net is told with and without the captions."""
        pipeline = self.pipeline
        side = self.size // pipeline.latent_scale
        with self._precision():
            noise = inputs.get("noise")
            if noise is None:
                noise = noise_of(inputs["keys"], (side, side, pipeline.latent_channels))
            conditional = pipeline.encode(params, inputs["tokens"])
            unconditional = pipeline.encode(params, negative) if loops[0] else None
            if self._zeros:
                unconditional = jax.tree.map(jnp.zeros_like, unconditional)
        return noise, conditional, unconditional

    def ended(self, params: PyTree, latents: Float32[Array, "batch side side channels"]) -> Drawn:
        """Images of clean latents, judged, at the stored size."""
        with self._precision():
            decoded = self.pipeline.decode(params, latents)
            checked = self.pipeline.has_safety
            unsafe = self.pipeline.unsafe(params, decoded) if checked else jnp.zeros(len(decoded), bool)
            images = jnp.round(decoded.astype(jnp.float32) * 255)
            if self.stored != self.size:
                images = resized(images, self.stored, self.stored)
        return Drawn(images.astype(jnp.uint8), jnp.isfinite(decoded).all((1, 2, 3)), unsafe)

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        """Of products; and kernels are those of our devices, which need not be those of this process."""
        with jax.default_matmul_precision("highest" if self.exact else None), kernels_of(self.mesh.devices.flat[0]):
            yield

    def denoised(
        self,
        loops: tuple[bool, bool],
        params: PyTree,
        noise: Float32[Array, "batch side side channels"],
        conditional: PyTree,
        unconditional: PyTree,
        sampling: Sampling,
    ) -> Float32[Array, "batch side side channels"]:
        """Clean latents: first the steps with guidance, both halves in one batch, then those of the condition alone."""
        steps = sampling.steps

        def plain(x: Array, time: Array) -> Array:
            return self.pipeline.denoise(params, x, time, conditional).astype(jnp.float32)

        def guided(x: Array, time: Array) -> Array:
            out = self.pipeline.denoise(params, jnp.concatenate([x, x]), time, both).astype(jnp.float32)
            without, given = jnp.split(out, 2)
            return without + sampling.guidance * (given - without)

        def update(answer: Any, step: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            x, last = carry
            row = Row(*steps.rows[step])
            out = answer(x * row.scale, row.timestep)
            clean = jnp.clip(row.predict_x * x + row.predict_out * out, -steps.clip, steps.clip)
            x = row.from_x * x + row.from_out * out + row.from_clean * clean + row.from_last * last
            return x, clean

        carry = (noise * steps.initial, jnp.zeros_like(noise))
        with self._precision():
            if loops[0]:
                both = jax.tree.map(
                    lambda text, none: jnp.concatenate([jnp.broadcast_to(none, text.shape), text]),
                    conditional,
                    unconditional,
                )
                carry = jax.lax.fori_loop(0, sampling.guided, lambda *state: update(guided, *state), carry)
            if loops[1]:
                carry = jax.lax.fori_loop(sampling.guided, steps.length, lambda *state: update(plain, *state), carry)
        return carry[0]


def placed(tree: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
    """Arrays on the devices of a sharding; where some are shapes alone (`read_pipeline`), all as shapes with it."""
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree)):
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)
