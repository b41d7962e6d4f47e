"""Files of tensors: safetensors, and torch's own (read with `weights_only=True`)."""

import argparse
import collections
import functools
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from synthclip_jax.formats import FormatError, read_config


class Tensors(NamedTuple):
    """What a file of weights holds.

    Attributes:
      state: tensors by name; floating numbers of at most 16 bits may have become float32.
      notes: what was chosen and what was left out.
      arguments: the trainer's command line, where the file keeps it.
    """

    state: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = {}


def read_tensors(path: pathlib.Path, key: str = "") -> Tensors:
    """The tensors of a file, or of the files that an index (`*.index.json`) names.

    Prefixes that wrappers put before all names (`module.`, `_orig_mod.`, `model.`) are cut off.

    Args:
      key: which state dict of a training checkpoint that holds several, such as `state_dict_ema`.

    Raises:
      FormatError: a file cannot be read, or holds something else.
    """
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    if path.name.endswith(INDEX):
        found = _read_sharded(path)
    elif path.suffix == ".safetensors":
        found = Tensors(_read_safetensors(path))
    else:
        found = _read_torch(path, key)
    if key and path.suffix == ".safetensors":
        raise FormatError(f"--key={key}: {path} holds one state dict only. Leave --key out")
    state, notes = _without_wrappers(path, found.state)
    return Tensors(state, (*found.notes, *notes), found.arguments)


INDEX = ".index.json"
# Put before names by torch.compile, FSDP and activation checkpointing, wherever a module was wrapped.
_INNER_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Put before all names: DataParallel, averaged models, Lightning modules and the like.
_OUTER_WRAPPERS = re.compile(r"(?:(?:module|model|clip|clip_model|net)\.)+")


