"""Captions to the ids that a pipeline's text encoder was trained with: transformers' `CLIPTokenizer`, without it.

It is not open_clip's tokenizer (`synthclip_jax.text.tokenizer`): that one mends text first and straightens quotes.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from gen.engines.interface import EngineError
from synthclip_jax.formats import read_config

START, END = "<|startoftext|>", "<|endoftext|>"
WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class CaptionTokenizer:
    """Reads the tokenizer of a part of a pipeline.

    Raises:
      EngineError: the folder holds no tokenizer of CLIP's kind.
    """

    def __init__(self, folder: pathlib.Path, context_length: int):
        self.context_length = context_length
        try:
            self._tokenizer = _load(folder)
        except EngineError:
            raise
        except Exception as error:  # the library raises nothing narrower
            raise EngineError(f"{folder}: its tokenizer cannot be read ({error}). Download it again") from error
        found = {name: self._tokenizer.token_to_id(name) for name in (START, END, padding_token(folder))}
        for name, token in found.items():
            if token is None:
                raise EngineError(f"{folder}: its tokenizer has no token {name!r}. Download it again")
        self._start, self._end, self._padding = found[START], found[END], found[padding_token(folder)]

    def __call__(self, captions: Sequence[str]) -> tuple[Int[np.ndarray, "captions context"], int]:
        """One row for each caption, start and end token included, and how many captions had to be cut."""
        rows = np.full((len(captions), self.context_length), self._padding, np.int32)
        cut = 0
        for row, encoded in zip(rows, self._tokenizer.encode_batch_fast(list(captions), add_special_tokens=False)):  # noqa: B905
            ids = encoded.ids[: self.context_length - 2]
            cut += len(encoded.ids) > len(ids)
            row[: len(ids) + 2] = [self._start, *ids, self._end]
        return rows, cut


def padding_token(folder: pathlib.Path) -> str:
    """What fills up rows: the end token for SD 1.x, `!` for SD 2.x and the second encoder of XL."""
    config = read_config(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    token = config.get("pad_token") or END
    special = folder / "special_tokens_map.json"
    if special.is_file() and "added_tokens_decoder" not in config:  # as transformers: the older file counts for more
        token = read_config(special).get("pad_token") or token
    return str(token["content"] if isinstance(token, dict) else token)


def _load(folder: pathlib.Path) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    if (folder / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    files = [folder / name for name in ("vocab.json", "merges.txt")]
    if not all(file.is_file() for file in files):
        raise EngineError(f"{folder}: neither tokenizer.json nor vocab.json and merges.txt. Download it again")
    vocabulary, merges = models.BPE.read_file(*map(str, files))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=END))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in (START, END)])
    return tokenizer
