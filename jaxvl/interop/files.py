"""Files of weights: safetensors, PyTorch's (without code), npz; and JSON.

A state dict is read lazily: a tensor is loaded when it is asked for, so that a model is never twice
in memory.
"""

from __future__ import annotations

import functools
import json
import pathlib
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401 (makes bfloat16 a dtype that NumPy, and so safetensors, knows)
import numpy as np

from jaxvl.aliases import Json
from jaxvl.data import text_files
from jaxvl.interop.mapping import ConversionError, StateDict

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
INDEX = ".index.json"  # of a file's name, where it is split into shards
# Keys under which training programs store the weights: open_clip and Lightning; plain torch; LAVIS;
# DeepSpeed.
NESTS = ("state_dict", "model_state_dict", "model", "module")
# What wraps a model, or a part of it, puts its own name into the names of the tensors:
# torch.compile, data-parallel training, FSDP, activation checkpointing.
WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
Reader = Callable[[], np.ndarray]


def need(package: str) -> types.ModuleType:
    """Imports a package of the extra `interop`. Raises ConversionError where it is not
    installed."""
    try:
        return __import__(package, fromlist=["_"])
    except ImportError as error:
        raise ConversionError(
            f"{package.partition('.')[0]} is not installed; pip install 'jaxvl[interop]' ({error})"
        ) from None


class LazyState(Mapping):
    """Name -> array, each read when it is asked for; all in float32 or the file's own type."""

    def __init__(self, readers: Mapping[str, Reader]):
        self._readers = readers

    def __getitem__(self, name: str) -> np.ndarray:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def read_json(path: pathlib.Path) -> dict[str, Json]:
    """Raises ConversionError where the file is not there or not a JSON object."""
    if not path.is_file():
        raise ConversionError(f"{path}: no such file")
    try:
        value = json.loads(text_files.decode(path.read_bytes()))
    except ValueError as error:
        raise ConversionError(f"{path}: is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ConversionError(f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value


def write_json(path: pathlib.Path, value: Mapping[str, Json]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_weights(folder: pathlib.Path, names: tuple[str, ...]) -> StateDict:
    """The state dict of the first of `names` that is in the folder, whole or in shards; else of its
    only file of weights.

    `folder` may also be the file itself. Names of wrappers are removed, see `unwrapped`.

    Raises:
      ConversionError: none of them is there; a file that is damaged, or holds code.
    """
    path = _find(folder, names)
    return unwrapped(
        LazyState(_read_shards(path) if path.name.endswith(INDEX) else _read_file(path))
    )


def _find(folder: pathlib.Path, names: tuple[str, ...]) -> pathlib.Path:
    if folder.is_file():
        return folder
    for name in names:
        for place in (folder / name, folder / (name + INDEX)):
            if place.is_file():
                return place
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    others = [path for path in files if path.suffix in SUFFIXES]
    if len(others) != 1:
        raise ConversionError(
            f"{folder}: no weights (looked for {', '.join(names)}, or one file of "
            f"{', '.join(SUFFIXES)})"
        )
    return others[0]


def unwrapped(state: StateDict) -> StateDict:
    """The state dict with the names of the bare model.

    `WRAPPERS` are removed from every name, and a `model.` that all names begin with, as Lightning's
    modules have it.

    Raises:
      ConversionError: two tensors have the same name then.
    """
    names = {
        ".".join(part for part in name.split(".") if part not in WRAPPERS): name for name in state
    }
    if len(names) < len(state):
        twice = min(set(state) - set(names.values()))
        raise ConversionError(
            f"tensor {twice}: is there a second time under another wrapper's name; must be "
            f"there once"
        )
    while names and all(name.startswith("model.") for name in names):
        names = {name.removeprefix("model."): theirs for name, theirs in names.items()}
    return LazyState(
        {name: functools.partial(state.__getitem__, theirs) for name, theirs in names.items()}
    )


def _read_shards(path: pathlib.Path) -> dict[str, Reader]:
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict):
        raise ConversionError(f"{path}: has no weight_map")
    names = list(index.values())
    for shard in names:
        if not isinstance(shard, str) or pathlib.PurePath(shard).name != shard:
            raise ConversionError(f"{path}: {shard!r} is not the name of a file beside it")
    readers: dict[str, Reader] = {}
    for shard in sorted(set(names)):
        part = _read_file(path.parent / shard)
        lacking = sorted(
            name for name, where in index.items() if where == shard and name not in part
        )
        if lacking:
            raise ConversionError(
                f"{path.parent / shard}: lacks {lacking[0]}, which {path.name} says it has"
            )
        readers |= part
    return readers


def _read_file(path: pathlib.Path) -> dict[str, Reader]:
    if not path.is_file():
        raise ConversionError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix in SUFFIXES:
        return _torch(path)
    raise ConversionError(f"{path}: weights are read from {', '.join(SUFFIXES)}")


def _safetensors(path: pathlib.Path) -> dict[str, Reader]:
    safetensors = need("safetensors")
    try:
        file = safetensors.safe_open(path, "np")
        return {
            name: functools.partial(_tensor, path, name, file.get_tensor)
            for name in file.keys()  # noqa: SIM118 (not a mapping)
        }
    except safetensors.SafetensorError as error:
        raise ConversionError(f"{path}: is not a whole safetensors file ({error})") from None


def _tensor(path: pathlib.Path, name: str, read: Callable[[str], np.ndarray]) -> np.ndarray:
    try:
        return read(name)
    except Exception as error:  # types that NumPy lacks, quantised ones: told in several ways
        raise ConversionError(f"{path}: tensor {name} cannot be read ({error})") from None


def _torch(path: pathlib.Path) -> dict[str, Reader]:
    torch = need("torch")
    try:
        # Files from before torch 1.6 are no zip archives, and cannot be mapped into memory.
        state = torch.load(
            str(path), map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # torch raises whatever its unpickler meets
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConversionError(
            f"{path}: is damaged or holds more than tensors, and is not run ({reason})"
        ) from None
    state = _unnested(state)
    named = isinstance(state, dict) and all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
    )
    if not named or not all(tensor.layout == torch.strided for tensor in state.values()):
        raise ConversionError(f"{path}: must hold a state dict: names and dense tensors")

    def read(name: str) -> np.ndarray:
        # A copy: what is mapped must not change with the file.
        return state[name].to(torch.float32, copy=True).numpy()

    return {name: functools.partial(_tensor, path, name, read) for name in state}


def _unnested(state: Any) -> Any:
    """The weights of a checkpoint, which may hold an optimiser's state and more beside them."""
    while isinstance(state, dict):
        nest = next((state[key] for key in NESTS if isinstance(state.get(key), dict)), None)
        if nest is None:
            return state
        state = nest
    return state


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
