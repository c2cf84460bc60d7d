"""Which devices take part in a collective together, and along which axes of the mesh.

A device here is its number in the program: that of its place in `mesh.devices`, row by row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvl.hlo.program import Instruction

_SLICE = 100_000  # devices that a slice's number stands before


def groups_of(raw: Instruction, devices: int) -> np.ndarray:
    """Groups of a collective, int64 [G, N]; each of the N devices of a row sends to the others.

    XLA writes them as lists, as one list of all devices that is reshaped and transposed
    (`[16,16]<=[256]`), or as axes of a mesh. Of a collective-permute: its pairs, [G, 2], without
    those that stay on a device.
    """
    if len(raw.source_target_pairs):
        pairs = [(p.source, p.target) for p in raw.source_target_pairs if p.source != p.target]
        return np.array(pairs, np.int64).reshape(-1, 2)
    if raw.HasField("mesh_groups"):
        return _along_axes(raw.mesh_groups)
    if raw.HasField("iota_groups"):
        return _reshaped(raw.iota_groups)
    listed = raw.replica_groups
    if raw.HasField("device_list"):
        if raw.device_list.HasField("iota"):
            return _reshaped(raw.device_list.iota)
        listed = raw.device_list.groups
    if not len(listed):
        return np.arange(devices)[None]
    return np.array([list(group.ids) for group in listed], np.int64)


def slices_of(target: str) -> np.ndarray:
    """Slices between which a send goes, int64 [G, N], of the target that it names: `{1,2}x{0:15}`
    are all devices of slices 1 and 2; `{{100001->200000},…}` are pairs, device 1 of slice 1 to
    device 0 of slice 2."""
    pairs = re.findall(r"(\d+)->(\d+)", target)
    if pairs:
        numbers = {tuple(int(device) // _SLICE for device in pair) for pair in pairs}
        return np.array(sorted(numbers), np.int64)
    found: list[int] = []
    for part in target.partition("}")[0].lstrip("{").split(","):
        first, _, last = part.partition(":")
        found += range(int(first), int(last or first) + 1)
    return np.array([found], np.int64)


def _reshaped(iota: Any) -> np.ndarray:
    devices = np.arange(math.prod(iota.reshape)).reshape(list(iota.reshape))
    if len(iota.transpose):
        devices = devices.transpose(list(iota.transpose))
    return devices.reshape(iota.groups, iota.size)


def _along_axes(groups: Any) -> np.ndarray:
    sizes = [axis.size for axis in groups.mesh.axes]
    if len(groups.mesh.ids):
        devices = np.array(list(groups.mesh.ids), np.int64)
    elif groups.mesh.HasField("iota"):
        iota = groups.mesh.iota
        devices = np.arange(math.prod(iota.reshape)).reshape(list(iota.reshape))
        devices = devices.transpose(list(iota.transpose) or range(devices.ndim))
    else:
        devices = np.arange(math.prod(sizes))
    # A part of an axis is an axis of its own once its axis is split in three.
    split: list[int] = []
    chosen: list[int] = []
    parts = {a.index: a.part for a in groups.axes if a.HasField("part")}
    whole = {a.index for a in groups.axes if not a.HasField("part")}
    for i, size in enumerate(sizes):
        if i in parts:
            part = parts[i]
            chosen.append(len(split) + 1)
            split += [part.before, part.size, size // part.before // part.size]
        else:
            if i in whole:
                chosen.append(len(split))
            split.append(size)
    devices = np.moveaxis(devices.reshape(split), chosen, range(-len(chosen), 0))
    return devices.reshape(-1, math.prod(split[i] for i in chosen))


def axes_of(groups: np.ndarray, mesh: Mapping[str, int]) -> str:
    """Axes of the mesh along which devices of one group differ, `data` or `data x fsdp`; with their
    number where the groups do not span these axes: `data (4 of 16)`. `mesh`: axis -> devices."""
    if not groups.size:
        return "none"
    coordinates = np.stack(np.unravel_index(groups, tuple(mesh.values())), -1)
    varying = (coordinates != coordinates[:, :1]).any((0, 1))
    names = [name for name, varies in zip(mesh, varying) if varies]
    spanned = math.prod(mesh[name] for name in names)
    label = " x ".join(names) or "none"
    return label if groups.shape[1] in (spanned, 1) else f"{label} ({groups.shape[1]} of {spanned})"
