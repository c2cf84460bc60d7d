"""Faults at random: all of them on every system, and what the harness takes for a damage."""

import json
import os
import shutil

import chaos
import pytest
from chaos_systems import STEPS, SYSTEMS, B


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_run_through_all_faults_ends_as_if_there_were_none(tmp_path, system):
    result = chaos.disturb(system, 0, tmp_path, chaos.FAULTS)
    chaos.show([result])
    missed = {fault for fault, _ in chaos.unplayed([result])}
    assert len(missed - lacking()) <= 1, result.done


def lacking():
    """Faults for which this machine lacks something."""
    return {
        *(() if os.geteuid() == 0 else ("disk_full",)),
        *(() if shutil.which("cc") else ("clock_jump",)),
    }


PLAYED = dict.fromkeys(chaos.FAULTS, "SIGKILL")
LACKING = {
    **PLAYED,
    "disk_full": "not played: no tmpfs could be mounted, which needs root",
    "other_devices": "not played: the run had ended, 4 for 2",
}


@pytest.mark.parametrize(
    "options, done, told, status",
    [
        ([], PLAYED, [], 0),
        ([], LACKING, ["disk_full", "other_devices"], 0),
        (["--faults", "killed", "disk_full"], LACKING, ["disk_full", "other_devices"], 1),
        (["--faults", "killed"], LACKING, ["other_devices"], 0),
    ],
)
def test_what_was_not_played_is_told(monkeypatch, capsys, tmp_path, options, done, told, status):
    """And fails where it was asked for."""

    def disturb(system, seed, root, faults):
        kept = {fault: what for fault, what in done.items() if fault in {*faults, "other_devices"}}
        return chaos.Result(system, seed, kept, 1, 1.0)

    monkeypatch.setattr(chaos, "disturb", disturb)
    arguments = [f"--workdir={tmp_path}", "--systems", "align", *options]
    assert chaos.main(arguments) == status
    lines = capsys.readouterr().out.splitlines()
    wanted = [f"align, seed 0: {fault}: {done[fault]}" for fault in told]
    assert [line for line in lines if line.startswith("align, seed 0: ")] == wanted
    assert ("asked for by --faults, and not played: disk_full" in lines) == (status != 0)


def test_faults_say_why_they_cannot_be_played(monkeypatch, tmp_path):
    run = run_with(tmp_path, 1)
    assert chaos.disk_full(run, None).startswith("not played: no tmpfs could be mounted")
    monkeypatch.setattr(chaos.shutil, "which", lambda name: None)
    assert chaos.clock_jump(run, None) == "not played: there is no C compiler (cc)"


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
