"""What the tests of whole runs share."""

import dataclasses

import pytest

from jaxvl.training import setup
from jaxvl.training.checkpoint import CheckpointConfig
from jaxvl.training.experiment import LogConfig, ResumeConfig


@pytest.fixture(scope="session")
def known_programs():
    """Compiled programs by what they are made from."""
    return {}


@pytest.fixture(scope="module")
def programs_kept(known_programs):
    """A run is given the program of an earlier run whose step is the same, as a restart would compile it again."""
    compile_turns = setup.compile_turns

    def once(experiment, tasks, turns, model, abstract, shardings, mesh, judges):
        unseen = dict(checkpoint=CheckpointConfig(), resume=ResumeConfig(), log=LogConfig(), evals={}, init_from=None, text_length=None)
        key = repr((dataclasses.replace(experiment, **unseen), abstract, mesh))
        if judges or key not in known_programs:
            known_programs[key] = compile_turns(experiment, tasks, turns, model, abstract, shardings, mesh, judges)
        return known_programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "compile_turns", once)
        yield
