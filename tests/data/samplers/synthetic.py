"""Sources without data, for the tests of samplers."""

import numpy as np

from jaxvl.data.sources.base import Column, Source
from jaxvl.data.sources.mixture import MixtureSource

INFINITE = 2**62


class Synthetic(Source):
    """As many records as `shards` says; `values` are its cheap columns, by name."""

    def __init__(self, shards, **values):
        self._shards = np.array(shards, np.int64)
        self._values = {name: np.asarray(each) for name, each in values.items()}
        self.name = f"synthetic of {len(self)}"
        self.fingerprint = self.name
        self.columns = {name: Column("class") for name in values}

    def __len__(self):
        return int(self._shards.sum())

    def read(self, i, columns=None):
        return {}

    def column(self, name):
        return self._values.get(name)

    def shards(self):
        return self._shards


def mixed(shards, weights=None, names=None):
    """A mixture whose parts have the shards `shards[i]`."""
    weights = [None] * len(shards) if weights is None else weights
    names = [str(i) for i in range(len(shards))] if names is None else names
    return MixtureSource([Synthetic(each) for each in shards], weights, names)


def read_by_hosts(order, batch, plan):
    """Record numbers of a run whose hosts change: each reads its slice of every batch.

    Args:
      plan: (hosts, batches) of each stage of the run.
    """
    position = 0
    out = []
    for hosts, batches in plan:
        for _ in range(batches):
            rows = np.arange(position, position + batch)
            out.extend(order(mine) for mine in np.split(rows, hosts))
            position += batch
    return np.concatenate(out)
