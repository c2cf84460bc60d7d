"""A run that goes on with fewer devices than its config was written for.

    c.resume.devices = 256      the config's batch, mesh and microbatches are for so many

On 128 of them every task runs in twice as many microbatches and `mesh.data` is half as large. So a
device holds what it held before, and the global batch, the order of the records and the schedule
stay what they are. Losses are those of all devices to rounding, where a row's result does not
depend on its chunk: statistics of `norm="batch"` are a chunk's, and dropout draws other numbers.
"""

from __future__ import annotations

import dataclasses

from jaxvl.config import check
from jaxvl.sharding.mesh import AXES
from jaxvl.training.experiment import Experiment


def fitted(experiment: Experiment, devices: int) -> Experiment:
    """The experiment for so many devices; itself where `resume.devices` asks for nothing.

    Raises:
      ConfigError: the devices are no part of `resume.devices`, or a batch cannot be divided so far.
    """
    planned = experiment.resume.devices
    if planned is None or planned == devices:
        return experiment
    parts = [str(n) for n in range(1, planned + 1) if planned % n == 0]
    check(
        planned % devices == 0,
        "resume.devices",
        f"{planned!r} is not a multiple of the {devices} devices that are here; the run can go on "
        f"with {', '.join(parts)}",
    )
    times = planned // devices
    tasks = {
        name: dataclasses.replace(task, microbatches=task.microbatches * times)
        for name, task in experiment.tasks.items()
    }
    mesh = experiment.mesh
    if all(getattr(mesh, axis) != -1 for axis in AXES):
        mesh = dataclasses.replace(mesh, data=-1)
    return dataclasses.replace(experiment, tasks=tasks, mesh=mesh)
