"""A pipeline of Stable Diffusion as pure functions of its parameters."""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from gen.engines.interface import EngineError
from gen.engines.stable_diffusion import architecture
from gen.engines.stable_diffusion.autoencoder import Autoencoder
from gen.engines.stable_diffusion.clip import SafetyChecker, TextEncoder
from gen.engines.stable_diffusion.resize import resized
from gen.engines.stable_diffusion.tokens import CaptionTokenizer
from gen.engines.stable_diffusion.unet import UNet
from gen.engines.stable_diffusion.weights import find_files, network, read_weights
from synthclip_jax.config.schema import OPENAI_MEAN, OPENAI_STD
from synthclip_jax.formats import read_config

Parameters = dict[str, Any]
Conditions = dict[str, Array]
PATTERNS = ("*.json", "*/*.json", "*/*.txt", "*/*.safetensors")  # not those at the top, which hold all parts once more
VARIANTS = ("*.fp16.*", "*.bf16.*", "*.non_ema.*", "*.ema_only.*")


class Pipeline:
    """The networks of a folder of diffusers, and their weights; made by `read_pipeline`.

    `encode`, `denoise`, `decode` and `unsafe` are functions of their arguments alone, for `jax.jit`.

    Attributes:
      family: `sd1`, `sd2` or `sdxl`.
      scheduler: the folder's `scheduler_config.json`.
      latent_scale: pixels per latent, along a side.
      latent_channels: numbers per latent.
      native_size: side of the images that it was trained for, pixels.
      size_step: a side must be a multiple of it, pixels: the U-Net halves latents once per level.
      zeros_without_text: the unguided half of guidance is all zeros, and not the empty caption, where there is no
        negative prompt (XL).
      has_safety: there is a safety checker.
      params: the weights, on the host: `text` (one tree per encoder), `unet`, `vae`, and `safety` where there is one.
    """

    def __init__(self, folder: pathlib.Path, dtype: str, safety: bool, weights: bool = True):
        index = architecture.read_index(folder)
        xl = index["_class_name"] == architecture.PIPELINES[1]
        text_parts = ["text_encoder", "text_encoder_2"] if xl else ["text_encoder"]
        texts = [architecture.read_part(folder, part) for part in text_parts]
        unet, vae = (architecture.read_part(folder, part) for part in ("unet", "vae"))
        _check_fit(folder, texts, unet, vae, xl)
        self.has_safety = safety and (index.get("safety_checker") or [None])[-1] is not None
        self.family = "sdxl" if xl else "sd2" if unet["use_linear_projection"] else "sd1"
        self.scheduler = read_config(folder / "scheduler" / "scheduler_config.json")
        self.latent_channels = vae["latent_channels"]
        self.latent_scale = 2 ** (len(vae["block_out_channels"]) - 1)
        self.native_size = unet["sample_size"] * self.latent_scale
        self.size_step = self.latent_scale * 2 ** (len(unet["block_out_channels"]) - 1)
        self.zeros_without_text = xl and bool(index.get("force_zeros_for_empty_prompt", True))
        self.dtype = jnp.dtype(dtype)
        self._scaling = vae["scaling_factor"]
        self._tokenizers = [
            CaptionTokenizer(folder / part.replace("text_encoder", "tokenizer"), text["max_position_embeddings"])
            for part, text in zip(text_parts, texts, strict=True)
        ]
        self._graphs: dict[str, Any] = {}

        def read(part: str, make: Callable[[], nnx.Module], unused: tuple[str, ...] = ()) -> dict[str, Any]:
            self._graphs[part], shapes = network(make)
            return read_weights(folder / part, shapes, unused) if weights else shapes

        self.params: Parameters = {
            "text": [
                read(part, functools.partial(TextEncoder, text, dtype, projection=part != text_parts[0]))
                for part, text in zip(text_parts, texts, strict=True)
            ],
            "unet": read("unet", lambda: UNet(unet, dtype)),
            "vae": read("vae", lambda: Autoencoder(vae, dtype), ("encoder.", "quant_conv.")),
        }
        if self.has_safety:
            checker = architecture.read_part(folder, "safety_checker")
            self._safety_size = checker["vision_config"]["image_size"]
            self.params["safety"] = read("safety_checker", lambda: SafetyChecker(checker, dtype))

    def tokens(self, captions: Sequence[str]) -> tuple[Any, int]:
        """Ids of captions for each text encoder, int32 [captions, 77], and how many captions were cut to fit."""
        rows, cut = zip(*(tokenizer(captions) for tokenizer in self._tokenizers), strict=True)
        return list(rows), max(cut)

    def encode(self, params: Parameters, tokens: Any) -> Conditions:
        """What the U-Net is told of each caption: arrays whose first axis is that of the captions."""
        parts = [part for part in self._graphs if part.startswith("text_encoder")]
        outputs = [
            nnx.merge(self._graphs[part], weights)(ids)
            for part, weights, ids in zip(parts, params["text"], tokens, strict=True)
        ]
        if len(parts) == 1:  # SD 2.x leaves out its last layer too, and its folder does not even have it
            return {"hidden": outputs[0][0]}
        return {"hidden": jnp.concatenate([before for _, before, _ in outputs], axis=-1), "pooled": outputs[-1][2]}

    def denoise(
        self,
        params: Parameters,
        latents: Float[Array, "batch height width channels"],
        timestep: Any,
        conditions: Conditions,
    ) -> Float[Array, "batch height width channels"]:
        """One pass of the U-Net.

        Args:
          timestep: of the training schedule, one number or one per image; it may be fractional.
          conditions: of `encode`, one per image.

        Returns:
          Noise or velocity, as the scheduler's `prediction_type` says, in the type of the latents.
        """
        batch, height, width, _ = latents.shape
        times = jnp.broadcast_to(jnp.asarray(timestep, jnp.float32), (batch,))
        side = [height * self.latent_scale, width * self.latent_scale]
        sizes = jnp.broadcast_to(jnp.array([*side, 0, 0, *side], jnp.float32), (batch, 6))
        unet = nnx.merge(self._graphs["unet"], params["unet"])
        prediction = unet(latents.astype(self.dtype), times, conditions["hidden"], conditions.get("pooled"), sizes)
        return prediction.astype(latents.dtype)

    def decode(
        self, params: Parameters, latents: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch side side 3"]:
        """Images of latents, float32 from 0 to 1."""
        vae = nnx.merge(self._graphs["vae"], params["vae"])
        images = vae((latents.astype(jnp.float32) / self._scaling).astype(self.dtype))
        return jnp.clip(images.astype(jnp.float32) / 2 + 0.5, 0, 1)

    def unsafe(self, params: Parameters, images: Float[Array, "batch side side 3"]) -> Bool[Array, " batch"]:
        """Which images, from 0 to 1, the safety checker holds back; none where there is no checker."""
        if not self.has_safety:
            return jnp.zeros(len(images), bool)
        checker = nnx.merge(self._graphs["safety_checker"], params["safety"])
        return checker(prepared(images, self._safety_size).astype(self.dtype))


def prepared(images: Float[Array, "batch side side 3"], size: int) -> Float[Array, "batch size size 3"]:
    """As `CLIPImageProcessor` prepares images: 8 bits, shorter side to `size` by PIL's bicubic filter, middle, norm."""
    height, width = images.shape[1:3]
    rows, columns = (size * side // min(height, width) for side in (height, width))
    images = resized(jnp.round(images.astype(jnp.float32) * 255), rows, columns)
    top, left = (rows - size) // 2, (columns - size) // 2
    images = images[:, top : top + size, left : left + size] / 255
    mean, deviation = (jnp.array(three)[None, None, None] for three in (OPENAI_MEAN, OPENAI_STD))
    return (images - mean) / deviation


def read_pipeline(
    place: str, revision: str = "", dtype: str = "bfloat16", safety: bool = True, weights: bool = True
) -> Pipeline:
    """The Stable Diffusion of a folder or of the hub.

    Args:
      place: folder of a diffusers pipeline with safetensors weights, or hub id.
      revision: of a hub model; empty: its main branch.
      dtype: of weights and activations: `bfloat16` or `float32`.
      safety: read the safety checker, where there is one.
      weights: read the weights; else `params` holds their shapes, and none need be there.

    Raises:
      EngineError: it is not there, damaged, or of another architecture.
      FormatError: a file that should hold JSON does not.
    """
    folder = pathlib.Path(place)
    if not folder.is_dir():
        folder = _downloaded(place, revision, safety, weights)
    return Pipeline(folder, dtype, safety, weights)


def _downloaded(place: str, revision: str, safety: bool, weights: bool) -> pathlib.Path:
    """The folder in the hub's cache; files in half precision are fetched only where there are no others."""
    ignored = ([] if safety else ["safety_checker/*"]) + ([] if weights else ["*.safetensors"])
    try:
        from huggingface_hub import snapshot_download

        def fetched(*ignore: str) -> pathlib.Path:
            options = {"allow_patterns": list(PATTERNS), "ignore_patterns": [*ignored, *ignore]}
            return pathlib.Path(snapshot_download(place, revision=revision or None, **options))

        folder = fetched(*VARIANTS)
        for part in ("unet", "vae", "text_encoder") if weights else ():
            try:
                if (folder / part).is_dir():
                    find_files(folder / part)
            except EngineError:
                return fetched("*.non_ema.*", "*.ema_only.*")
        return folder
    except ImportError as error:
        raise EngineError(f"the hub needs huggingface_hub: pip install 'synthclip_jax[gen]' ({error})") from error
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EngineError(
            f"--config.gen.images.model={place}: neither a folder nor a hub model that this machine can reach"
            f" ({reason}). Give a folder of a diffusers pipeline with safetensors weights"
        ) from error


def _check_fit(folder: pathlib.Path, texts: list[dict], unet: dict, vae: dict, xl: bool) -> None:
    """Whether the parts belong together.

    Raises:
      EngineError: a width of one is not that of the other.
    """
    width = sum(text["hidden_size"] for text in texts)
    pooled = texts[-1]["projection_dim"] + 6 * unet["addition_time_embed_dim"] if xl else 0
    problems = [
        f"{what} is {given}, needed: {needed}"
        for what, given, needed in (
            ("unet's cross_attention_dim", unet["cross_attention_dim"], [width] * len(unet["block_out_channels"])),
            ("unet's in_channels", unet["in_channels"], vae["latent_channels"]),
            ("unet's out_channels", unet["out_channels"], vae["latent_channels"]),
            ("unet's projection_class_embeddings_input_dim", unet["projection_class_embeddings_input_dim"], pooled),
            ("vae's out_channels", vae["out_channels"], 3),
        )
        if given != needed
    ]
    if problems:
        raise EngineError(f"{folder}: its parts do not fit: {'; '.join(problems)}. {architecture.OTHER_ENGINE}")
