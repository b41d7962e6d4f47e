"""Our towers against timm, a PyTorch text transformer, open_clip and transformers, with the same weights."""

import jax
import numpy as np
import pytest
from flax import nnx

from synthclip_jax.config import default_config
from synthclip_jax.formats.weights import from_state_dict, layout, to_state_dict
from synthclip_jax.model.towers import LOGIT_SCALE_INIT, make_model

torch = pytest.importorskip("torch")
TOLERANCE = 1e-4


def model_config(tower: str, vision: dict, text: dict, embed_dim: int):
    config = default_config().model
    config.update(tower=tower, embed_dim=embed_dim, compute_dtype="float32")
    config.vision.update(vision)
    config.text.update(text)
    return config


def encode(config, image_size, state, entries, images, tokens):
    """Embeddings by our model, before normalisation, with the weights of a torch state dict."""
    graphdef, _, shapes = make_model(config, image_size)
    state = {name: tensor.detach().numpy() for name, tensor in state.items()}
    params = from_state_dict(state, entries, shapes)
    written = to_state_dict(params, entries)
    for name in written:
        np.testing.assert_array_equal(written[name], state[name], err_msg=name)

    @jax.jit
    def run(params, images, tokens):
        model = nnx.merge(graphdef, params)
        return model.encode_image(images, normalised=False), model.encode_text(tokens, normalised=False)

    return run(params, images, tokens)


def make_inputs(image_size: int, context_length: int, vocab_size: int, batch: int = 2):
    draw = np.random.default_rng(0)
    images = draw.normal(size=(batch, image_size, image_size, 3)).astype(np.float32)
    tokens = np.zeros((batch, context_length), np.int32)
    for row, length in zip(tokens, np.linspace(3, context_length, batch).astype(int), strict=True):
        row[:length] = draw.integers(1, vocab_size - 2, length)
        row[0], row[length - 1] = vocab_size - 2, vocab_size - 1
    return images, tokens


