import numpy as np
import pytest
import scipy.stats

from jaxvl.data.budget import CHANCE, exceeded

BUDGET = 0.01
MINIMUM = 10


@pytest.mark.parametrize(
    "seen, budget", [(100, 0.01), (1000, 0.01), (10**6, 0.01), (5000, 0.2), (50, 0.0), (50, 1.0)]
)
def test_the_limit_is_that_of_the_binomial_test(seen, budget):
    known = [exceeded(bad, seen, budget, 1) for bad in range(min(seen, 20_000) + 1)]
    first = known.index(True) if True in known else None
    if budget == 1.0:
        assert first is None
        return
    assert first is not None and all(known[first:])
    chance = lambda bad: scipy.stats.binomtest(bad, seen, budget, alternative="greater").pvalue
    assert chance(first) < CHANCE
    assert first == 1 or chance(first - 1) >= CHANCE


def test_fewer_than_the_minimum_end_nothing():
    assert not exceeded(9, 9, BUDGET, 10) and exceeded(10, 10, BUDGET, 10)


def counts(share, hosts, rows, steps, runs, seed=0):
    """Bad records so far of all hosts together: int [runs, steps], and of one host; each host reads
    `rows` a step."""
    generator = np.random.default_rng(seed)
    return generator.binomial(hosts * rows, share, (runs, steps)).cumsum(1)


def ends(bad, seen):
    """Runs in which the budget was exceeded at some step."""
    return np.array(
        [any(exceeded(int(b), int(s), BUDGET, MINIMUM) for b, s in zip(run, seen)) for run in bad]
    )


@pytest.mark.parametrize("hosts", [1, 1024])
def test_a_run_within_its_budget_goes_on(hosts):
    """0.3 % bad where 1 % may be, asked after each of 500 steps of 64 rows a host. No run of 100
    ends, nor at a share of 1 % itself."""
    seen = hosts * 64 * np.arange(1, 501)
    for share in (0.003, 0.01):
        assert not ends(counts(share, hosts, 64, 500, 100), seen).any()


def test_the_old_rule_on_each_host_would_have_ended_most_runs():
    """Of 1,024 hosts one soon has ten bad ones among its first records: what made the sum and the
    test necessary."""
    generator = np.random.default_rng(0)
    ended = []
    for _ in range(20):
        bad = generator.binomial(16, 0.003, (1024, 200)).cumsum(1)
        seen = 16 * np.arange(1, 201)
        ended.append(((bad >= MINIMUM) & (bad > BUDGET * seen)).any())
    assert np.mean(ended) > 0.5


@pytest.mark.parametrize("hosts, steps", [(1, 60), (1024, 1)])
def test_a_run_above_its_budget_ends_soon(hosts, steps):
    """3 % bad: after at most so many steps of 64 rows a host."""
    seen = hosts * 64 * np.arange(1, steps + 1)
    assert ends(counts(0.03, hosts, 64, steps, 100), seen).all()
