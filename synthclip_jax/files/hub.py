"""Files sent to a Hugging Face hub.

The account and the address are those of the environment, as `hf auth login` and HF_ENDPOINT set them.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from synthclip_jax.errors import UserError


def send(
    folder: pathlib.Path,
    files: Sequence[pathlib.Path],
    repository: str,
    place: str,
    really: bool,
    upload: Callable[[Any], None],
    error: type[UserError],
    log: Callable[[str], Any],
    then: str = "",
) -> None:
    """Says which files of a folder go to a repository, and sends them if that is really wanted.

    Args:
      repository: USER/NAME.
      place: what it is called where it is said.
      upload: given `huggingface_hub.HfApi()`, makes the repository and sends the files.
      then: what to do if the hub refuses, a sentence.

    Raises:
      error: the package is not installed, or the hub refuses.
    """
    for file in files:
        log(f"  {file.stat().st_size:>13,} bytes  {file.relative_to(folder)}")
    if not really:
        log(f"dry run: nothing was sent. These {len(files)} files would go to {place}; --yes sends them")
        return
    try:
        from huggingface_hub import HfApi
    except ImportError as missing:
        raise error("huggingface_hub is not installed: pip install 'synthclip_jax[export]'") from missing
    api = HfApi()
    try:
        upload(api)
    except Exception as refused:  # the package raises many kinds: no account, no network, no such organisation
        raise error(f"{repository}: the hub refuses ({type(refused).__name__}: {refused}){then}") from refused
    log(f"{len(files)} files sent to {place}")
