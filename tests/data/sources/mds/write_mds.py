"""Wrote the folders beside it with mosaicml-streaming 0.13, in an environment of its own: `python
write_mds.py`.

`plain` and `zstd` hold the records of `twelve_records.py`, `all` every encoding.
"""

import ast
import io
import pathlib
import sys

import numpy as np
from PIL import Image
from streaming import MDSWriter

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))


def twelve():
    """`TEXTS` and `make_png`, without the libraries that the rest of the module imports."""
    tree = ast.parse((HERE.parent / "twelve_records.py").read_text(encoding="utf-8"))
    wanted = [
        node
        for node in tree.body
        if getattr(node, "name", "") == "make_png" or "TEXTS" in ast.dump(node)[:80]
    ]
    scope = {}
    exec("import struct, zlib", scope)  # noqa: S102
    exec(compile(ast.Module(wanted, []), "twelve_records.py", "exec"), scope)  # noqa: S102
    return scope["TEXTS"], scope["make_png"]


TEXTS, make_png = twelve()
for name, compression in (("plain", None), ("zstd", "zstd:7")):
    columns = {"image": "bytes", "caption": "str", "label": "int"}
    with MDSWriter(
        out=str(HERE / name),
        columns=columns,
        compression=compression,
        size_limit=700,
        progress_bar=False,
    ) as writer:
        for i, text in enumerate(TEXTS):
            writer.write({"image": make_png(20 * i), "caption": text, "label": i // 4})

ALL = {
    "photo": "jpeg",
    "drawing": "png",
    "plain": "pil",
    "clip": "list[png]",
    "caption": "str",
    "captions": "json",
    "label": "int",
    "small": "uint8",
    "score": "float32",
    "exact": "str_float",
    "big": "str_int",
    "fixed": "ndarray:float32:3",
    "shaped": "ndarray:int16",
    "free": "ndarray",
    "code": "bytes",
    "thing": "pkl",
}
with MDSWriter(out=str(HERE / "all"), columns=ALL, progress_bar=False, hashes=["sha1"]) as writer:
    for i in range(3):
        picture = Image.open(io.BytesIO(make_png(20 * i)))
        picture.load()
        writer.write(
            {
                "photo": picture,
                "drawing": picture,
                "plain": picture,
                "clip": [picture] * (i + 1),
                "caption": f"text {i}",
                "captions": [f"a {i}", "ü"],
                "label": -i,
                "small": 250 + i,
                "score": np.float32(i / 3),
                "exact": i / 3,
                "big": 10**20 + i,
                "fixed": np.arange(3, dtype=np.float32) + i,
                "shaped": np.full((2, i + 1), i, np.int16),
                "free": np.arange(300 * (i + 1), dtype=np.float64).reshape(-1, 2),
                "code": bytes([i]) * 5,
                "thing": {1, 2, i},
            }
        )
