"""CLIP's tokenizer as the files that transformers reads, with as much of CLIP's text cleaning as they can hold.

CLIP cleans a text with ftfy and `html.unescape` before it lower-cases it: curly quotes become straight ones, `&amp;` an
ampersand, ligatures and full-width characters plain ones. transformers' own CLIP tokenizer does none of it. A
`tokenizer.json` can hold replacements, so the ones that ftfy makes character by character are written into it, and the
named entities of HTML 4. What needs the whole text cannot be held: mojibake that ftfy mends, entities by number beyond
the common ones, a Greek sigma at the end of a word. `UNCLEANED` says so, for the model card.
"""

import html.entities
import json
import pathlib
from typing import Any

from synthclip_jax.text.tokenizer import END_ID, END_TOKEN, START_ID, START_TOKEN, WORD, merges, vocabulary

# What OpenAI calls the two tokens and transformers took over; the ids are the same.
START, END = "<|startoftext|>", "<|endoftext|>"
UNCLEANED = (
    "transformers' tokenizer cannot mend broken encodings (`cafÃ©` for `café`) and rare HTML entities, which open_clip"
    " and synthclip_jax do: such texts give another embedding there. Clean them first with `ftfy.fix_text` and"
    " `html.unescape`."
)


def words() -> dict[str, int]:
    """CLIP's vocabulary with transformers' names of the two special tokens: token to id."""
    names = {START_TOKEN: START, END_TOKEN: END}
    return {names.get(token, token): number for token, number in vocabulary().items()}


def configs(context_length: int, processor: str) -> dict[str, dict[str, Any]]:
    """`tokenizer_config.json` and `special_tokens_map.json`, by name.

    Args:
      processor: transformers' class that holds tokenizer and image processor.
    """
    tokens = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    return {
        "tokenizer_config.json": {
            # Not CLIPTokenizer: transformers 5 builds that one anew, without what tokenizer.json says of cleaning.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": processor,
            "model_max_length": context_length,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            **tokens,
        },
        "special_tokens_map.json": tokens,
    }


def write(folder: pathlib.Path) -> None:
    """Writes `vocab.json`, `merges.txt` and `tokenizer.json`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    (folder / "vocab.json").write_text(json.dumps(words(), ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges())]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = Tokenizer(models.BPE(words(), merges(), end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = cleaning()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace("</w>", " "), decoders.Strip(" ", 0, 1)]
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        (END, END_ID), (START, START_ID), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.add_special_tokens([START, END])
    tokenizer.save(str(folder / "tokenizer.json"))


def cleaning() -> Any:
    """A `tokenizers` normalizer that does what `text.tokenizer.clean` does, as far as replacements can."""
    import ftfy  # noqa: F401  # knows the encoding sloppy-windows-1252
    from ftfy.chardata import CONTROL_CHARS, LIGATURES, WIDTH_MAP
    from tokenizers import Regex, normalizers

    replace = normalizers.Replace
    # Unescaped three times: once by ftfy and twice by CLIP.
    rules = [replace(Regex("&(?:(?:amp|AMP|#0*38|#[xX]0*26);){1,3}"), "&")]
    entities = {name: chr(code) for name, code in html.entities.name2codepoint.items() if name != "amp"}
    rules += [replace(f"&{name};", character) for name, character in entities.items()]
    # By number: what is written so because it means something in HTML, and typographic quotes, dashes and dots.
    for code in (34, 39, 60, 62, 160, 0x2013, 0x2014, 0x2018, 0x2019, 0x201C, 0x201D, 0x2026):
        rules.append(replace(Regex(f"&#0*{code};|&#[xX]0*{_any_case(code)};"), chr(code)))
    rules.append(replace("&apos;", "'"))
    rules.append(replace(Regex(r"\x1b\[[\d;]*[a-zA-Z]"), ""))  # a terminal's colours
    # Bytes of Windows-1252 that were read as Latin-1.
    rules += [replace(chr(byte), bytes([byte]).decode("sloppy-windows-1252")) for byte in range(0x80, 0xA0)]
    rules += [replace(chr(code), text) for code, text in {**LIGATURES, **WIDTH_MAP}.items()]
    rules.append(replace(Regex("[\u02bc\u2018-\u201b]"), "'"))
    rules.append(replace(Regex("[\u201c-\u201f]"), '"'))
    dropped = "".join(rf"\x{{{code:x}}}" for code in CONTROL_CHARS)
    rules.append(replace(Regex(f"[{dropped}]"), ""))
    end = [normalizers.NFC(), replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    return normalizers.Sequence(rules + end)


def _any_case(code: int) -> str:
    """A hexadecimal number as a regular expression that does not mind case."""
    return "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in f"{code:x}")
