"""Test captions: none whose words were a training caption, nor have come into the training data since."""

import itertools
import pathlib
import re
from collections.abc import Callable, Sequence

from gen.shards import draws
from gen.shards.store import StageStore
from gen.sprites import NotDrawable, Noun, read_caption
from synthclip_jax.files.locations import is_url
from synthclip_jax.files.storage import StoreError

SEED = 0
CAPTIONS = (
    "A picture of {a}.",
    "{a} on a white background.",
    "{a} on a yellow background.",
    "{a} on a blue background.",
    "{a} seen at the beach.",
    "{a} deep in the forest.",
    "{a} under the night sky.",
    "{a} in the snow.",
    "{a} in the desert.",
    "{a} on a city street.",
    "{a} on a country road.",
    "{a} in a grassy field.",
    "{a} by the ocean.",
    "{a} at sunset.",
    "{a} in a bright room.",
    "{a} on a table.",
    "{a} below the mountains.",
    "{a} against the sky.",
    "{a} in the rain.",
    "{a} on a stage.",
    "Here is a small {n} in a meadow.",
    "Here is a big {n} in a garden.",
    "{a} beside a tree.",
    "{a} beside a house.",
    "{a} and a flower.",
    "{a} and a ladder.",
    "Two {p} in a park.",
    "Three {p} on a pink background.",
)

# For a choice between two captions: alike but for a place, a companion, a number or a colour, and never both true.
TWO_CAPTIONS = (
    ("{a} in the snow.", "{a} in the desert."),
    ("{a} deep in the forest.", "{a} on a city street."),
    ("{a} under the night sky.", "{a} at sunset."),
    ("{a} beside a tree.", "{a} beside a house."),
    ("Two {p} in a park.", "Three {p} in a park."),
    ("{a} on a yellow background.", "{a} on a blue background."),
)


def _filled(template: str, noun: Noun) -> str:
    indefinite = noun.name if noun.plural == noun.name else f"{'an' if noun.name[0] in 'aeiou' else 'a'} {noun.name}"
    caption = template.format(a=indefinite, n=noun.name, p=noun.plural)
    return caption[0].upper() + caption[1:]


def two_captions(nouns: Sequence[Noun], label: int, used: frozenset[str], count: int) -> list[tuple[str, str]]:
    """A right and a wrong caption for images of a class, neither of which was a training caption.

    By turns the wrong one names another class, and says another thing of the same one; see `TWO_CAPTIONS`.

    Raises:
      StoreError: too few are left.
    """
    noun, found = nouns[label], list[tuple[str, str]]()
    pairs = [pair for each in TWO_CAPTIONS for pair in (each, each[::-1])]
    pairs.sort(key=lambda pair: draws.bits63(SEED, f"{noun.name} {pair[0]}", "test choice"))
    for template, other in pairs:
        if len(found) == count:
            break
        right = _filled(template, noun)
        if len(found) % 2 or len(nouns) == 1:
            wrong = _filled(other, noun)
        else:
            step = 1 + draws.bits63(SEED, right, "another class") % max(1, len(nouns) - 1)
            wrong = _filled(template, nouns[(label + step) % len(nouns)])
        if right != wrong and _draws(right, noun) and not {caption_key(right), caption_key(wrong)} & used:
            found.append((right, wrong))
    if not found:
        raise StoreError(f"every test caption of {noun.name!r} was used for training: none is left to test it with")
    return found


def _draws(caption: str, noun: Noun) -> bool:
    try:
        return read_caption(caption, noun.name).main.noun is noun
    except NotDrawable:
        return False


def held_out_captions(noun: Noun, used: frozenset[str], count: int) -> list[str]:
    """Captions for a class: none whose words were a training caption, all with the class as their main object."""
    captions = [_filled(template, noun) for template in CAPTIONS]
    captions = [caption for caption in captions if _draws(caption, noun) and caption_key(caption) not in used]
    if not captions:
        raise StoreError(f"every test caption of {noun.name!r} was used for training: none is left to test it with")
    captions.sort(key=lambda caption: draws.bits63(SEED, f"{noun.name} {caption}", "test caption"))
    return [captions[index % len(captions)] for index in range(count)]


def caption_key(caption: str) -> str:
    """A caption's words: captions that differ in case and punctuation alone count as the same."""
    return " ".join(re.findall(r"\w+", caption.lower()))


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
