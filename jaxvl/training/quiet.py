"""What libraries warn of and nobody needs to hear."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from absl import logging


@contextlib.contextmanager
def quiet(wanted: bool = True) -> Iterator[None]:
    """Within it, absl's warnings are not shown; its errors are."""
    before = logging.get_verbosity()
    if wanted:
        logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
