"""How Orbax writes and reads the parts of a checkpoint: its own handlers, except that what cannot
be read is told by all of several processes at the same place.

After a restore Orbax waits for all processes. One whose part is damaged would raise before that,
and the others would wait for it, or take what it says next for something else. So these give an
error back instead of raising it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import orbax.checkpoint as ocp

from jaxvl.aliases import Json, Tree
from jaxvl.training import checksums

_AT_ONCE = 96  # GB, Orbax's default for a state


@dataclasses.dataclass(frozen=True)
class Unread:
    """Stands for what this process could not read, and says why."""

    error: Exception


class StateHandler(ocp.PyTreeCheckpointHandler):
    """A state's arrays, with checksums."""

    def __init__(self):
        checksums.teach_orbax()
        super().__init__(
            use_zarr3=True, save_concurrent_gb=_AT_ONCE, restore_concurrent_gb=_AT_ONCE
        )

    @classmethod
    def typestr(cls) -> str:
        return ocp.PyTreeCheckpointHandler.typestr()

    def restore(self, *args: Any, **options: Any) -> Tree | Unread:
        try:
            return super().restore(*args, **options)
        except Exception as error:
            return Unread(error)


class FrameHandler(ocp.JsonCheckpointHandler):
    """A frame, with its digest."""

    @classmethod
    def typestr(cls) -> str:
        return ocp.JsonCheckpointHandler.typestr()

    def restore(self, *args: Any, **options: Any) -> dict[str, Json] | Unread:
        try:
            return checksums.verified(super().restore(*args, **options))
        except Exception as error:
            return Unread(error)


def registry() -> ocp.handlers.CheckpointHandlerRegistry:
    """Which handler has which part of a checkpoint: `state` and `frame`."""
    found = ocp.handlers.DefaultCheckpointHandlerRegistry()
    state = StateHandler()
    frame = FrameHandler()
    found.add("state", ocp.args.PyTreeSave, state)
    found.add("state", ocp.args.PyTreeRestore, state)
    found.add("frame", ocp.args.JsonSave, frame)
    found.add("frame", ocp.args.JsonRestore, frame)
    return found
