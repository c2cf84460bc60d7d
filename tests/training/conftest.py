"""What the tests of whole runs share."""

import pytest

from jaxvl.config import to_dict
from jaxvl.training import setup

# What a compiled step knows nothing of: of a run, and of the data of a task.
OF_THE_RUN = ("checkpoint", "resume", "log", "evals", "start", "fresh", "text_length", "after")
OF_THE_HOST = ("source", "sampler", "reader", "tables", "error_budget", "error_minimum")
COLUMNS = ("column", "columns")


def _of_the_program(experiment):
    """The part of a config that its step depends on; shapes of batches follow from the fields."""
    config = {key: value for key, value in to_dict(experiment).items() if key not in OF_THE_RUN}
    for task in config["tasks"].values():
        task["data"] = {key: value for key, value in task["data"].items() if key not in OF_THE_HOST}
        for field in task["data"]["fields"].values():
            for key in COLUMNS:
                field.pop(key, None)
    return config


@pytest.fixture(scope="session")
def known_programs():
    """Compiled programs by what they are made from."""
    return {}


@pytest.fixture(scope="module")
def programs_kept(known_programs):
    """A run is given the program of an earlier run whose step is the same, as a restart would
    compile it again."""
    compile_turns = setup.compile_turns

    def once(experiment, tasks, turns, model, abstract, shardings, mesh, teachers):
        key = repr((_of_the_program(experiment), abstract, mesh))
        follow = all(teacher.model is model for teacher in teachers.values())
        if not follow or key not in known_programs:
            known_programs[key] = compile_turns(
                experiment, tasks, turns, model, abstract, shardings, mesh, teachers
            )
        return known_programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "compile_turns", once)
        yield
