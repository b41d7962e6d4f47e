"""Weights of a folder of diffusers: safetensors to the parameters of our networks, every tensor accounted for."""

import difflib
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from gen.engines.interface import EngineError
from synthclip_jax.formats import FormatError
from synthclip_jax.formats.tensors import one_by_one, read_index

STEMS = ("diffusion_pytorch_model", "model")  # what diffusers and transformers call their files
VARIANTS = ("", ".fp16", ".bf16")  # tried in this order
# Names that older diffusers gave the attention of autoencoders; and what wraps CLIP's towers in some files only.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD = re.compile(r"(?<=\.attentions\.0\.)(query|key|value|proj_attn)(?=\.)")
_WRAPPERS = re.compile(r"^text_model\.|(?<=^vision_model\.)vision_model\.")
NAMED = 3  # tensors that an error names
REMEDY = "Download the part again, or draw with --config.gen.images.engine=diffusers"


def network(make: Callable[[], nnx.Module]) -> tuple[Any, dict[str, Any]]:
    """The structure of a network, and the shapes of its parameters as nested dictionaries; no memory is taken."""
    graph, state = nnx.split(nnx.eval_shape(make))
    return graph, nnx.to_pure_dict(state)


def find_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors of a part, the plain ones before their variants of half precision.

    Raises:
      EngineError: there are none.
    """
    for stem in STEMS:
        for variant in VARIANTS:
            if (path := folder / f"{stem}{variant}.safetensors").is_file():
                return [path]
            for name in (f"{stem}.safetensors.index{variant}.json", f"{stem}{variant}.safetensors.index.json"):
                if (folder / name).is_file():
                    return _of_index(folder / name)
    others = sorted(path.name for path in folder.glob("*.*") if path.suffix in (".bin", ".ckpt", ".safetensors"))
    found = f"only {', '.join(others[:NAMED])}" if others else "none"
    raise EngineError(
        f"{folder}: no weights as safetensors ({found} there). Save the pipeline with diffusers'"
        " save_pretrained(..., safe_serialization=True), or give another folder"
    )


def _of_index(index: pathlib.Path) -> list[pathlib.Path]:
    try:
        return sorted(set(read_index(index).values()))
    except FormatError as error:
        raise EngineError(f"{error}, or draw with --config.gen.images.engine=diffusers") from error


def read_weights(folder: pathlib.Path, shapes: Mapping[str, Any], unused: tuple[str, ...] = ()) -> dict[str, Any]:
    """The parameters of a network, as arrays on the host.

    Args:
      folder: of the part.
      shapes: nested dictionaries of shapes and types, as `network` gives them.
      unused: beginnings of the names of tensors that the network has no use for.

    Raises:
      EngineError: a file is missing or damaged, or its tensors are not those of the network.
    """
    wanted = {_name(path): (path, leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]}
    found: dict[str, np.ndarray] = {}
    extra, wrong, seen = [], [], set()
    for given, read in _tensors(find_files(folder)):
        name = _OLD.sub(lambda old: OLD_ATTENTION[old[0]], _WRAPPERS.sub("", given))
        if name.startswith(unused) or name.endswith("position_ids"):
            continue
        if name not in wanted:
            extra.append(given)
            continue
        seen.add(name)
        path, leaf = wanted[name]
        array = _turned(read(), path, leaf)
        if array.shape != leaf.shape:
            wrong.append(f"{given} is {array.shape}, its configuration says {leaf.shape}")
        else:
            found[name] = np.ascontiguousarray(array).astype(leaf.dtype)
    _complain(folder, [name for name in wanted if name not in seen], extra, wrong)
    return jax.tree_util.tree_map_with_path(lambda path, _: found[_name(path)], shapes)


def _name(path: tuple[Any, ...]) -> str:
    """The name in a file of a parameter, from its place in ours."""
    *parents, leaf = [str(step.key) for step in path]
    return ".".join([*parents, "weight" if leaf in ("kernel", "scale", "embedding") else leaf])


def _turned(array: np.ndarray, path: tuple[Any, ...], leaf: Any) -> np.ndarray:
    """From torch's order of axes to ours: OIHW to HWIO, (out, in) to (in, out); a 1x1 convolution is linear."""
    if path[-1].key != "kernel":
        return array
    if array.ndim == 4 and len(leaf.shape) == 2 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _tensors(files: list[pathlib.Path]) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Names of the tensors of all files, and what reads each."""
    for path in files:
        if not path.is_file():
            raise EngineError(f"{path}: no such file, though the index beside it names it. {REMEDY}")
        try:
            yield from one_by_one(path)
        except FormatError as error:
            raise EngineError(f"{error}. {REMEDY}") from error


def _complain(folder: pathlib.Path, missing: list[str], extra: list[str], wrong: list[str]) -> None:
    """Raises where tensors are not those of the network: each is named, a missing one with the nearest there."""
    problems = []
    if wrong:
        problems.append(f"of another shape: {_some(wrong)}")
    if missing:
        near = {name: next(iter(difflib.get_close_matches(name, extra, n=1)), "") for name in missing[:NAMED]}
        named = [f"{name} (nearest: {near[name]})" if near.get(name) else name for name in missing]
        problems.append(f"missing: {_some(named)}")
    if extra:
        problems.append(f"unknown: {_some(extra)}")
    if problems:
        raise EngineError(
            f"{folder}: its tensors are not those that config.json describes. {'; '.join(problems)}. {REMEDY}"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
