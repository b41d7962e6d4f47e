"""Our parameter tree as PyTorch state dicts, and back.

A layout is a list of `Entry`: the path of one of our parameters, the names it has over there, and how the numbers are
rearranged. The same list reads and writes. Numpy only: state dicts are mappings from names to arrays.

    params = from_state_dict(state, layout("transformers", "openai"), model.shapes)
    state = to_state_dict(params, layout("open_clip", "slip"))

Layouts: `open_clip` (its `CLIP` for the openai tower, its `CustomTextCLIP` around timm's ViT for the slip tower),
`transformers` (`CLIPModel`; `VisionTextDualEncoderModel` around timm's ViT), and `synthclip` (the reference's own
checkpoints, slip tower only).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from synthclip_jax.errors import UserError

LAYER = "{layer}"


class WeightsError(UserError, ValueError):
    """A state dict does not fit the model: tensors missing, left over, or of another shape."""


class Rearrangement(Protocol):
    """A reversible change of layout between the arrays of one entry."""

    def read(self, arrays: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        """Theirs to ours; `shape` is the one ours must have."""
        ...

    def write(self, array: np.ndarray) -> list[np.ndarray]:
        """Ours to theirs."""
        ...


class Same:
    """The same numbers in the same order; theirs has the shape `leading` + ours without its first `drop` axes."""

    def __init__(self, leading: int = 0, drop: int = 0):
        self.leading, self.drop = leading, drop

    def read(self, arrays, shape):
        return arrays[0].reshape(shape)

    def write(self, array):
        return [array.reshape((1,) * self.leading + array.shape[self.drop :])]


class Transposed:
    """torch's Linear: [outputs, inputs]. Of ours, the first `inputs` axes are the inputs."""

    def __init__(self, inputs: int = 1):
        self.inputs = inputs

    def read(self, arrays, shape):
        return arrays[0].T.reshape(shape)

    def write(self, array):
        return [array.reshape(int(np.prod(array.shape[: self.inputs])), -1).T]


class Convolution:
    """torch's Conv2d over patches: [outputs, channels, height, width]; ours: [height * width * channels, outputs]."""

    def read(self, arrays, shape):
        return arrays[0].transpose(2, 3, 1, 0).reshape(shape)

    def write(self, array):
        patch = round((array.shape[0] / 3) ** 0.5)
        return [array.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)]


class FusedQKV:
    """torch's in_proj: rows are queries, keys, values, head by head. Ours: [inputs, 3, heads, head_dim] or a bias."""

    def read(self, arrays, shape):
        return arrays[0].T.reshape(shape)

    def write(self, array):
        return [array.reshape(*array.shape[:-3], -1).T]


