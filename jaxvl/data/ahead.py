"""A thread that makes items ahead of whoever needs them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


class Ahead(Generic[Item, Made]):
    """Runs an iterator in a thread, two items ahead; what it raises is raised by `get`."""

    def __init__(self, items: Iterator[Item], then: Callable[[Item], Made]):
        self._items = items
        self._then = then
        self._ready: queue.Queue[tuple[Made | None, BaseException | None]] = queue.Queue(2)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jaxvl-feed", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                item = self._then(next(self._items)), None
            except BaseException as error:
                item = None, error
            while not self._closed.is_set():
                try:
                    self._ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if item[1] is not None:
                return

    def get(self) -> Made:
        if self._closed.is_set():
            raise ValueError("the feed is closed")
        item, error = self._ready.get()
        if error is not None:
            self._ready.put((None, error))  # whoever asks again is told again
            raise error
        return item

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=10)
        closer = getattr(self._items, "close", None)
        if closer:
            closer()
