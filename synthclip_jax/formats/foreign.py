"""Reads the weights of other formats as ours: which format it is, the config that goes with it, the parameters."""

import dataclasses
import pathlib

import ml_collections
import numpy as np

from synthclip_jax import config as config_lib
from synthclip_jax.formats import Description, FormatError, bare, open_clip, read_config, transformers
from synthclip_jax.formats.tensors import INDEX, read_tensors
from synthclip_jax.formats.weights import WeightsError, from_state_dict, layout
from synthclip_jax.model.positions import grid_note, line_note, resize_grid, resize_line
from synthclip_jax.model.towers import make_model

FILES = (".safetensors", ".pt", ".pth", ".bin", ".tar", ".ckpt")
CONFIGS = {"open_clip": open_clip.CONFIG, "transformers": transformers.CONFIG}
WEIGHTS = {
    "open_clip": (open_clip.WEIGHTS, "open_clip_pytorch_model.bin", "open_clip_model.pt"),
    "transformers": tuple(
        name + sharded for sharded in ("", INDEX) for name in (transformers.WEIGHTS, "pytorch_model.bin")
    ),
}


@dataclasses.dataclass(frozen=True)
class Foreign:
    """Weights of another format, in ours.

    Attributes:
      kind: `open_clip`, `transformers`, `openai` or `synthclip`.
      file: where the tensors lie.
      config: a whole config of ours; what concerns training is the default.
      params: nested dict of float32 arrays.
      notes: what was assumed, left out or interpolated.
    """

    kind: str
    file: pathlib.Path
    config: ml_collections.FrozenConfigDict
    params: dict
    notes: tuple[str, ...]


def read_foreign(
    source: str | pathlib.Path,
    kind: str = "",
    vision_heads: int = 0,
    text_heads: int = 0,
    gelu: bool = False,
    key: str = "",
) -> Foreign:
    """Reads weights of another format.

    Args:
      kind: `open_clip` or `transformers`, of a folder that holds both.
      vision_heads, text_heads: heads of the towers of a bare state dict; 0: known from its family, where they can be.
      gelu: a bare state dict was trained with exact GELU and not with QuickGELU.
      key: which state dict of a training checkpoint that holds several.

    Raises:
      FormatError: it is of no known format, or of an architecture that our model does not compute.
      WeightsError: names the first tensors that are missing, left over or of another shape.
    """
    source = pathlib.Path(source).expanduser()
    if source.is_dir():
        if vision_heads or text_heads or gelu:
            raise FormatError(
                f"{source}: --vision-heads, --text-heads and --gelu are for a file without a config; this folder has"
                " one"
            )
        kind, description, file = _describe_folder(_snapshot(source), kind)
        state, notes, _ = read_tensors(file, key)
        # transformers 4 wrote the dual encoder's towers with their name twice.
        for tower in ("text_model.", "vision_model."):
            state = {name.replace(tower * 2, tower, 1): array for name, array in state.items()}
        if kind == "open_clip":
            state = open_clip.our_names(state, description.model["tower"])
        names, notes = kind, (*description.notes, *notes)
    elif source.suffix in FILES:
        file = source
        found, chosen, arguments = read_tensors(source, key)
        state, left_out = bare.without_extras(found)
        try:
            description = bare.read(found, vision_heads, text_heads, gelu, arguments)
        except FormatError as error:
            raise FormatError(f"{file}: {error}") from None
        names = bare.layout_of(state)
        kind = "synthclip" if names == "synthclip" else "openai"
        notes = (*description.notes, *chosen, *left_out)
    else:
        raise FormatError(f"{source}: expected a folder, or a file ending in {', '.join(FILES)}")
    config = make_config(description)
    shapes = make_model(config.model, config.data.image_size).shapes
    entries = layout(names, config.model.tower, config.model.logit_bias)
    try:
        params = from_state_dict(state, entries, shapes)
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from None
    return Foreign(kind, file, config, params, tuple(notes))


