"""Which record is read where one is bad: `Order.after`."""

import numpy as np
import pytest
from synthetic import Synthetic, mixed

from jaxvl.data.samplers.few_shot import FewShot
from jaxvl.data.samplers.in_order import InOrder
from jaxvl.data.samplers.mixture import Mixture
from jaxvl.data.samplers.per_cluster import PerCluster
from jaxvl.data.samplers.replay import Replay
from jaxvl.data.samplers.shuffled import Shuffled
from jaxvl.data.samplers.with_negatives import WithNegatives

CLASSES = np.random.default_rng(0).integers(-1, 5, 60)
TABLE = np.arange(60)[:, None]
SOURCE = Synthetic([25, 35], label=CLASSES, table=TABLE)
PARTS = mixed([[7], [4, 6], [3]], weights=[1, 2, 0])


def circle(order, record):
    """The records from one on, until one comes again."""
    found = [record]
    while (following := order.after(found[-1])) not in found:
        found.append(following)
    assert following == record
    return sorted(found)


@pytest.mark.parametrize(
    "sampler", [InOrder(), Shuffled(), Shuffled(window=1), WithNegatives("table")]
)
def test_of_one_stream_all_records(sampler):
    assert circle(sampler.order(SOURCE, 0), 59) == list(range(60))


@pytest.mark.parametrize(
    "sampler",
    [
        Mixture(),
        Mixture(resampled=True),
        Mixture(homogeneous=True, batch=4),
        Replay(("0",), 0.5),
        Replay(("0",), 0.5, buffer=3),
    ],
)
def test_of_a_mixture_those_of_the_part(sampler):
    order = sampler.order(PARTS, 0)
    for start, end in ((0, 7), (7, 17), (17, 20)):
        for record in (start, end - 1):
            assert circle(order, record) == list(range(start, end))


def test_of_clusters_those_of_the_cluster():
    order = PerCluster("label", batch=4).order(SOURCE, 0)
    for record in np.flatnonzero(CLASSES >= 0).tolist():
        assert circle(order, record) == np.flatnonzero(CLASSES[record] == CLASSES).tolist()


def test_of_a_few_those_that_were_chosen():
    order = FewShot(3, "label").order(SOURCE, 0)
    assert circle(order, int(order.chosen[-1])) == order.chosen.tolist()
    assert len(order.chosen) == 15
