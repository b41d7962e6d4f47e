"""Turns other people's weights into a checkpoint that training, evaluation, embedding and export accept.

    python -m synthclip_jax.import_weights --source=FOLDER_OR_FILE --workdir=W [--image-size=384] [--context-length=32]

SOURCE is one of

    a folder with open_clip_config.json        open_clip (also what `export --format=open_clip` writes)
    a folder with config.json                  transformers' CLIPModel, or VisionTextDualEncoderModel around a timm ViT
    a file .pt, .pth, .bin or .safetensors     OpenAI's state dict, or SynthCLIP's and SLIP's (`module.` is cut off)

The checkpoint is W/train/checkpoints/0. Evaluate it as any other, or train from it elsewhere:

    python -m synthclip_jax.evaluate --config=C --workdir=W --dataset=wds:DIR
    python -m synthclip_jax.train --config=configs/finetune_real.py --workdir=W2 --config.train.init_from=W

Positions are interpolated where the picture's side or the context length asked for is another one.
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Float

from synthclip_jax import config as config_lib
from synthclip_jax.errors import command
from synthclip_jax.formats import Description, FormatError, bare, open_clip, read_config, transformers
from synthclip_jax.formats.tensors import INDEX, read_tensors
from synthclip_jax.formats.weights import WeightsError, from_state_dict, layout
from synthclip_jax.model.checkpoint import CheckpointError, Checkpoints, checkpoint_folder, saved_steps
from synthclip_jax.model.towers import make_model, parameter_count
from synthclip_jax.training.claim import claim_workdir, describe_run
from synthclip_jax.training.lock import only_trainer

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
    shapes = jax.eval_shape(make_model(config.model, config.data.image_size)[1], jax.random.key(0))
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
    """The same weights for pictures of another side (pixels) or another context length (tokens); 0 keeps it.

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
        params = {**params, "visual": {**visual, "positions": resize_grid(visual["positions"], image_size // patch)}}
        config.data.image_size = image_size
        notes.append(
            f"positions of the image tower interpolated from a grid of {old // patch} x {old // patch} to"
            f" {image_size // patch} x {image_size // patch} (pictures of {old} to {image_size} pixels)"
        )
    old = config.model.text.context_length
    if context_length and context_length != old:
        text = params["text"]
        params = {**params, "text": {**text, "positions": resize_line(text["positions"], context_length)}}
        config.model.text.context_length = context_length
        notes.append(f"positions of the text tower interpolated from {old} to {context_length} tokens")
    config_lib.check(config, "the model")
    return dataclasses.replace(
        foreign, config=ml_collections.FrozenConfigDict(config), params=params, notes=tuple(notes)
    )


def resize_grid(positions: Float[np.ndarray, "old width"], side: int) -> Float[np.ndarray, "new width"]:
    """Positions of a class token and a square grid of patches, for a grid of another side."""
    first, grid = positions[:1], positions[1:]
    old, width = round(len(grid) ** 0.5), grid.shape[-1]
    new = jax.image.resize(jnp.asarray(grid.reshape(old, old, width)), (side, side, width), "cubic", antialias=True)
    return np.concatenate([first, np.asarray(new).reshape(side * side, width)])


def resize_line(positions: Float[np.ndarray, "old width"], length: int) -> Float[np.ndarray, "new width"]:
    """Positions of tokens for a text of another length."""
    shape = (length, positions.shape[-1])
    return np.asarray(jax.image.resize(jnp.asarray(positions), shape, "linear", antialias=False))


def save(foreign: Foreign, workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes the weights as the checkpoint of step 0 of a new workdir.

    Returns:
      The checkpoint's folder.

    Raises:
      CheckpointError: the workdir has checkpoints already, or the disk is full.
    """
    folder = checkpoint_folder(workdir)
    with only_trainer(folder.parent):
        return _save_alone(foreign, folder)


def _save_alone(foreign: Foreign, folder: pathlib.Path) -> pathlib.Path:
    if saved_steps(folder):
        raise CheckpointError(f"{folder}: there are checkpoints already; import into a workdir of its own")
    run = describe_run(foreign.config, 0, f"imported from {foreign.file.name}")
    origin = {"kind": foreign.kind, "file": foreign.file.name, "sha256": _sha256(foreign.file)}
    run["imported"] = {**origin, "notes": list(foreign.notes)}
    # A training that is started in this workdir by mistake reads this, and refuses.
    claim_workdir(folder.parent / "config.json", json.loads(json.dumps(run)), started=False)
    checkpoints = Checkpoints(folder, keep=1)
    try:
        progress = {"examples_seen": 0, "seconds": 0.0, "skipped": 0}
        checkpoints.save(0, jax.tree.map(jnp.asarray, foreign.params), None, {**run, "progress": progress})
        checkpoints.wait()
    finally:
        checkpoints.close()
    return folder / "0"


def _sha256(file: pathlib.Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def import_weights(
    source: str | pathlib.Path,
    workdir: str | pathlib.Path,
    image_size: int = 0,
    context_length: int = 0,
    log: Any = print,
    **how: Any,
) -> pathlib.Path:
    """Reads weights of another format, fits them to the sizes asked for, and writes them as a checkpoint.

    Args:
      how: see `read_foreign`.

    Returns:
      The checkpoint's folder.

    Raises:
      FormatError, WeightsError, CheckpointError: see `read_foreign` and `save`.
    """
    foreign = resized(read_foreign(source, **how), image_size, context_length)
    for path, array in jax.tree_util.tree_leaves_with_path(foreign.params):
        if not np.isfinite(array).all():
            raise WeightsError(
                f"{foreign.file}: {jax.tree_util.keystr(path)} holds NaN or infinity: the model is broken, every"
                " embedding would be NaN. Take an earlier checkpoint"
            )
    for note in foreign.notes:
        log(note)
    path = save(foreign, workdir)
    model, data = foreign.config.model, foreign.config.data
    log(
        f"{foreign.kind}: {parameter_count(foreign.params):,} parameters, tower {model.tower}, pictures of"
        f" {data.image_size} pixels in patches of {model.vision.patch_size}, {data.interpolation}, texts of"
        f" {model.text.context_length} tokens, {'QuickGELU' if model.quick_gelu else 'GELU'}, attention heads:"
        f" {model.vision.heads} of {model.vision.width // model.vision.heads} (images),"
        f" {model.text.heads} of {model.text.width // model.text.heads} (texts)"
    )
    log(f"written to {path}. Evaluate it with --workdir={workdir}, or train from it: train.init_from={workdir}")
    return path


@command("import_weights")
def main(argv: list[str] | None = None) -> None:
    """Parses the command line and imports; exits with status 1 and a reason if it cannot."""
    parser = argparse.ArgumentParser(
        prog="python -m synthclip_jax.import_weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", required=True, type=pathlib.Path, help="folder or file, see above")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="a new workdir for the checkpoint")
    parser.add_argument("--image-size", type=int, default=0, help="side of the pictures; default: the source's")
    parser.add_argument("--context-length", type=int, default=0, help="tokens of a text; default: the source's")
    kinds = ("open_clip", "transformers")
    parser.add_argument("--format", choices=kinds, default="", help="which one of a folder that holds both")
    without = "of a state dict without a config"
    parser.add_argument("--vision-heads", type=int, default=0, help=f"{without}: attention heads of the image tower")
    parser.add_argument("--text-heads", type=int, default=0, help=f"{without}: attention heads of the text tower")
    parser.add_argument("--gelu", action="store_true", help=f"{without}: GELU, not QuickGELU")
    parser.add_argument("--key", default="", help="which state dict of a training checkpoint, such as state_dict_ema")
    given = parser.parse_args(argv)
    import_weights(
        given.source,
        given.workdir,
        given.image_size,
        given.context_length,
        kind=given.format,
        vision_heads=given.vision_heads,
        text_heads=given.text_heads,
        gelu=given.gelu,
        key=given.key,
    )


if __name__ == "__main__":
    main()
