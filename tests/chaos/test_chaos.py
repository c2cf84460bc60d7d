"""Faults at random: all of them on every system, and what the harness takes for a damage."""

import json

import chaos
import pytest
from chaos_systems import STEPS, SYSTEMS, B


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_run_through_all_faults_ends_as_if_there_were_none(tmp_path, system):
    result = chaos.disturb(system, 0, tmp_path, chaos.FAULTS)
    chaos.show([result])
    played = [name for name, what in result.done.items() if what != chaos.UNPLAYED]
    assert len(played) >= len(chaos.FAULTS) - 1, result.done


def write(folder, steps, shift=0, cut=None):
    """A log of these steps; records are numbered on from step to step."""
    with open(folder / "metrics.jsonl", "a") as file:
        for step in steps:
            ids = {f"ids/row{i}": (step * B + i + shift) % 576 for i in range(B)}
            line = {"step": step, "kind": "train", "name": "pairs", "loss": 1.0 / step, **ids}
            file.write(json.dumps(line)[:cut] + "\n")


def run_with(folder, lives):
    run = chaos.Run("align", folder, folder)
    run.lives = lives
    return run


def test_a_log_that_was_resumed_is_whole(tmp_path):
    write(tmp_path, range(1, 8))
    write(tmp_path, [8], cut=30)
    write(tmp_path, range(5, STEPS + 1))
    found = chaos.learnt(run_with(tmp_path, 2), tmp_path)
    assert len(found) == STEPS
    assert chaos.check_epochs(found) == STEPS * B


@pytest.mark.parametrize(
    "parts, lives, said",
    [
        ([(range(1, 8), 0), (range(9, STEPS + 1), 0)], 2, "a hole between the steps 7 and 9"),
        ([(range(1, 8), 0), (range(5, STEPS + 1), 1)], 2, "step 5 has learnt other records"),
        ([(range(1, 8), 0), (range(5, STEPS + 1), 0)], 1, "went back 1 times in 1 lives"),
        ([(range(1, STEPS), 0)], 1, "1, 2, 3"),
    ],
    ids=["a hole", "other records", "a double", "the end"],
)
def test_a_log_with_a_fault_is_not(tmp_path, parts, lives, said):
    for steps, shift in parts:
        write(tmp_path, steps, shift)
    with pytest.raises(AssertionError, match=said):
        chaos.learnt(run_with(tmp_path, lives), tmp_path)


def test_a_record_twice_in_an_epoch_is_found(tmp_path):
    write(tmp_path, range(1, 6))
    write(tmp_path, [6], shift=-1)
    write(tmp_path, range(7, STEPS + 1))
    with pytest.raises(AssertionError, match="a record twice in an epoch"):
        chaos.check_epochs(chaos.learnt(run_with(tmp_path, 1), tmp_path))
