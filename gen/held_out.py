"""Whether a test set that is there may stay: none of its captions may have come into the training data since."""

import itertools
import pathlib
from collections.abc import Callable

from gen.shards.store import StageStore
from synthclip_jax.files.locations import is_url
from synthclip_jax.files.storage import StoreError


def kept_captions(
    store: StageStore,
    captions: list[str],
    is_used: Callable[[str], bool],
    remake: Callable[[], tuple[dict[str, bytes], int]],
) -> list[str]:
    """The captions of the set that is there, if none of them is trained on now; else sets it aside, and `captions`.

    Args:
      captions: what a set made now would have.
      is_used: whether a caption is trained on.
      remake: the files of a set made now. Plans of older releases hold no captions: there the set itself is compared.

    Raises:
      StoreError: the set has to be made again and lies in an object store.
    """
    if not store.plan_path.exists():
        return captions
    plan = store.read_plan()
    there = plan.get("captions")
    if isinstance(there, list):
        trained = [text for text in there if is_used(str(text))]
        if not trained:
            return there
        why = f"{len(trained):,} of its captions are trained on now ({', '.join(map(str, trained[:3]))})"
    else:
        path = store.folder / "test" / "0.tar"
        if not path.exists() or path.read_bytes() == remake()[0]["test/0.tar"]:
            return []
        why = "its captions may be trained on now, and an older release did not note them"
    if is_url(store.folder):
        raise StoreError(f"{store.folder}: {why}. Delete it and run the same command again")
    folder = pathlib.Path(str(store.folder))
    aside = next(
        candidate
        for number in itertools.count(1)
        if not (candidate := folder.with_name(f"{folder.name}.replaced-{number}")).exists()
    )
    folder.rename(aside)
    print(f"testsets: {folder.name}: made again: {why}. The set that was there is {aside} now", flush=True)
    return captions
