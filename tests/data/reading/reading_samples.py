"""Sources that worker processes read too, so that their classes lie in a file that both import."""

import io
import os
import tarfile
import time

import pyarrow as pa
import pyarrow.parquet
from data_samples import COLUMNS, FakeSource, encoded, noise

from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Column
from jaxvl.data.sources.demo.shapes import Shapes
from jaxvl.data.sources.mixture import MixtureConfig, PartConfig
from jaxvl.data.sources.parquet import Parquet
from jaxvl.data.sources.webdataset import WebDataset

BAD_PICTURES = {3: b"", 8: encoded(noise(8, 20, 20, 3))[:60], 9: b"<html>not found</html>"}


def write_mixture(folder):
    """Tars with bad pictures, Parquet and a recipe's records, as one source's config."""
    with tarfile.open(folder / "0.tar", "w") as tar:
        for i in range(30):
            picture = BAD_PICTURES.get(
                i, encoded(noise(i, 24, 20 + i, 3), "JPEG" if i % 2 else "PNG")
            )
            for ending, content in (("jpg", picture), ("txt", f"tar {i}".encode())):
                member = tarfile.TarInfo(f"{i:04d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    pictures = [encoded(noise(100 + i, 30, 30, 4)) for i in range(20)]
    table = pa.table({"image": pictures, "text": [f"parquet {i}" for i in range(20)]})
    pyarrow.parquet.write_table(table, folder / "0.parquet", row_group_size=7)
    parts = (
        WebDataset(str(folder / "0.tar")),
        Parquet(str(folder / "0.parquet")),
        Shapes(size=24, variants=1, split="test_b_new"),
    )
    return MixtureConfig(tuple(PartConfig(part) for part in parts))


class Odd(FakeSource):
    """Numbers that say where they were read."""

    def __init__(self, n):
        super().__init__(n, columns={**COLUMNS, "pid": Column("int"), "devices": Column("int")})

    def read(self, i, columns=None):
        from jax._src import xla_bridge

        found = dict(
            super().read(i, None),
            pid=os.getpid(),
            devices=int(xla_bridge.backends_are_initialized()),
        )
        return (
            found if columns is None else {name: found[name] for name in columns if name in found}
        )


class Stubborn(FakeSource):
    """Cannot be opened by another process."""

    def __getstate__(self):
        return {"n": len(self.records)}

    def __setstate__(self, state):
        raise DataError("the disk is not mounted there")


class Slow(FakeSource):
    """Reading takes as long as the test."""

    def read(self, i, columns=None):
        if i >= 8:
            time.sleep(60)
        return super().read(i, columns)