class SplitQKV:
    """The same in three tensors."""

    def read(self, arrays, shape):
        return FusedQKV().read([np.concatenate(arrays)], shape)

    def write(self, array):
        return np.split(FusedQKV().write(array)[0], 3)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter of ours and its names over there. With `{layer}` in the names, ours is stacked over layers."""

    ours: str
    theirs: tuple[str, ...]
    how: Rearrangement = dataclasses.field(default_factory=Same)

    @property
    def stacked(self) -> bool:
        return LAYER in self.theirs[0]


def from_state_dict(state: Mapping[str, np.ndarray], entries: Sequence[Entry], like: Any) -> dict:
    """Our nested dict of float32 arrays from a state dict; `like` is a tree of the shapes it must have.

    Raises:
      WeightsError: names what is missing, what is left over, every shape that does not fit, and what holds no
        floating numbers. Buffers that carry no weights (position ids, attention masks) may be left over.
    """
    unused = set(state)
    problems: list[str] = []
    deepest = max(_get(like, entry.ours).shape[0] if entry.stacked else 0 for entry in entries)
    if deepest > len(state):
        raise WeightsError(f"the state dict does not fit this model: {deepest} layers, and {len(state)} tensors")
    params: dict = {}
    for entry in entries:
        shape = tuple(_get(like, entry.ours).shape)
        layers = shape[0] if entry.stacked else 1
        parts = []
        for layer in range(layers):
            names = [name.format(layer=layer) for name in entry.theirs]
            missing = [name for name in names if name not in state]
            problems += [f"missing: {name} ({entry.ours})" for name in missing]
            unused -= set(names)
            if missing:
                continue
            target = shape[1:] if entry.stacked else shape
            strange = [name for name in names if not np.issubdtype(state[name].dtype, np.floating)]
            if strange:  # quantised ones need their scales
                problems += [f"no floating numbers: {name} ({state[name].dtype})" for name in strange]
                continue
            arrays = [np.asarray(state[name], np.float32) for name in names]
            if not target and arrays[0].shape == (1,):  # open_clip's nonscalar_logit_scale, and wrappers
                arrays = [arrays[0].reshape(())]
            expected = [part.shape for part in entry.how.write(np.broadcast_to(np.float32(0), target))]
            if [array.shape for array in arrays] != expected:
                got = ", ".join(f"{name} {array.shape}" for name, array in zip(names, arrays, strict=True))
                problems.append(f"shape: {got}; {entry.ours} wants {', '.join(map(str, expected))}")
                continue
            parts.append(entry.how.read(arrays, target))
        if len(parts) == layers:
            _set(params, entry.ours, np.stack(parts) if entry.stacked else np.array(parts[0], order="C"))
    problems += [f"left over: {name}" for name in sorted(unused) if not _is_buffer(name)]
    if problems:
        shown = "\n  ".join(problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise WeightsError(f"the state dict does not fit this model:\n  {shown}{more}")
    return params


def to_state_dict(params: Any, entries: Sequence[Entry]) -> dict[str, np.ndarray]:
    """A state dict from our nested dict of arrays."""
    state: dict[str, np.ndarray] = {}
    for entry in entries:
        array = np.asarray(_get(params, entry.ours), np.float32)
        for layer, part in enumerate(array if entry.stacked else array[None]):
            names = [name.format(layer=layer) for name in entry.theirs]
            for name, value in zip(names, entry.how.write(part), strict=True):
                state[name] = np.array(value, order="C")
    return state


def layout(name: str, tower: str, logit_bias: bool = False) -> list[Entry]:
    """The entries of a layout for the model with the image tower `slip` or `openai`.

    `logit_bias` asks for that of the sigmoid loss too; open_clip alone has a place for it.

    Raises:
      WeightsError: no such layout, or it cannot hold this tower.
    """
    layouts = {
        ("open_clip", "openai"): _open_clip_openai,
        ("open_clip", "slip"): _open_clip_slip,
        ("transformers", "openai"): _transformers_openai,
        ("transformers", "slip"): _transformers_slip,
        ("synthclip", "slip"): _synthclip,
    }
    if (name, tower) not in layouts:
        known = ", ".join(f"{layout} with {tower}" for layout, tower in layouts)
        raise WeightsError(f"no layout {name!r} for the tower {tower!r}; known: {known}")
    bias = [Entry("logit_bias", ("logit_bias",))] if logit_bias and name == "open_clip" else []
    return [*layouts[name, tower](), *bias]


def _norm(ours: str, theirs: str) -> list[Entry]:
    return [Entry(f"{ours}/scale", (f"{theirs}.weight",)), Entry(f"{ours}/bias", (f"{theirs}.bias",))]


def _linear(ours: str, theirs: str, inputs: int = 1) -> list[Entry]:
    return [
        Entry(f"{ours}/kernel", (f"{theirs}.weight",), Transposed(inputs)),
        Entry(f"{ours}/bias", (f"{theirs}.bias",)),
    ]


def _blocks(
    ours: str, theirs: str, norm1: str, qkv: tuple[str, ...], out: str, norm2: str, up: str, down: str, dot: str = "."
) -> list[Entry]:
    """A stack of blocks: `theirs` holds `{layer}`, the rest are names inside a block; `dot` joins weight and bias."""
    how = FusedQKV() if len(qkv) == 1 else SplitQKV()
    return [
        *_norm(f"{ours}/norm1", f"{theirs}.{norm1}"),
        Entry(f"{ours}/attention/qkv/kernel", tuple(f"{theirs}.{name}{dot}weight" for name in qkv), how),
        Entry(f"{ours}/attention/qkv/bias", tuple(f"{theirs}.{name}{dot}bias" for name in qkv), how),
        *_linear(f"{ours}/attention/out", f"{theirs}.{out}", inputs=2),
        *_norm(f"{ours}/norm2", f"{theirs}.{norm2}"),
        *_linear(f"{ours}/mlp/up", f"{theirs}.{up}"),
        *_linear(f"{ours}/mlp/down", f"{theirs}.{down}"),
    ]


def _openai_blocks(ours: str, theirs: str) -> list[Entry]:
    names = ("ln_1", ("attn.in_proj",), "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    return _blocks(ours, f"{theirs}.{LAYER}", *names, dot="_")


def _openai_text(prefix: str) -> list[Entry]:
    return [
        Entry("text/tokens", (f"{prefix}token_embedding.weight",)),
        Entry("text/positions", (f"{prefix}positional_embedding",)),
        *_openai_blocks("text/blocks", f"{prefix}transformer.resblocks"),
        *_norm("text/norm", f"{prefix}ln_final"),
        Entry("text/projection/kernel", (f"{prefix}text_projection",)),
        Entry("logit_scale", ("logit_scale",)),
    ]


def _timm(prefix: str) -> list[Entry]:
    names = ("norm1", ("attn.qkv",), "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    return [
        Entry("visual/patches/kernel", (f"{prefix}patch_embed.proj.weight",), Convolution()),
        Entry("visual/patches/bias", (f"{prefix}patch_embed.proj.bias",)),
        Entry("visual/class_token", (f"{prefix}cls_token",), Same(leading=1)),
        Entry("visual/positions", (f"{prefix}pos_embed",), Same(leading=1)),
        *_blocks("visual/blocks", f"{prefix}blocks.{LAYER}", *names),
        *_norm("visual/norm", f"{prefix}norm"),
    ]


def _open_clip_openai() -> list[Entry]:
    return [
        Entry("visual/patches/kernel", ("visual.conv1.weight",), Convolution()),
        Entry("visual/class_token", ("visual.class_embedding",), Same(drop=1)),
        Entry("visual/positions", ("visual.positional_embedding",)),
        *_norm("visual/pre_norm", "visual.ln_pre"),
        *_openai_blocks("visual/blocks", "visual.transformer.resblocks"),
        *_norm("visual/norm", "visual.ln_post"),
        Entry("visual/projection/kernel", ("visual.proj",)),
        *_openai_text(""),
    ]


def _open_clip_slip() -> list[Entry]:
    projection = Entry("visual/projection/kernel", ("visual.head.proj.weight",), Transposed())
    return [*_timm("visual.trunk."), projection, *_openai_text("text.")]


def _synthclip() -> list[Entry]:
    return [*_timm("visual."), Entry("visual/projection/kernel", ("image_projection",)), *_openai_text("")]


def _transformers_blocks(ours: str, theirs: str) -> list[Entry]:
    qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    names = ("layer_norm1", qkv, "self_attn.out_proj", "layer_norm2", "mlp.fc1", "mlp.fc2")
    return _blocks(ours, f"{theirs}.encoder.layers.{LAYER}", *names)


def _transformers_text() -> list[Entry]:
    return [
        Entry("visual/projection/kernel", ("visual_projection.weight",), Transposed()),
        Entry("text/tokens", ("text_model.embeddings.token_embedding.weight",)),
        Entry("text/positions", ("text_model.embeddings.position_embedding.weight",)),
        *_transformers_blocks("text/blocks", "text_model"),
        *_norm("text/norm", "text_model.final_layer_norm"),
        Entry("text/projection/kernel", ("text_projection.weight",), Transposed()),
        Entry("logit_scale", ("logit_scale",)),
    ]


def _transformers_openai() -> list[Entry]:
    vision = "vision_model.embeddings"
    return [
        Entry("visual/patches/kernel", (f"{vision}.patch_embedding.weight",), Convolution()),
        Entry("visual/class_token", (f"{vision}.class_embedding",), Same(drop=1)),
        Entry("visual/positions", (f"{vision}.position_embedding.weight",)),
        *_norm("visual/pre_norm", "vision_model.pre_layrnorm"),
        *_transformers_blocks("visual/blocks", "vision_model"),
        *_norm("visual/norm", "vision_model.post_layernorm"),
        *_transformers_text(),
    ]


def _transformers_slip() -> list[Entry]:
    return [*_timm("vision_model.timm_model."), *_transformers_text()]


def _is_buffer(name: str) -> bool:
    return name.endswith(("position_ids", "attn_mask"))


def _get(tree: Any, path: str) -> Any:
    for key in path.split("/"):
        tree = tree[key]
    return tree


def _set(tree: dict, path: str, value: np.ndarray) -> None:
    *parents, last = path.split("/")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = value
