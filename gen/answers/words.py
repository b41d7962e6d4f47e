"""The words by which language models talk around a caption, in the languages that captions are asked for in.

They are in `answer_words.json`; words that begin ordinary captions are left out there. Those of `COUNTED`,
`REFUSALS_*`, `META` and `REQUESTS` are regular expressions, matched without regard to case.
"""

import json
import pathlib

_WORDS = json.loads(pathlib.Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))

# What a model calls the thing that was asked for: words, several words, and parts of words in unspaced scripts.
NOUNS = frozenset(_WORDS["nouns"])
PHRASES = tuple(_WORDS["phrases"])
UNSPACED = tuple(_WORDS["unspaced"])
# How an answer begins that has nothing to say yet: "Here is", and "Sure".
INTRODUCTIONS = tuple(_WORDS["introductions"])
INTERJECTIONS = tuple(_WORDS["interjections"])
# What begins a note behind a caption, before a colon; and a remark, without one.
NOTES = tuple(_WORDS["notes"])
REMARKS = tuple(_WORDS["remarks"])
# What word counts count.
COUNTED = "|".join(_WORDS["counted"])
# How an answer refuses: what stands at its beginning, and anywhere in it.
REFUSALS_AT_START = tuple(_WORDS["refusals_at_start"])
REFUSALS_ANYWHERE = tuple(_WORDS["refusals_anywhere"])
# How an answer speaks of its task instead of a scene, and how it asks the user for something.
META = tuple(_WORDS["meta"])
REQUESTS = tuple(_WORDS["requests"])
# Words by which a question is one to the user.
SECOND_PERSON = frozenset(_WORDS["second_person"])
