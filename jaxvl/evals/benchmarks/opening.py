"""Opening a benchmark in all processes of a command."""

from __future__ import annotations

import zlib

from jaxvl.data.records import DataError
from jaxvl.evals.benchmarks.base import Benchmark, Found
from jaxvl.sharding import hosts


def agreed_open(found: Found) -> tuple[Benchmark | None, str]:
    """Opens a set in every process; where one of them cannot, or finds other data, none of them
    goes on."""
    opened = None
    why = ""
    print_of_data = 0
    try:
        opened = found.open()
        print_of_data = zlib.crc32(opened.source.fingerprint.encode())
        if not len(opened.source):
            opened = None
            why = f"{found.folder}: holds no picture"
    except DataError as error:
        opened = None
        why = str(error)
    except Exception as error:  # noqa: BLE001 (a damaged set must not end the measurement of the others)
        opened = None
        why = f"{found.folder}: cannot be read as {found.layout} ({type(error).__name__}: {error})"
    gathered = hosts.gather([int(opened is not None), print_of_data])
    if not gathered[:, 0].all():
        return None, why or "another process cannot open it"
    if len(set(gathered[:, 1].tolist())) > 1:
        return None, "processes find different data"
    return opened, ""