def _snapshot(folder: pathlib.Path) -> pathlib.Path:
    """The folder with the files: of the hub's cache (`models--ORG--NAME`) its snapshot."""
    if not (folder / "snapshots").is_dir():
        return folder
    there = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    main = folder / "refs" / "main"
    named = [path for path in there if main.is_file() and path.name == main.read_text().strip()]
    chosen = named or there
    if len(chosen) != 1:
        raise FormatError(
            f"{folder}: {len(there)} snapshots of a hub's cache. Name one: --source={folder}/snapshots/..."
        )
    return chosen[0]


def _describe_folder(folder: pathlib.Path, kind: str) -> tuple[str, Description, pathlib.Path]:
    found = [name for name, file in CONFIGS.items() if (folder / file).exists() and kind in ("", name)]
    if not found:
        wanted = " or ".join(CONFIGS.values()) if not kind else CONFIGS[kind]
        raise FormatError(f"{folder}: no {wanted}. A state dict without a config is given as a file")
    there = [(name, folder / file) for name in found for file in WEIGHTS[name] if (folder / file).exists()]
    if not there:
        needs = "; ".join(f"{' or '.join(WEIGHTS[name][:2])} beside {CONFIGS[name]}" for name in found)
        raise FormatError(f"{folder}: no weights ({needs}). Download them too")
    kind, file = there[0]
    if kind == "transformers":
        return kind, transformers.read(folder), file
    try:
        return kind, open_clip.read(read_config(folder / open_clip.CONFIG)), file
    except FormatError as error:
        raise FormatError(f"{folder / open_clip.CONFIG}: {error}") from None


def make_config(description: Description) -> ml_collections.FrozenConfigDict:
    """A config of ours for a model of another format: activations in float32, training left at its defaults.

    Raises:
      FormatError: sizes that our model does not take.
    """
    config = config_lib.default_config()
    config.name = "imported"
    preprocess = dataclasses.asdict(description.preprocess)
    config.data.update(preprocess)
    for key, value in description.model.items():
        config.model[key].update(value) if isinstance(value, dict) else config.model.update({key: value})
    config.model.update(compute_dtype="float32")
    try:
        config_lib.check(config, "the model")
    except config_lib.ConfigError as error:
        raise FormatError(f"it is of another architecture: {error}") from None
    return ml_collections.FrozenConfigDict(config)


def resized(foreign: Foreign, image_size: int = 0, context_length: int = 0) -> Foreign:
    """The same weights for images of another side (pixels) or another context length (tokens); 0 keeps it.

    Positions are interpolated as open_clip does it: the grid bicubic and antialiased, the text's line linear.

    Raises:
      FormatError: the patches do not divide the side.
    """
    config = ml_collections.ConfigDict(foreign.config)
    patch, old = config.model.vision.patch_size, config.data.image_size
    params, notes = foreign.params, list(foreign.notes)
    if image_size and image_size != old:
        if image_size % patch:
            raise FormatError(f"--image-size={image_size}: patches of {patch} pixels do not divide it")
        visual = params["visual"]
        positions = np.asarray(resize_grid(visual["positions"], image_size // patch))
        params = {**params, "visual": {**visual, "positions": positions}}
        config.data.image_size = image_size
        said = grid_note(len(visual["positions"]), len(positions))
        notes.append(f"{said}, for images of {image_size} pixels instead of {old}")
    old = config.model.text.context_length
    if context_length and context_length != old:
        text = params["text"]
        positions = np.asarray(resize_line(text["positions"], context_length))
        params = {**params, "text": {**text, "positions": positions}}
        config.model.text.context_length = context_length
        notes.append(line_note(old, context_length))
    config_lib.check(config, "the model")
    return dataclasses.replace(
        foreign, config=ml_collections.FrozenConfigDict(config), params=params, notes=tuple(notes)
    )
