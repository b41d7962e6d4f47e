"""Turns other people's weights into a checkpoint that training, evaluation, embedding and export accept.

    python -m synthclip_jax.import_weights --source=FOLDER_OR_FILE --workdir=W [--image-size=384] [--context-length=32]

SOURCE is one of

    a folder with open_clip_config.json        open_clip (also what `export --format=open_clip` writes)
    a folder with config.json                  transformers' CLIPModel, or VisionTextDualEncoderModel around a timm ViT
    a file .pt, .pth, .bin or .safetensors     OpenAI's state dict, or SynthCLIP's and SLIP's (`module.` is cut off)

The checkpoint is W/train/checkpoints/0. Evaluate it as any other, or train from it elsewhere:

    python -m synthclip_jax.evaluate --config=C --workdir=W --dataset=wds:DIR
    python -m synthclip_jax.train --config=configs/finetune_real.py --workdir=W2 --config.train.init_from=W

Positions are interpolated where the image's side or the context length asked for is another one.
"""

import hashlib
import pathlib
from typing import Any

import jax
import numpy as np

from synthclip_jax.errors import command
from synthclip_jax.formats.foreign import Foreign, read_foreign, resized
from synthclip_jax.formats.weights import WeightsError
from synthclip_jax.model.towers import parameter_count
from synthclip_jax.training.given import save_given
from synthclip_jax.wording import make_parser


def save(foreign: Foreign, workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes the weights as the checkpoint of step 0 of a new workdir; see `save_given`."""
    origin = {"kind": foreign.kind, "file": foreign.file.name, "sha256": _sha256(foreign.file)}
    about = {"imported": {**origin, "notes": list(foreign.notes)}}
    return save_given(workdir, foreign.config, foreign.params, f"imported from {foreign.file.name}", about)


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
        f"{foreign.kind}: {parameter_count(foreign.params):,} parameters, tower {model.tower}, images of"
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
    parser = make_parser("synthclip_jax.import_weights", __doc__)
    parser.add_argument("--source", required=True, type=pathlib.Path, help="folder or file, see above")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="a new workdir for the checkpoint")
    parser.add_argument("--image-size", type=int, default=0, help="side of the images; default: the source's")
    parser.add_argument("--context-length", type=int, default=0, help="tokens of a text; default: the source's")
    kinds = ("open_clip", "transformers")
    parser.add_argument("--format", choices=kinds, default="", help="format to read from a folder that holds both")
    without = "of a state dict without a config"
    parser.add_argument("--vision-heads", type=int, default=0, help=f"{without}: attention heads of the image tower")
    parser.add_argument("--text-heads", type=int, default=0, help=f"{without}: attention heads of the text tower")
    parser.add_argument("--gelu", action="store_true", help=f"{without}: GELU, not QuickGELU")
    parser.add_argument("--key", default="", help="state dict of a training checkpoint, such as state_dict_ema")
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