def randomise(module: "torch.nn.Module", seed: int) -> None:
    """Moves every parameter, also those that start at 0 or 1, so that a mapping that mixes them up shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)


def channels_first(images: np.ndarray):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


class TextTransformer(torch.nn.Module):
    """SynthCLIP's text tower (Training/models.py), written with PyTorch's own layers."""

    class Block(torch.nn.Module):
        def __init__(self, width: int, heads: int):
            super().__init__()
            self.ln_1, self.ln_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
            self.attn = torch.nn.MultiheadAttention(width, heads, batch_first=True)
            self.mlp = torch.nn.ModuleDict(
                {"c_fc": torch.nn.Linear(width, 4 * width), "c_proj": torch.nn.Linear(4 * width, width)}
            )

        def forward(self, x, mask):
            y = self.ln_1(x)
            x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
            y = self.mlp["c_fc"](self.ln_2(x))
            return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))

    def __init__(self, width: int, layers: int, heads: int, context_length: int, vocab_size: int, embed_dim: int):
        super().__init__()
        self.token_embedding = torch.nn.Embedding(vocab_size, width)
        self.positional_embedding = torch.nn.Parameter(torch.randn(context_length, width) * 0.01)
        self.transformer = torch.nn.ModuleDict(
            {"resblocks": torch.nn.ModuleList(self.Block(width, heads) for _ in range(layers))}
        )
        self.ln_final = torch.nn.LayerNorm(width)
        self.text_projection = torch.nn.Parameter(torch.randn(width, embed_dim) * width**-0.5)

    def forward(self, tokens):
        length = tokens.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        for block in self.transformer["resblocks"]:
            x = block(x, mask)
        x = self.ln_final(x)
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection


def open_clip_model(tower: str, vision: dict, text: dict, image_size: int, embed_dim: int):
    open_clip = pytest.importorskip("open_clip")
    if tower == "openai":
        width, heads = vision["width"], vision["heads"]
        vision_cfg = {key: vision[key] for key in ("width", "layers", "patch_size")}
        vision_cfg.update(image_size=image_size, head_width=width // heads)
        return open_clip.CLIP(embed_dim, vision_cfg, text, quick_gelu=True).eval()
    assert vision == VIT_TINY  # a timm model has one way to name its size
    vision_cfg = {
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": image_size,
    }
    return open_clip.CustomTextCLIP(embed_dim, vision_cfg, text, quick_gelu=True).eval()


def assert_close(ours, theirs):
    assert np.abs(np.asarray(ours) - theirs.detach().numpy()).max() < TOLERANCE


def test_slip_towers_equal_timms_vit_b16_and_a_torch_transformer():
    timm = pytest.importorskip("timm")
    text = {"width": 128, "layers": 3, "heads": 2, "context_length": 77, "vocab_size": 49408}
    config = model_config("slip", {"width": 768, "layers": 12, "heads": 12, "patch_size": 16}, text, 512)
    torch.manual_seed(0)
    reference = torch.nn.Module()
    reference.visual = timm.create_model("vit_base_patch16_224", num_classes=0, pretrained=False).eval()
    reference.text = TextTransformer(**text, embed_dim=512).eval()
    reference.image_projection = torch.nn.Parameter(torch.randn(768, 512) * 768**-0.5)
    reference.logit_scale = torch.nn.Parameter(torch.tensor(LOGIT_SCALE_INIT))
    randomise(reference, seed=1)
    images, tokens = make_inputs(224, 77, 49408)
    with torch.no_grad():
        image_emb = reference.visual(channels_first(images)) @ reference.image_projection
        text_emb = reference.text(torch.from_numpy(tokens).long())

    # The reference keeps the text tower's parameters at the top level.
    state = {name.removeprefix("text."): tensor for name, tensor in reference.state_dict().items()}
    ours = encode(config, 224, state, layout("synthclip", "slip"), images, tokens)
    assert_close(ours[0], image_emb)
    assert_close(ours[1], text_emb)


TINY = (
    {"width": 64, "layers": 3, "heads": 4, "patch_size": 8},
    {"width": 48, "layers": 2, "heads": 3, "context_length": 20, "vocab_size": 49408},
)
VIT_TINY = {"width": 192, "layers": 12, "heads": 3, "patch_size": 16}
LIKE_B32 = (
    {"width": 768, "layers": 2, "heads": 12, "patch_size": 32},
    {"width": 512, "layers": 2, "heads": 8, "context_length": 77, "vocab_size": 49408},
)
SIZES = pytest.mark.parametrize(
    ("vision", "text", "image_size", "embed_dim"),
    [(*TINY, 32, 40), (*LIKE_B32, 224, 512)],
    ids=["tiny", "b32_of_two_layers"],
)


@SIZES
def test_openai_towers_equal_transformers_clip_model(vision, text, image_size, embed_dim):
    transformers = pytest.importorskip("transformers")
    reference = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config={
                "hidden_size": vision["width"],
                "intermediate_size": 4 * vision["width"],
                "num_hidden_layers": vision["layers"],
                "num_attention_heads": vision["heads"],
                "patch_size": vision["patch_size"],
                "image_size": image_size,
            },
            text_config={
                "hidden_size": text["width"],
                "intermediate_size": 4 * text["width"],
                "num_hidden_layers": text["layers"],
                "num_attention_heads": text["heads"],
                "max_position_embeddings": text["context_length"],
                "vocab_size": text["vocab_size"],
                "bos_token_id": 49406,
                "eos_token_id": 49407,
            },
            projection_dim=embed_dim,
        )
    ).eval()
    randomise(reference, seed=1)
    images, tokens = make_inputs(image_size, text["context_length"], text["vocab_size"])
    with torch.no_grad():
        vision_out = reference.vision_model(channels_first(images)).pooler_output
        text_out = reference.text_model(torch.from_numpy(tokens).long()).pooler_output
        image_emb, text_emb = reference.visual_projection(vision_out), reference.text_projection(text_out)

    config = model_config("openai", vision, text, embed_dim)
    entries = layout("transformers", "openai")
    ours = encode(config, image_size, reference.state_dict(), entries, images, tokens)
    assert_close(ours[0], image_emb)
    assert_close(ours[1], text_emb)


@pytest.mark.parametrize(("tower", "vision", "image_size"), [("openai", TINY[0], 32), ("slip", VIT_TINY, 224)])
def test_towers_equal_open_clips(tower, vision, image_size):
    text = TINY[1]
    reference = open_clip_model(tower, vision, text, image_size, 40)
    randomise(reference, seed=1)
    images, tokens = make_inputs(image_size, text["context_length"], text["vocab_size"], batch=3)
    with torch.no_grad():
        image_emb = reference.encode_image(channels_first(images))
        text_emb = reference.encode_text(torch.from_numpy(tokens).long())

    config = model_config(tower, vision, text, 40)
    ours = encode(config, image_size, reference.state_dict(), layout("open_clip", tower), images, tokens)
    assert_close(ours[0], image_emb)
    assert_close(ours[1], text_emb)


@pytest.mark.parametrize(
    ("tower", "vision", "image_size"),
    [("openai", {"width": 128, "layers": 2, "heads": 2, "patch_size": 16}, 64), ("slip", VIT_TINY, 224)],
)
def test_fresh_parameters_are_spread_as_the_references(tower, vision, image_size):
    """Mean and standard deviation of every tensor, both models freshly made, agree within sampling error."""
    text = {"width": 128, "layers": 2, "heads": 2, "context_length": 77, "vocab_size": 49408}
    reference = open_clip_model(tower, vision, text, image_size, 96)
    theirs = {name: tensor.detach().numpy() for name, tensor in reference.state_dict().items()}
    if tower == "slip":
        # The image projection is SLIP's and SynthCLIP's own; open_clip puts a linear layer there.
        theirs["visual.head.proj.weight"] = np.random.default_rng(0).normal(0, 192**-0.5, (96, 192))

    init = make_model(model_config(tower, vision, text, 96), image_size).init
    ours = to_state_dict(jax.jit(init)(jax.random.key(0)), layout("open_clip", tower))
    assert set(ours) == {name for name in theirs if not name.endswith("attn_mask")}
    for name, array in ours.items():
        reference_array = theirs[name]
        assert array.shape == reference_array.shape, name
        error = 6 / np.sqrt(array.size)  # of both samples, relative to the standard deviation
        spread = reference_array.std()
        assert abs(array.std() - spread) <= error * spread + 1e-12, name
        assert abs(array.mean() - reference_array.mean()) <= error * spread + 1e-6, name
        # Uniform or normal: the largest value of many tells.
        if array.size > 10_000:
            assert np.abs(array).max() / np.abs(reference_array).max() == pytest.approx(1, abs=0.35), name