def _without_wrappers(path: pathlib.Path, state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    names = {name: _INNER_WRAPPERS.sub("", name) for name in state}
    prefixes = collections.Counter(m[0] if (m := _OUTER_WRAPPERS.match(name)) else "" for name in names.values())
    prefix, count = prefixes.most_common(1)[0] if prefixes else ("", 0)
    notes = []
    if prefix and 2 * count > len(names):
        outside = sorted(name for name, inner in names.items() if not inner.startswith(prefix))
        if outside:
            more = f" and {len(outside) - 3} more" if len(outside) > 3 else ""
            notes.append(
                f"left out: {', '.join(outside[:3])}{more}, outside the prefix {prefix!r} of all other tensors"
            )
        names = {name: inner.removeprefix(prefix) for name, inner in names.items() if inner.startswith(prefix)}
    if len(set(names.values())) < len(names):
        raise FormatError(f"{path}: two tensors have one name once the wrappers' prefixes are cut off")
    return {inner: state[name] for name, inner in names.items()}, notes


def read_index(index: pathlib.Path) -> dict[str, pathlib.Path]:
    """The file beside an index in which each tensor lies.

    Raises:
      FormatError: it is no such index.
    """
    places = read_config(index).get("weight_map")
    places = places if isinstance(places, dict) and all(map(_is_text, places.values())) else {}
    if not places or any(pathlib.PurePath(file).name != file for file in places.values()):
        raise FormatError(f"{index}: no weight_map from tensors to files beside it. Download it again")
    return {name: index.with_name(file) for name, file in places.items()}


def _read_sharded(index: pathlib.Path) -> Tensors:
    places = read_index(index)
    state: dict[str, np.ndarray] = {}
    for file in sorted(set(places.values())):
        state |= read_tensors(file).state
    missing = [name for name in places if name not in state]
    if missing:
        raise FormatError(f"{index}: {len(missing)} tensors are in no file, such as {missing[0]}. Download it again")
    return Tensors(state)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def write_safetensors(path: pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes tensors as transformers and open_clip expect them.

    Raises:
      FormatError: the package safetensors is not installed.
    """
    save_file = _safetensors().save_file
    arrays = {name: np.array(array, order="C", copy=None) for name, array in state.items()}
    save_file(arrays, str(path), metadata={"format": "pt"})


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise FormatError("safetensors is not installed: pip install 'synthclip_jax[export]'") from error
    return safetensors.numpy


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    import ml_dtypes

    state = {name: read() for name, read in one_by_one(path)}
    narrow = (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
    return {name: array.astype(np.float32) if array.dtype in narrow else array for name, array in state.items()}


def one_by_one(path: pathlib.Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Names of the tensors of a safetensors file, and what reads each: the file can be larger than the memory.

    Raises:
      FormatError: it is none, or a damaged one, or the package safetensors is not installed.
    """
    safe_open = _safetensors().safe_open
    import ml_dtypes  # noqa: F401  comes with jax; numpy then knows bfloat16

    try:
        with safe_open(str(path), framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118  it is no dictionary
                yield name, functools.partial(tensors.get_tensor, name)
    except Exception as error:  # the package raises its own kinds for damaged files
        raise FormatError(f"{path}: not a safetensors file, or a damaged one ({error})") from error


# Where a training checkpoint keeps its state dict, the one that is taken first.
STATE_KEYS = (
    "state_dict",
    "model",
    "model_state_dict",
    "module",
    "state_dict_ema",
    "model_ema",
    "ema",
    "ema_state_dict",
)


def _read_torch(path: pathlib.Path, key: str) -> Tensors:
    try:
        import torch
    except ImportError as error:
        raise FormatError(
            f"{path}: reading a torch file needs torch (pip install torch), or make it safetensors"
        ) from (error)
    loaded = _load(path)
    own = isinstance(loaded, Mapping) and any(isinstance(value, torch.Tensor) for value in loaded.values())
    there = [
        name
        for name, value in (loaded.items() if isinstance(loaded, Mapping) else ())
        if isinstance(value, Mapping) and any(isinstance(tensor, torch.Tensor) for tensor in value.values())
    ]
    if key and key not in there:
        raise FormatError(f"--key={key}: {path} has no such state dict; it has {', '.join(map(str, there)) or 'none'}")
    known = [name for name in STATE_KEYS if name in there]
    notes: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = {}
    if key or (known and not own):
        chosen = key or known[0]
        others = [str(name) for name in there if name != chosen and name in STATE_KEYS]
        if others:
            notes = (f"{chosen} is taken; the file also holds {', '.join(others)}: --key={others[0]} takes that",)
        given = loaded.get("args")
        arguments = vars(given) if isinstance(given, argparse.Namespace) else {}
        loaded = loaded[chosen]
    elif not own:
        raise FormatError(f"{path}: no state dict in it, neither by itself nor under {', '.join(STATE_KEYS)}")
    state = {}
    for name, tensor in loaded.items():
        if isinstance(tensor, torch.Tensor):
            state[str(name)] = _array(path, name, tensor)
    return Tensors(state, notes, arguments)


def _array(path: pathlib.Path, name: Any, tensor: Any) -> np.ndarray:
    import torch

    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        tensor = tensor.float()  # bfloat16 and the 8-bit ones
    try:
        return tensor.detach().numpy()
    except (RuntimeError, TypeError) as error:
        raise FormatError(
            f"{path}: {name} is a {tensor.layout} tensor of {tensor.dtype} on {tensor.device}, which is no plain array"
            f" ({error}). Save the model with plain weights"
        ) from None


def _load(path: pathlib.Path) -> Any:
    """What torch reads of a file without running code."""
    import torch

    scalar = np.float64(0).__reduce__()[0]
    harmless: list[Any] = [  # what trainers keep beside the weights, and what holds no code
        argparse.Namespace,  # their command line
        pathlib.PosixPath,
        np.dtype,
        *{type(np.dtype(kind)) for kind in ("f8", "f4", "f2", "i8", "i4", "u8", "u4", "?")},
        *((scalar, f"{module}.scalar") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
    ]
    try:
        with torch.serialization.safe_globals(harmless):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        text = _ESCAPES.sub("", str(error))
        if "TorchScript" in text:
            raise FormatError(
                f"{path}: a TorchScript archive (OpenAI's download is one), which holds code. Take its weights out:"
                f' python -c \'import torch; torch.save(torch.jit.load("{path}", "cpu").state_dict(), "weights.pt")\''
            ) from error
        if found := _REFUSED.search(text):
            raise FormatError(
                f"{path}: torch does not load it as weights only: it holds {found[1]}, which may run code. Where you"
                " trust its maker, save its state dict alone, as numbers, in an environment of its own"
            ) from error
        reason = " ".join(text.split())[:300]
        raise FormatError(f"{path}: torch does not load it as weights only ({reason})") from error


_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_REFUSED = re.compile(
    r"(?:Unsupported (?:global|class|operand)[^.:]*:? (?:GLOBAL )?|Trying to call reduce for[^\w]*)([\w.]+)"
)
