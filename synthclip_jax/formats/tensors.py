"""Files of tensors: safetensors, and torch's own (read with `weights_only=True`)."""

import argparse
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from synthclip_jax.formats import FormatError


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a file by name, as arrays; bfloat16 becomes float32.

    Of a training checkpoint its `state_dict` is taken; the prefix `module.` of a model trained on several GPUs is
    cut off.

    Raises:
      FormatError: the file cannot be read, or holds something else.
    """
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    prefix = "module."
    if state and all(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): array for name, array in state.items()}
    return state


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
    module = _safetensors()
    import ml_dtypes  # comes with jax; numpy then knows bfloat16

    try:
        state = module.load_file(str(path))
    except Exception as error:  # the package raises its own kinds for damaged files
        raise FormatError(f"{path}: not a safetensors file, or a damaged one ({error})") from error
    return {
        name: array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array for name, array in state.items()
    }


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise FormatError(
            f"{path}: reading a torch file needs torch (pip install torch), or make it safetensors"
        ) from (error)
    try:
        # Trainers of SLIP's family keep their command line beside the weights: a Namespace, which does nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        if "TorchScript" in str(error):
            raise FormatError(
                f"{path}: a TorchScript archive (OpenAI's download is one), which holds code. Take its weights out:"
                f' python -c \'import torch; torch.save(torch.jit.load("{path}", "cpu").state_dict(), "weights.pt")\''
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise FormatError(f"{path}: torch does not load it as weights only ({reason})") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not any(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise FormatError(f"{path}: no state dict in it, neither by itself nor under 'state_dict'")
    tensors = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    return {
        name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
        for name, tensor in tensors.items()
    }
