"""An object store on this machine for tests: `s3://` as moto plays it, with one bucket."""

import itertools
import os

import fsspec
from moto.server import ThreadedMotoServer

_NUMBERS = itertools.count()
_SERVER = None


def start(monkeypatch) -> str:
    """Points `s3://` of this process and its children to the store; returns a new bucket,
    `s3://bucket-N`."""
    global _SERVER
    if _SERVER is None:  # clients keep the address that they first met: one server a process
        _SERVER = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        _SERVER.start()
    host, port = _SERVER.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"bucket-{os.getpid()}-{next(_NUMBERS)}"
    fsspec.filesystem("s3", use_listings_cache=False).mkdir(bucket)
    return f"s3://{bucket}"
