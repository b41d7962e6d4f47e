"""What the user's own files held when a bank was made from them: their texts, wherever they lie and however lines end.

A list that was edited since would be ignored without a word; one that is gone or moved does no harm.
"""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gen.bank.files import is_file_name, read_file
from gen.bank.sources import Brought, wordnet_folder
from gen.shards.plans import PlanMismatch
from gen.shards.store import sha256
from synthclip_jax.config.generation import Concepts
from synthclip_jax.files.locations import Location
from synthclip_jax.text.presence import normalise


def _texts_digest(texts: Iterable[str]) -> str:
    return sha256("\n".join(texts).encode())[:16]


def contents_of(settings: Concepts, brought: Brought) -> dict[str, Any]:
    """What is in the user's own files: equal for equal texts, wherever they lie and however their lines end."""
    contents: dict[str, Any] = {
        "lists": [_texts_digest(file.texts) for file in brought.lists],
        "blocked": _texts_digest(sorted(set(brought.block_list.terms[: brought.block_list.given]))),
        "block_lists": sorted(_texts_digest(file.texts) for file in brought.block_list.files),
    }
    if settings.metaclip_path:
        contents["metaclip"] = _texts_digest(brought.metaclip)
    if "wordnet" in settings.sources:
        contents["wordnet"] = _wordnet_digest(settings)
    return contents


def _wordnet_digest(settings: Concepts) -> str:
    files = [wordnet_folder(settings) / f"{kind}.{pos}" for pos in settings.wordnet_pos for kind in ("data", "index")]
    return sha256("".join(sha256(file.read_bytes()) if file.is_file() else "-" for file in files).encode())[:16]


def check_contents(meta: Mapping[str, Any], settings: Concepts, folder: Location, rebuilt: Callable[[], str]) -> None:
    """Compares what the files hold with what the bank was made from; prints which of them are gone.

    Args:
      meta: the bank's record.
      folder: of the bank, for errors.
      rebuilt: the digest of a bank made anew, for records from before contents were in them.

    Raises:
      PlanMismatch: a file holds other texts, or there are more or fewer files.
      BankError: a file cannot be read.
    """
    files = {"lists": list(settings.lists), "block_lists": [item for item in settings.block_list if is_file_name(item)]}
    files["metaclip"] = [settings.metaclip_path] if settings.metaclip_path else []
    gone = [name for names in files.values() for name in names if not pathlib.Path(name).expanduser().is_file()]
    for name in gone:
        print(f"concepts: {name}: not there; the bank that was made goes on in {folder}")
    there = meta.get("contents")
    if there is None:
        if not gone:
            _check_old(meta, settings, folder, rebuilt)
        return
    words = [item for item in settings.block_list if not is_file_name(item)]
    now = {"blocked": _texts_digest(sorted({normalise(word) for word in words}))}
    if gone:
        # Those that are there must be among those that the bank was made from.
        for key, name_list in files.items():
            here = [name for name in name_list if name not in gone and key != "metaclip"]
            found = [read_file(name, f"gen.concepts.{key}", synonyms=key == "block_lists") for name in here]
            for name, file in zip(here, found, strict=True):
                if _texts_digest(file.texts) not in there.get(key, []):
                    raise _changed(name, folder)
            if key != "metaclip" and len(name_list) != len(there.get(key, [])):
                raise _changed(f"gen.concepts.{key.replace('block_lists', 'block_list')}", folder)
    else:
        now = contents_of(settings, Brought.read(settings))
    if "wordnet" in there and not (wordnet_folder(settings) / "data.noun").is_file():
        now["wordnet"] = there["wordnet"]
    for key in now:
        if now[key] != there.get(key):
            names = {"blocked": "gen.concepts.block_list", "wordnet": str(wordnet_folder(settings))}
            named = names.get(key) or ", ".join(map(str, files[key])) or f"gen.concepts.{key}"
            if key == "lists" and len(files[key]) == len(there.get(key, [])):
                pairs = zip(files[key], now[key], there[key], strict=True)
                named = ", ".join(str(name) for name, new, old in pairs if new != old)
            raise _changed(named, folder)


def _check_old(meta: Mapping[str, Any], settings: Concepts, folder: Location, rebuilt: Callable[[], str]) -> None:
    """A bank from before contents were recorded: the same bytes as then, or the same bank."""
    known = set(meta.get("files", {}).values())
    names = [*settings.lists, *filter(is_file_name, settings.block_list), settings.metaclip_path]
    for name in filter(None, names):
        if sha256(pathlib.Path(name).expanduser().read_bytes()) not in known:
            if rebuilt() != meta["digest"]:
                raise _changed(name, folder)
            return


def _changed(name: str, folder: Location) -> PlanMismatch:
    return PlanMismatch(
        f"{name}: has changed since the concept bank in {folder} was made from it. Restore it, start another version"
        " beside it with --new-version, or use another --workdir"
    )
