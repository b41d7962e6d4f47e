"""Writes a checkpoint as folders that open_clip and transformers load without any code of ours.

    python -m synthclip_jax.export --workdir=W --format=open_clip|transformers|both --out=DIR [--step=N]
        [--push=ORG/NAME]

    open_clip.create_model_and_transforms("local-dir:DIR")
    transformers.AutoModel.from_pretrained("DIR"), AutoProcessor, pipeline("zero-shot-image-classification", "DIR")

Both sets of files fit into one folder. The weights are float32 safetensors: the averaged parameters where the run has
them. With them go the tokenizer, the preprocessing, and a model card with what is known of the data, the recipe and
the results. Nothing is in DIR before the export has been checked: the files are read back, and features and pixels are
computed again by the libraries themselves where they are installed.
"""

import argparse
import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from synthclip_jax.errors import UserError, command
from synthclip_jax.files.hub import send
from synthclip_jax.formats import open_clip, tokenizer_files, transformers
from synthclip_jax.formats.card import model_card
from synthclip_jax.formats.check import check_export
from synthclip_jax.formats.tensors import write_safetensors
from synthclip_jax.formats.weights import layout, to_state_dict
from synthclip_jax.model.loading import LoadedModel, load_model
from synthclip_jax.model.preprocess import Preprocess
from synthclip_jax.wording import make_parser

FORMATS = {"open_clip": ("open_clip",), "transformers": ("transformers",), "both": ("open_clip", "transformers")}


class ExportError(UserError, ValueError):
    """An export that cannot be made as asked; the text says what to do."""


def export(
    workdir: str | pathlib.Path,
    out: str | pathlib.Path,
    formats: Sequence[str] = ("open_clip", "transformers"),
    step: int | None = None,
    licence: str = "other",
    log: Any = print,
) -> pathlib.Path:
    """Exports a checkpoint, checks what was written, and only then puts it into `out`.

    Args:
      out: folder that does not exist, or is empty.
      formats: `open_clip`, `transformers`.
      step: which checkpoint; None takes the newest.
      licence: of the weights, as the hub names it; the card lists those of the models that made the data.

    Raises:
      ExportError: there is something in `out`.
      FormatError: the other side cannot hold this model.
      ExportMismatch: what was written does not compute what the checkpoint computes.
      CheckpointError: there is no such checkpoint.
    """
    out = pathlib.Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out}: is not empty. Give another --out, or delete it")
    model = load_model(workdir, step)
    configs = {name: _configs(model, name) for name in formats}  # before anything is written: it may be refused
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        for name in formats:
            _write(partial, model, name, configs[name], log)
        checks = check_export(partial, model, formats, log)
        card = model_card(pathlib.Path(workdir), model, out.name, formats, checks, licence)
        (partial / "README.md").write_text(card, encoding="utf-8")
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log(f"step {model.step:,} exported to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return out


def _configs(model: LoadedModel, name: str) -> dict[str, dict[str, Any]]:
    preprocess = Preprocess.from_config(model.config.data)
    if name == "open_clip":
        return {open_clip.CONFIG: open_clip.write(model.config.model, preprocess)}
    return transformers.write(model.config.model, preprocess)


def _write(folder: pathlib.Path, model: LoadedModel, name: str, configs: dict[str, dict[str, Any]], log: Any) -> None:
    for file, content in configs.items():
        (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if not (folder / "vocab.json").exists():
        tokenizer_files.write(folder)
    config = model.config.model
    if config.logit_bias and name == "transformers":
        log("the logit bias is left out: transformers' model has no place for it, and it changes no ranking")
    state = to_state_dict(model.params, layout(name, config.tower, config.logit_bias))
    write_safetensors(folder / (open_clip.WEIGHTS if name == "open_clip" else transformers.WEIGHTS), state)


def push(folder: pathlib.Path, repository: str, really: bool, private: bool = True, log: Any = print) -> None:
    """Uploads an export to a Hugging Face hub with `huggingface_hub`, or says what would be uploaded.

    Raises:
      ExportError: see `send`.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())

    def upload(api: Any) -> None:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Weights exported by synthclip_jax")

    send(folder, files, repository, repository, really, upload, ExportError, log)


def _format(text: str) -> str:
    if text == "hf":
        raise argparse.ArgumentTypeError("it is called transformers now: --format=transformers")
    return text


@command("export")
def main(argv: list[str] | None = None) -> None:
    """Parses the command line, exports, perhaps uploads; exits with status 1 and a reason if it cannot."""
    parser = make_parser("synthclip_jax.export", __doc__)
    parser.add_argument(
        "--workdir", required=True, type=pathlib.Path, help="folder of the run, or a checkpoint's folder"
    )
    parser.add_argument("--format", required=True, choices=FORMATS, type=_format, help="library that loads the result")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="a new folder")
    parser.add_argument("--step", type=int, help="step of the checkpoint; default: the newest")
    parser.add_argument("--license", default="other", help="license of the weights, by the hub's name; default: other")
    parser.add_argument("--push", metavar="ORG/NAME", help="repository on the hub; a dry run without --yes")
    parser.add_argument("--yes", action="store_true", help="with --push: really upload")
    parser.add_argument("--public", action="store_true", help="with --push: make a new repository public")
    given = parser.parse_args(argv)
    folder = export(given.workdir, given.out, FORMATS[given.format], given.step, given.license)
    if given.push:
        push(folder, given.push, given.yes, not given.public)


if __name__ == "__main__":
    main()
