"""Between two lines of the log the training loop waits for no step that it has just started: the
device always has the next one."""

import dataclasses
import time

import jax
import numpy as np
import pytest
import tiny
from jax._src import array  # every way of an array to the host goes through it

from jaxvl import train as train_command
from jaxvl.training.guard import Watch

STEPS = 7
LOGGED = 4

pytestmark = pytest.mark.usefixtures("programs_kept", "one_device")


@pytest.fixture
def waits(monkeypatch):
    """Steps that were waited for while they were the last that had been started; steps take a
    while here."""
    started = []  # of each step, what it gives
    found = []

    def slowly(number):
        time.sleep(0.03)
        return np.zeros((), np.float32)

    @jax.jit
    def late(tree, number):
        zero = jax.pure_callback(slowly, jax.ShapeDtypeStruct((), np.float32), number)
        return jax.tree.map(lambda a: a + zero.astype(a.dtype), tree)

    def note(self):
        if not self.is_ready() and started and any(self is a for a in started[-1]):
            found.append(len(started))

    def slow(step):
        def run(state, batches):
            state, metrics = step(state, batches)
            given = late((metrics, state.step), float(len(started)))
            started.append(jax.tree.leaves(given))
            return dataclasses.replace(state, step=given[1]), given[0]

        return run

    def setup(*args):
        run = real_setup(*args)
        run.steps = {turn: slow(step) for turn, step in run.steps.items()}
        return run

    real_setup = train_command.setup
    value = array.ArrayImpl._value
    block = array.ArrayImpl.block_until_ready

    def noted_value(self):
        note(self)
        return value.fget(self)

    def noted_block(self):
        note(self)
        return block(self)

    monkeypatch.setattr(train_command, "setup", setup)
    monkeypatch.setattr(array.ArrayImpl, "_value", property(noted_value))
    monkeypatch.setattr(array.ArrayImpl, "block_until_ready", noted_block)
    return found


def run(workdir):
    options = dict(every=LOGGED, tensorboard=False, report=False)
    changes = dict(steps=STEPS, log=options, checkpoint=dict(every=STEPS))
    train_command.train(tiny.experiment(**changes), workdir)


def test_only_steps_that_are_logged_or_saved_are_waited_for(waits, tmp_path):
    run(tmp_path)
    assert set(waits) <= {LOGGED, STEPS}


def test_a_figure_that_is_read_at_once_is_noticed(waits, tmp_path, monkeypatch):
    started = Watch.started

    def reads(self, step, turn, metrics, feeds):
        float(metrics[0]["loss"])
        return started(self, step, turn, metrics, feeds)

    monkeypatch.setattr(Watch, "started", reads)
    run(tmp_path)
    assert set(waits) - {LOGGED, STEPS}
