"""CLIP's towers as transformers names them: the text encoders, and the safety checker's image tower."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from gen.engines.stable_diffusion.attention import attention
from gen.engines.stable_diffusion.layers import Conv, LayerNorm, Linear, zeros
from synthclip_jax.model.layers import ACTIVATIONS

CONCEPTS, SPECIAL = 17, 3  # of the safety checker


class Embedding(nnx.Module):
    """A row for each id."""

    def __init__(self, rows: int, width: int, dtype: str):
        self.embedding = zeros(rows, width, dtype=dtype)


class Layer(nnx.Module):
    """One transformer layer: norms come first."""

    def __init__(self, config: dict[str, Any], dtype: str):
        width, epsilon = config["hidden_size"], config["layer_norm_eps"]
        self.layer_norm1 = LayerNorm(width, dtype, epsilon)
        self.self_attn = SelfAttention(width, config["num_attention_heads"], dtype)
        self.layer_norm2 = LayerNorm(width, dtype, epsilon)
        self.mlp = MLP(width, config["intermediate_size"], config["hidden_act"], dtype)

    def __call__(self, x: Float[Array, "batch tokens width"], causal: bool) -> Array:
        x += self.self_attn(self.layer_norm1(x), causal)
        return x + self.mlp(self.layer_norm2(x))


class SelfAttention(nnx.Module):
    """Attention of tokens to each other."""

    def __init__(self, width: int, heads: int, dtype: str):
        self.q_proj, self.k_proj = Linear(width, width, dtype), Linear(width, width, dtype)
        self.v_proj, self.out_proj = Linear(width, width, dtype), Linear(width, width, dtype)
        self.heads = heads

    def __call__(self, x: Array, causal: bool) -> Array:
        return self.out_proj(attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, causal))


class MLP(nnx.Module):
    """Two linear layers."""

    def __init__(self, width: int, hidden: int, activation: str, dtype: str):
        self.fc1, self.fc2 = Linear(width, hidden, dtype), Linear(hidden, width, dtype)
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


def encoder(config: dict[str, Any], dtype: str) -> nnx.Dict:
    """All layers of a tower."""
    return nnx.Dict({"layers": nnx.List([Layer(config, dtype) for _ in range(config["num_hidden_layers"])])})


class TextEncoder(nnx.Module):
    """`CLIPTextModel`, and with a projection `CLIPTextModelWithProjection`. `config` is that of its folder."""

    def __init__(self, config: dict[str, Any], dtype: str, projection: bool = False):
        width = config["hidden_size"]
        self.embeddings = nnx.Dict(
            {
                "token_embedding": Embedding(config["vocab_size"], width, dtype),
                "position_embedding": Embedding(config["max_position_embeddings"], width, dtype),
            }
        )
        self.encoder = encoder(config, dtype)
        self.final_layer_norm = LayerNorm(width, dtype, config["layer_norm_eps"])
        self.text_projection = Linear(width, config["projection_dim"], dtype, bias=False) if projection else None
        self.end = config["eos_token_id"]

    def __call__(self, tokens: Int[Array, "batch context"]) -> tuple[Array, Array, Array | None]:
        """What the last layer gives, normalised; what the last but one gives; the projected end token, or None."""
        table, places = (self.embeddings[name].embedding[...] for name in ("token_embedding", "position_embedding"))
        x = before = table[tokens] + places[None, : tokens.shape[1]]
        for layer in self.encoder["layers"]:
            before, x = x, layer(x, causal=True)
        last = self.final_layer_norm(x)
        if self.text_projection is None:
            return last, before, None
        # An end token of 2 is a mistake of older configurations, where transformers takes the largest id instead.
        ends = tokens.argmax(-1) if self.end == 2 else (tokens == self.end).argmax(-1)
        return last, before, self.text_projection(last[jnp.arange(len(last)), ends])


class ImageTower(nnx.Module):
    """`CLIPVisionModel`: the class token behind the last layer, normalised."""

    def __init__(self, config: dict[str, Any], dtype: str):
        width, patch = config["hidden_size"], config["patch_size"]
        tokens = (config["image_size"] // patch) ** 2 + 1
        self.embeddings = nnx.Dict(
            {
                "class_embedding": zeros(width, dtype=dtype),
                "patch_embedding": Conv(config["num_channels"], width, dtype, patch, patch, padding=0, bias=False),
                "position_embedding": Embedding(tokens, width, dtype),
            }
        )
        self.pre_layrnorm = LayerNorm(width, dtype, config["layer_norm_eps"])
        self.encoder = encoder(config, dtype)
        self.post_layernorm = LayerNorm(width, dtype, config["layer_norm_eps"])

    def __call__(self, images: Float[Array, "batch side side 3"]) -> Float[Array, "batch width"]:
        patches = self.embeddings["patch_embedding"](images)
        x = patches.reshape(len(images), -1, patches.shape[-1])
        first = jnp.broadcast_to(self.embeddings["class_embedding"][...], (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([first, x], axis=1) + self.embeddings["position_embedding"].embedding[...][None]
        x = self.pre_layrnorm(x)
        for layer in self.encoder["layers"]:
            x = layer(x, causal=False)
        return self.post_layernorm(x[:, :1])[:, 0]


class SafetyChecker(nnx.Module):
    """`StableDiffusionSafetyChecker`: is an image too near to one of the concepts?"""

    def __init__(self, config: dict[str, Any], dtype: str):
        width = config["projection_dim"]
        self.vision_model = ImageTower(config["vision_config"], dtype)
        self.visual_projection = Linear(config["vision_config"]["hidden_size"], width, dtype, bias=False)
        # In float32: an image is refused by differences of thousandths.
        self.concept_embeds = zeros(CONCEPTS, width, dtype="float32")
        self.concept_embeds_weights = zeros(CONCEPTS, dtype="float32")
        self.special_care_embeds = zeros(SPECIAL, width, dtype="float32")
        self.special_care_embeds_weights = zeros(SPECIAL, dtype="float32")

    def scores(self, images: Float[Array, "batch side side 3"]) -> tuple[Array, Array]:
        """By how much the likeness to special and to other concepts is above its threshold, in thousandths."""
        embeds = self.visual_projection(self.vision_model(images)).astype(jnp.float32)

        def above(concepts: nnx.Param, thresholds: nnx.Param) -> Array:
            return unit(embeds) @ unit(concepts[...]).T - thresholds[...][None]

        special = above(self.special_care_embeds, self.special_care_embeds_weights)
        return special, above(self.concept_embeds, self.concept_embeds_weights)

    def __call__(self, images: Float[Array, "batch side side 3"]) -> Bool[Array, " batch"]:
        """Whether any concept is; one of special care makes all others count from 0.01 lower on."""
        special, others = self.scores(images)
        strict = jnp.where((jnp.round(special, 3) > 0).any(-1, keepdims=True), 0.01, 0.0)
        return (jnp.round(others + strict, 3) > 0).any(-1)


def unit(x: Float[Array, "rows width"]) -> Float[Array, "rows width"]:
    """Rows of length 1."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
