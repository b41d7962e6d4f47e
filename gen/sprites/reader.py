"""Reads a caption into a drawing plan, by plain rules.

- Words are lower-cased and hyphens split. The longest phrase of the vocabulary wins ("teddy bear" before "bear").
- The main object is the concept if the caption names it (by its name, plural or alias), else the first drawable noun.
  The second object is the first other drawable noun. A caption that names nothing drawable is not drawn.
- The up to four words before a noun, back to a preposition or another noun, say how many, how big and which colour.
  A bare plural means two. So "two red apples" tints two apples; of several colours ("black and white") none is used.
- A colour that goes with a background word ("on a blue background", "pink sky") colours the background. Other colours
  ("brown eyes") are left out.
- The first scene word sets the scene, unless that word is already drawn as an object.
"""

import dataclasses
import functools
import re

from gen.sprites.nouns import Noun, pluralise, vocabulary


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


COLOURS = {
    "red": (214, 40, 40),
    "crimson": (176, 20, 50),
    "orange": (245, 130, 32),
    "yellow": (250, 210, 50),
    "golden": (222, 170, 40),
    "gold": (222, 170, 40),
    "green": (70, 160, 70),
    "turquoise": (60, 190, 190),
    "teal": (20, 140, 140),
    "blue": (50, 110, 210),
    "navy": (25, 45, 110),
    "purple": (130, 70, 170),
    "violet": (140, 90, 200),
    "pink": (245, 140, 180),
    "brown": (130, 85, 50),
    "beige": (225, 205, 170),
    "black": (28, 28, 32),
    "white": (250, 250, 250),
    "gray": (140, 140, 140),
    "grey": (140, 140, 140),
    "silver": (185, 190, 195),
}
COUNTS = {
    "one": 1, "single": 1, "two": 2, "pair": 2, "couple": 2, "both": 2, "three": 3, "trio": 3, "few": 3,
    "four": 4, "several": 4, "some": 3, "many": 5, "five": 5, "six": 6, "group": 4, "bunch": 4, "pile": 5,
    "herd": 5, "flock": 5, "row": 4, "dozen": 6, "collection": 5, "stack": 4, "pack": 4, "dozens": 6,
}  # fmt: skip
SIZES = {
    "tiny": "tiny", "miniature": "tiny", "small": "small", "little": "small", "mini": "small",
    "big": "big", "large": "big", "tall": "big", "huge": "huge", "giant": "huge", "enormous": "huge",
    "massive": "huge", "gigantic": "huge",
}  # fmt: skip
SCENES = {
    "beach": "beach shore seashore seaside coast sand sandy island",
    "forest": "forest woods woodland jungle rainforest trees branch branches",
    "night": "night midnight nighttime starry moonlit moonlight darkness",
    "snow": "snow snowy snowfall winter ice icy frozen arctic blizzard",
    "desert": "desert dune dunes canyon savanna savannah",
    "city": "city street streets urban town skyline downtown sidewalk alley market buildings village",
    "road": "road highway path track tracks racetrack bridge",
    "field": "field fields grass grassy meadow park garden lawn pasture farm countryside yard backyard hill hills",
    "ocean": "ocean sea water lake river pond waves harbor harbour bay pool stream",
    "underwater": "underwater reef seabed aquarium",
    "sunset": "sunset sunrise dusk dawn evening twilight",
    "mountains": "mountains mountainside cliff cliffs valley peaks",
    "sky": "sky skies air clouds cloudy",
    "space": "space galaxy universe cosmos outer-space stars",
    "rain": "rain rainy storm stormy raining",
    "room": "room kitchen bedroom bathroom living indoors floor shelf wall office classroom library restaurant house",
    "table": "table desk plate tray counter tabletop bowl basket picnic",
    "stage": "stage concert spotlight theater theatre party",
}
BACKDROPS = _set(
    "background backdrop sky skies wall walls floor surface light lights glow screen paper canvas carpet curtain "
    "blanket cloth tablecloth rug table waters"
)
STYLES = {
    "sketch": ("pencil sketch", "sketch", "line drawing", "line art", "outline", "pencil drawing", "ink drawing"),
    "silhouette": ("silhouette", "shadow of"),
    "monochrome": ("black and white photo", "in black and white", "monochrome", "grayscale"),
}
_STOPS = _set(
    "in on at by with under over near beside behind above below against around through across into onto from to "
    "between beneath along for while as is are was that which who and or up next inside outside"
)
_ARTICLES = _set("a an the this that these those his her their its my our your another each every")
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
_LOOK_BACK = 4


class NotDrawable(ValueError):
    """The caption names nothing that the vocabulary can draw."""

    reason = "not_drawable"


@dataclasses.dataclass(frozen=True)
class DrawnObject:
    """One kind of object in a plan: what, how many (1 to 6), `""` or a size of `SIZES`, `""` or a colour's name."""

    noun: Noun
    count: int = 1
    size: str = ""
    colour: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to draw. Empty strings mean: the caption does not say, the picture's seed decides."""

    main: DrawnObject
    second: DrawnObject | None = None
    scene: str = ""
    background: str = ""
    style: str = ""


