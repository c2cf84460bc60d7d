"""Files of weights: safetensors whole or in shards, PyTorch's without code, npz; and JSON.

A state dict is read lazily: a tensor is loaded when it is asked for, so that a model is never twice in memory.
"""

from __future__ import annotations

import functools
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401 (makes bfloat16 a dtype that NumPy, and so safetensors, knows)
import numpy as np

from jaxvl.interop.mapping import ConversionError

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
INDEX = "model.safetensors.index.json"


def need(package: str) -> Any:
    """Imports a package of the extra `interop`. Raises ConversionError where it is not installed."""
    try:
        return __import__(package, fromlist=["_"])
    except ImportError as error:
        raise ConversionError(f"{package.partition('.')[0]} is not installed; pip install 'jaxvl[interop]' ({error})") from None


class LazyState(Mapping):
    """Name -> array, each read when it is asked for; all in float32 or the file's own type."""

    def __init__(self, readers: Mapping[str, Callable[[], np.ndarray]]):
        self._readers = readers

    def __getitem__(self, name: str) -> np.ndarray:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Raises ConversionError where the file is not there or not a JSON object."""
    if not path.is_file():
        raise ConversionError(f"{path}: no such file")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConversionError(f"{path}: is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ConversionError(f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_weights(folder: pathlib.Path, names: tuple[str, ...]) -> Mapping[str, np.ndarray]:
    """The state dict of the first of `names` that is in the folder, or that `folder` itself is; else its only file of weights.

    Raises:
      ConversionError: none of them is there; a file that is damaged, or holds code.
    """
    found = [folder] if folder.is_file() else [folder / name for name in names if (folder / name).is_file()]
    others = [] if found or not folder.is_dir() else [p for p in sorted(folder.iterdir()) if p.suffix in SUFFIXES]
    if not found and len(others) != 1:
        raise ConversionError(f"{folder}: no weights (looked for {', '.join(names)}, or one file of {', '.join(SUFFIXES)})")
    path = (found or others)[0]
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return LazyState(_safetensors(path))
    if path.suffix in SUFFIXES:
        return _read_torch(path)
    raise ConversionError(f"{path}: weights are read from {', '.join(SUFFIXES)}")


def _read_shards(path: pathlib.Path) -> LazyState:
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict):
        raise ConversionError(f"{path}: has no weight_map")
    readers: dict[str, Callable[[], np.ndarray]] = {}
    for shard in sorted(set(index.values())):
        if not isinstance(shard, str) or pathlib.PurePath(shard).name != shard:
            raise ConversionError(f"{path}: {shard!r} is not the name of a file beside it")
        part = _safetensors(path.parent / shard)
        lacking = sorted(name for name, where in index.items() if where == shard and name not in part)
        if lacking:
            raise ConversionError(f"{path.parent / shard}: lacks {lacking[0]}, which {path.name} says it has")
        readers |= part
    return LazyState(readers)


def _safetensors(path: pathlib.Path) -> dict[str, Callable[[], np.ndarray]]:
    if not path.is_file():
        raise ConversionError(f"{path}: no such file")
    safetensors = need("safetensors")
    try:
        file = safetensors.safe_open(path, "np")
        return {name: functools.partial(_tensor, path, file, name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except safetensors.SafetensorError as error:
        raise ConversionError(f"{path}: is not a whole safetensors file ({error})") from None


def _tensor(path: pathlib.Path, file: Any, name: str) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except Exception as error:  # numpy lacks some dtypes of the format, which is told in several ways
        raise ConversionError(f"{path}: tensor {name} cannot be read ({error})") from None


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    torch = need("torch")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler meets
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConversionError(f"{path}: is damaged or holds more than tensors, and is not run ({reason})") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    named = isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items())
    if not named or not all(tensor.layout == torch.strided for tensor in state.values()):
        raise ConversionError(f"{path}: must hold a state dict: names and dense tensors")
    # Training on several devices puts `module.` before every name.
    return {name.removeprefix("module."): tensor.float().numpy() for name, tensor in state.items()}


def write_safetensors(path: pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
    need("safetensors.numpy").save_file(dict(state), path, metadata={"format": "pt"})


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Raises ConversionError where the file is damaged, or holds objects (code)."""
    if not path.is_file():
        raise ConversionError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ConversionError(f"{path}: is not an npz file of plain arrays ({error})") from None
