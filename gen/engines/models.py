"""Where the models of engines lie, and what tells one from another."""

import hashlib
import pathlib

from gen.engines import smollm2
from synthclip_jax.config.generation import Captions, Recaption
from synthclip_jax.errors import UserError

MINIATURE = "miniature"
MINIATURE_FOLDER = pathlib.Path(__file__).parents[1] / "miniature" / "model"


class ImageModelMissing(UserError, FileNotFoundError):
    """The text-to-image model of this package is not where it should be."""


def image_model_location(model: str) -> str:
    """Folder or hub id of a text-to-image model; `miniature` is the one that this package brings.

    Raises:
      ImageModelMissing: this installation lacks it.
    """
    if model != MINIATURE:
        return model
    if not (MINIATURE_FOLDER / "model_index.json").is_file():
        raise ImageModelMissing(
            f"gen.images.model={MINIATURE}: {MINIATURE_FOLDER} is not there. Install the package again, or train the"
            " model (python -m gen.miniature.train) and give its folder"
        )
    return str(MINIATURE_FOLDER)


def model_location(settings: Captions | Recaption) -> tuple[str, str | None]:
    """Folder or hub id of the language model, and the revision of a hub model."""
    if settings.model == smollm2.NAME:
        return str(smollm2.model_folder()), None
    return settings.model, settings.revision or None


def folder_digest(model: str) -> str:
    """What changes with the files of a model's folder, which can change under its name; empty: it is no folder."""
    folder = pathlib.Path(model)
    if not folder.is_dir():
        return ""
    listing = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*.*"))
    return hashlib.sha256(repr(listing).encode()).hexdigest()[:16]


def not_found(
    settings: Captions | Recaption, error: Exception, key: str = "gen.captions.model"
) -> smollm2.ModelNotFound:
    """The error that says which model could not be loaded and what to give instead."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return smollm2.ModelNotFound(
        f"{key}: {settings.model!r} cannot be loaded ({reason}). Give a folder with config.json,"
        " tokenizer and safetensors, the id of a hub model that this machine can reach, or 'smollm2'"
    )