def words_of(text: str) -> list[str]:
    """Lower-case words; hyphens split, a possessive `'s` is dropped."""
    text = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").replace("-", " ")
    return [word.removesuffix("'s") for word in _WORD.findall(text)]


@functools.cache
def _lexicon() -> dict[tuple[str, ...], tuple[Noun, bool]]:
    """Phrase -> noun and whether the phrase is a plural. Names win over aliases, singulars over plurals."""
    lexicon: dict[tuple[str, ...], tuple[Noun, bool]] = {}
    nouns = vocabulary()
    singular = [(noun.name, noun) for noun in nouns] + [(alias, noun) for noun in nouns for alias in noun.aliases]
    plural = [(noun.plural, noun) for noun in nouns]
    plural += [(pluralise(alias), noun) for noun in nouns for alias in noun.aliases if not alias.endswith("s")]
    for phrases, is_plural in ((singular, False), (plural, True)):
        for phrase, noun in phrases:
            lexicon.setdefault(tuple(words_of(phrase)), (noun, is_plural))
    return lexicon


_LONGEST = 4


@functools.cache
def _scene_words() -> dict[str, str]:
    return {word: scene for scene, words in SCENES.items() for word in words.split()}


@dataclasses.dataclass(frozen=True)
class _Mention:
    noun: Noun
    plural: bool
    start: int
    end: int


def _mentions(words: list[str], wanted: Noun | None) -> list[_Mention]:
    """Nouns in the order in which the words name them."""
    lexicon, found, at = _lexicon(), [], 0
    while at < len(words):
        for length in range(min(_LONGEST, len(words) - at), 0, -1):
            entry = lexicon.get(tuple(words[at : at + length]))
            if entry is None:
                continue
            noun, plural = entry
            if noun.needs_article and noun is not wanted and length == 1 and not _introduced(words, at):
                continue
            found.append(_Mention(noun, plural, at, at + length))
            at += length
            break
        else:
            at += 1
    return found


def _introduced(words: list[str], at: int) -> bool:
    before = words[at - 1] if at else ""
    return before in _ARTICLES or before in COLOURS or before in COUNTS or before in SIZES


def concept_noun(concept: str) -> Noun | None:
    """The noun that a concept stands for: the last drawable one it names ("golden retriever dog" -> dog)."""
    words = words_of(concept)
    exact = _lexicon().get(tuple(words))
    if exact:
        return exact[0]
    found = _mentions(words, None)
    return found[-1].noun if found else None


def _described(words: list[str], mention: _Mention, taken: set[int]) -> DrawnObject:
    """The object with what the words before it say; marks the colours used in `taken`."""
    noun = mention.noun
    count, size = 0, ""
    colours: list[str] = []
    for position in range(mention.start - 1, max(mention.start - 1 - _LOOK_BACK, -1), -1):
        word = words[position]
        if word in _STOPS and not (word == "and" and position and words[position - 1] in COLOURS):
            break
        if word in COLOURS:
            colours.append(word)
            taken.add(position)
        elif word in SIZES:
            size = size or SIZES[word]
        elif word in COUNTS:
            count = COUNTS[word]
            break
        elif (word,) in _lexicon():
            break
    if noun.plural == noun.name and count == 2:  # a pair of glasses
        count = 1
    if not count:
        count = 2 if mention.plural and noun.plural != noun.name else 1
    return DrawnObject(noun, min(count, 6), size, colours[0] if len(colours) == 1 else "")


def _background(words: list[str], taken: set[int]) -> str:
    for position, word in enumerate(words):
        if word in COLOURS and position not in taken:
            for following in words[position + 1 : position + 4]:
                if following in BACKDROPS:
                    return word
                if following in _STOPS and following != "and":
                    break
    return ""


def _style(words: list[str]) -> tuple[str, list[str]]:
    """The style the words ask for, and the words without that phrase (a "pencil sketch" shows no pencil)."""
    text = f" {' '.join(words)} "
    for style, cues in STYLES.items():
        for cue in cues:
            if f" {cue} " in text:
                return style, text.replace(f" {cue} ", " ").split()
    return "", words


def read_caption(caption: str, concept: str = "") -> Plan:
    """Reads a caption into a plan.

    Args:
      caption: any English text.
      concept: the concept the caption was written for; decides which of several nouns is the main one.

    Raises:
      NotDrawable: no word of the caption is in the vocabulary.
    """
    style, words = _style(words_of(caption))
    wanted = concept_noun(concept)
    mentions = _mentions(words, wanted)
    if not mentions:
        raise NotDrawable(f"nothing drawable in {caption[:200]!r}")
    main = next((mention for mention in mentions if mention.noun is wanted), mentions[0])
    second = next((mention for mention in mentions if mention.noun is not main.noun), None)
    taken: set[int] = set()
    for mention in mentions:  # every noun keeps its own colours, drawn or not
        _described(words, mention, taken)
    drawn = {position for mention in (main, second) if mention for position in range(mention.start, mention.end)}
    scenes = _scene_words()
    scene = next((scenes[word] for at, word in enumerate(words) if word in scenes and at not in drawn), "")
    return Plan(
        main=_described(words, main, taken),
        second=_described(words, second, taken) if second else None,
        scene=scene,
        background=_background(words, taken),
        style=style,
    )
