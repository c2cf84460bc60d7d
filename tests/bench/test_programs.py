"""Costs of the compiled steps and what counts as a change."""

import jax
import jax.numpy as jnp
import pytest

from jaxvl.bench import programs

FIGURES = dict(flop=1000.0, bytes_accessed=500.0, temporary_bytes=0, instructions=100)


def test_the_figures_are_those_of_the_program():
    """A product of [6, 10] and [10, 4] is 480 FLOP; its arguments are 400 bytes."""
    with programs.recorded() as found:
        jax.jit(jnp.dot).lower(jnp.ones((6, 10)), jnp.ones((10, 4))).compile()
    (figures,) = map(programs.figures_of, found)
    assert figures["flop"] == 480
    assert figures["argument_bytes"] == 4 * (60 + 40)
    assert figures["result_bytes"] == 4 * 24
    assert 3 <= figures["instructions"] <= 10
    assert figures["bytes_accessed"] >= 4 * (60 + 40 + 24)


@pytest.mark.parametrize(
    "now, changed",
    [
        ([FIGURES], []),
        ([{**FIGURES, "flop": 1009.0}], []),
        ([{**FIGURES, "flop": 1011.0}], [("x, program 1", "flop", 1000.0, 1011.0)]),
        ([{**FIGURES, "instructions": 98}], [("x, program 1", "instructions", 100, 98)]),
        ([{**FIGURES, "temporary_bytes": 8}], [("x, program 1", "temporary_bytes", 0, 8)]),
        ([FIGURES, FIGURES], [("x", "programs", 1, 2)]),
    ],
)
def test_changes_beyond_one_per_cent_are_named(now, changed):
    before = {"x": [FIGURES], "not measured now": [FIGURES]}
    assert programs.changes_of(before, {"x": now}) == changed


@pytest.mark.parametrize("name", programs.CONFIGS)
def test_the_configs_can_be_made_small(name):
    for mesh in programs.MESHES.values():
        experiment = programs.experiment_of(name, mesh)
        for task in experiment.tasks.values():
            assert task.data.batch == programs.BATCH
            assert task.data.source.registered_name == "shapes"
        assert not experiment.evals
