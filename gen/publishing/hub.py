"""Published files sent to a Hugging Face hub."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

from gen.publishing.source import PublishError
from synthclip_jax.data.readers.offsets import SUFFIX
from synthclip_jax.files.hub import send

PREFIX = "hf://datasets/"
NOT_SENT = (".*", f"*{SUFFIX}")  # temporary files, and what our readers leave beside files that they have read
_REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


def repository_of(out: str) -> str:
    """USER/NAME of hf://datasets/USER/NAME; empty: it is another place.

    Raises:
      PublishError: it is a place on a hub, and no dataset's.
    """
    if not out.startswith("hf://"):
        return ""
    name = out.removeprefix(PREFIX).strip("/")
    if not out.startswith(PREFIX) or not _REPOSITORY.fullmatch(name):
        raise PublishError(f"--out={out}: expected {PREFIX}USER/NAME")
    return name


def url_of(repository: str) -> str:
    """Where people find it; empty without huggingface_hub."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return ""
    return f"{constants.ENDPOINT}/datasets/{repository}"


def upload(
    folder: pathlib.Path, repository: str, really: bool, private: bool = True, log: Callable[[str], Any] = print
) -> None:
    """Uploads a folder with `huggingface_hub`, or says what would be uploaded. What is there already is not sent again.

    Raises:
      PublishError: see `send`.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not any(map(path.match, NOT_SENT))]

    def to(api: Any) -> None:
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        what = {"repo_id": repository, "folder_path": folder, "repo_type": "dataset"}
        what |= {"ignore_patterns": list(NOT_SENT)}
        # Before huggingface_hub 2, upload_folder sent all of a folder or nothing.
        if large := getattr(api, "upload_large_folder", None):
            large(**what)
        else:
            api.upload_folder(**what, commit_message="Dataset published by synthclip_jax")

    again = ". The same command sends what is missing"
    send(folder, files, repository, f"{PREFIX}{repository}", really, to, PublishError, log, again)
