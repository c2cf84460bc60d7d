"""Faults at random, again and again, in runs of every system:

    python tests/chaos/chaos.py                                # one seed: a dozen lives of each system
    python tests/chaos/chaos.py --seeds 0 1 2 --systems coca staged

Each system is trained once without a disturbance, and once through the faults of `FAULTS`, in an
order that the seed draws. Then both must have the same last checkpoint to the last bit, steps that
learnt the same records, each once in an epoch, and a log without a hole. A third run goes on with
other numbers of devices, whose sums have another order: it must agree to `TOLERANCE`.

`disk_full` needs root, who mounts a tmpfs of the run's own; `clock_jump` needs a C compiler (`cc`).
What was not played is named at the end, with the reason. Processes that a fault has not ended are
ended by the harness.

Exit status: 0, or 1 where a run did not end as it must (with the assertion), or where a fault was
asked for by --faults and was not played.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from chaos_systems import EVERY, STEPS, SYSTEMS, TESTS, B, tiny, write_config

DEVICES = 2
PATIENCE = 900  # seconds that a process may take to get anywhere
DISK = 64  # MiB that a run's disk has
TOLERANCE = 1e-5  # of parameters on other devices, relative or absolute
QUICK = ("--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true")
UNPLAYED = "not played"  # how what a fault returns begins where it could do nothing
TOO_LATE = f"{UNPLAYED}: the run had ended"
STOPPED = 75  # exit status of a run that SIGTERM has ended, with everything saved


@dataclasses.dataclass
class Run:
    """A run of a system in `workdir`.

    Attributes:
      lives: processes that were started.
      programs: folder of compiled programs that all runs share.
    """

    system: str
    workdir: pathlib.Path
    programs: pathlib.Path
    lives: int = 0

    def start(self, devices: int = DEVICES, **env: str) -> subprocess.Popen:
        config = write_config(self.workdir.with_suffix(".py"), self.system)
        flags = " ".join([*QUICK, f"--xla_force_host_platform_device_count={devices}"])
        whole = {
            **os.environ,
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            "NPROC": os.environ.get("NPROC", "32"),
            "PYTHONPATH": str(TESTS.parent),
            "JAX_COMPILATION_CACHE_DIR": str(self.programs),
            "JAX_COMPILATION_CACHE_MAX_SIZE": "-1",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **env,
        }
        self.lives += 1
        command = ["-m", "jaxvl.train", f"--config={config}", f"--workdir={self.workdir}"]
        with open(self.workdir.with_suffix(".log"), "a") as log:
            print(f"--- life {self.lives}, {devices} devices, {env}", file=log, flush=True)
            return subprocess.Popen([sys.executable, *command], stdout=log, stderr=log, env=whole)

    @property
    def folders(self) -> list[pathlib.Path]:
        """Of its stages, in order; its own where it has none."""
        stages = SYSTEMS[self.system]().get("stages", ())
        return [self.workdir / stage["name"] for stage in stages] or [self.workdir]

    @property
    def folder(self) -> pathlib.Path:
        """Of the stage that is trained."""
        begun = [folder for folder in self.folders if (folder / "metrics.jsonl").exists()]
        return begun[-1] if begun else self.folders[0]

    def step(self) -> int:
        """Steps of all stages that were logged."""
        return sum(last_step(folder) for folder in self.folders)

    def checkpoints(self) -> list[pathlib.Path]:
        """Of the stage that is trained, oldest first."""
        found = self.folder / "checkpoints"
        steps = [p for p in found.iterdir() if p.name.isdigit()] if found.is_dir() else []
        return sorted(steps, key=lambda path: int(path.name))

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        found = self.folder / "checkpoints"
        return found.is_dir() and any("tmp" in path.name for path in found.iterdir())

    def reach(self, process: subprocess.Popen, step: int, saving: bool = False) -> bool:
        """Waits for a step, and for a save after it; returns whether the process is still there."""
        end = time.monotonic() + PATIENCE
        while process.poll() is None:
            assert time.monotonic() < end, f"no progress; see {self.workdir}.log"
            if self.step() >= step and (self.saving() or not saving):
                return True
            time.sleep(0.002)
        return False

    def end(self, process: subprocess.Popen, number: signal.Signals) -> None:
        process.send_signal(number)
        process.wait(PATIENCE)

    def finish(self) -> None:
        process = self.start()
        assert process.wait(PATIENCE) == 0, f"see {self.workdir}.log"


def last_step(folder: pathlib.Path) -> int:
    lines = read_log(folder)
    return next((line["step"] for line in reversed(lines) if line["kind"] == "train"), 0)


def read_log(folder: pathlib.Path) -> list[dict]:
    """What a stage has recorded, without lines that a fault has cut."""
    found = []
    path = folder / "metrics.jsonl"
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


# --------------------------------------------------------------------------------------------------
# Faults: each befalls one life of a run. They return what they did, or UNPLAYED and why.

Fault = Callable[[Run, random.Random], str]


def soon(run: Run, draw: random.Random) -> int:
    """A step that is reached before long."""
    return run.step() + draw.randrange(1, 6)


def killed(run: Run, draw: random.Random) -> str:
    process = run.start()
    if not run.reach(process, soon(run, draw)):
        return TOO_LATE
    run.end(process, signal.SIGKILL)
    return "SIGKILL"


def killed_in_a_save(run: Run, draw: random.Random) -> str:
    process = run.start()
    if not run.reach(process, soon(run, draw), saving=True):
        return TOO_LATE
    run.end(process, signal.SIGKILL)
    return "SIGKILL"


def preempted(run: Run, draw: random.Random) -> str:
    process = run.start()
    if not run.reach(process, soon(run, draw)):
        return TOO_LATE
    run.end(process, signal.SIGTERM)
    assert process.returncode in (0, STOPPED), f"see {run.workdir}.log"
    return "SIGTERM"


def disk_full(run: Run, draw: random.Random) -> str:
    """No byte is left on the disk, for two checkpoints or until the run ends by that."""
    if not os.path.ismount(run.workdir):
        return f"{UNPLAYED}: no tmpfs could be mounted, which needs root"
    process = run.start()
    if not run.reach(process, soon(run, draw)):
        return TOO_LATE
    filler = run.workdir / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    ended = process.poll() is not None
    filler.unlink()
    if not ended:
        run.end(process, signal.SIGKILL)
    return "the run ended" if ended else "the run went on"


def damaged(run: Run, draw: random.Random) -> str:
    """The newest checkpoint is cut, emptied or overwritten."""
    newest = newest_of_two(run)
    how = draw.choice(["cut", "emptied", "overwritten"])
    for file in files_of(newest):
        content = file.read_bytes()
        if how == "cut":
            content = content[: len(content) // 2]
        elif how == "emptied":
            content = b""
        else:
            content = draw.randbytes(len(content))
        file.write_bytes(content)
    killed(run, draw)
    return f"step {newest.name} {how}"


def shard_lost(run: Run, draw: random.Random) -> str:
    """A file of the newest checkpoint's arrays is gone."""
    newest = newest_of_two(run)
    shards = [file for file in files_of(newest) if "d" in file.parent.parts[-1:]]
    lost = draw.choice(shards or files_of(newest))
    lost.unlink()
    killed(run, draw)
    return f"{lost.relative_to(newest)}"


def bit_flipped(run: Run, draw: random.Random) -> str:
    """One bit of the newest checkpoint is another one."""
    newest = newest_of_two(run)
    merged, own = newest / "state" / "d", newest / "state" / "ocdbt.process_0" / "d"
    folder = draw.choice([merged, own])
    files = [file for file in files_of(newest) if file.parent == folder]
    file = draw.choices(files, [file.stat().st_size for file in files])[0]
    content = bytearray(file.read_bytes())
    place = draw.randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    file.write_bytes(content)
    aside = newest.parent.with_name("checkpoints.damaged")
    before = len(list(aside.glob("*")))
    killed(run, draw)
    noticed = "noticed" if len(list(aside.glob("*"))) > before else "without effect"
    return f"step {newest.name}, {file.relative_to(newest).parent}: {noticed}"


def newest_of_two(run: Run) -> pathlib.Path:
    """The newest checkpoint of a stage that has an older one too."""
    while len(run.checkpoints()) < 2:
        process = run.start()
        run.reach(process, run.step() + 3 * EVERY)
        if process.poll() is None:
            run.end(process, signal.SIGKILL)
    return run.checkpoints()[-1]


def files_of(checkpoint: pathlib.Path) -> list[pathlib.Path]:
    """Files of its arrays that hold something."""
    files = sorted((checkpoint / "state").rglob("*"))
    return [file for file in files if file.is_file() and file.stat().st_size]


def clock_jump(run: Run, draw: random.Random) -> str:
    """The clock is set back or forward while the run goes on, and is right again in its next life."""
    library = jumping_clock(run.programs.parent)
    if library is None:
        return f"{UNPLAYED}: there is no C compiler (cc)"
    days = draw.choice([-400, -1, 1, 400])
    told = run.workdir.with_suffix(".clock")
    told.unlink(missing_ok=True)
    env = {"JAXVL_CHAOS_CLOCK": str(told), "JAXVL_CHAOS_SECONDS": str(days * 86_400)}
    process = run.start(LD_PRELOAD=str(library), **env)
    if not run.reach(process, run.step() + 1):
        return TOO_LATE
    told.touch()
    if not run.reach(process, run.step() + 2 * EVERY):
        return TOO_LATE
    run.end(process, signal.SIGKILL)
    times = [line["time"] for line in read_log(run.folder)]
    jumps = [abs(b - a) for a, b in itertools.pairwise(times)]
    assert max(jumps) > 80_000, "the clock has not jumped"
    return f"{days:+d} days"


def jumping_clock(folder: pathlib.Path) -> pathlib.Path | None:
    """The library of `clock.c`; None where there is no compiler."""
    library = folder / "clock.so"
    source = pathlib.Path(__file__).with_name("clock.c")
    if not library.exists() and shutil.which("cc"):
        command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
        subprocess.run(command, check=True)
    return library if library.exists() else None


def other_devices(run: Run, draw: random.Random) -> str:
    devices = draw.choice([1, 4])
    process = run.start(devices)
    if not run.reach(process, run.step() + draw.randrange(EVERY, 2 * EVERY)):
        return TOO_LATE
    run.end(process, draw.choice([signal.SIGKILL, signal.SIGTERM]))
    return f"{devices} for {DEVICES}"


FAULTS: dict[str, Fault] = dict(
    killed=killed,
    killed_in_a_save=killed_in_a_save,
    preempted=preempted,
    disk_full=disk_full,
    damaged=damaged,
    shard_lost=shard_lost,
    bit_flipped=bit_flipped,
    clock_jump=clock_jump,
)


# --------------------------------------------------------------------------------------------------
# What must hold at the end


def learnt(run: Run, folder: pathlib.Path) -> dict[int, tuple[str, tuple[int, ...], float]]:
    """Step -> its task, its records and its loss. A step that was done again did the same."""
    found: dict[int, tuple[str, tuple[int, ...], float]] = {}
    before = returns = 0
    for line in read_log(folder):
        if line["kind"] != "train" or line["name"] == "all":
            continue
        step = line["step"]
        ids = tuple(int(line[f"ids/row{i}"]) for i in range(B))
        assert step <= before + 1, f"{folder}: a hole between the steps {before} and {step}"
        returns += step <= before
        earlier = found.get(step, (line["name"], ids))
        assert earlier[:2] == (line["name"], ids), f"{folder}: step {step} has learnt other records"
        found[step] = line["name"], ids, line["loss"]
        before = step
    assert sorted(found) == list(range(1, STEPS + 1)), f"{folder}: {sorted(found)}"
    assert returns < run.lives, f"{folder}: went back {returns} times in {run.lives} lives"
    return found


def check_epochs(steps: dict[int, tuple[str, tuple[int, ...], float]]) -> int:
    """Every epoch of every task has every record once; returns how many rows were checked."""
    rows = 0
    for task in {task for task, _, _ in steps.values()}:
        ids = [i for step in sorted(steps) for i in steps[step][1] if steps[step][0] == task]
        records = len(set(ids))
        assert records == 576, f"{task} has {records} records"
        for first in range(0, len(ids), records):
            epoch = ids[first : first + records]
            assert len(set(epoch)) == len(epoch), f"{task}: a record twice in an epoch"
        rows += len(ids)
    return rows


def check_same(run: Run, reference: Run, exact: bool) -> float:
    """The same checkpoints, records and losses; returns the largest difference of a parameter."""
    import jax
    import numpy as np

    apart = 0.0
    for ours, theirs in zip(run.folders, reference.folders):
        if exact:
            tiny.assert_same_state(ours, theirs, STEPS)
        states = [tiny.saved_state(folder, STEPS)["params"] for folder in (ours, theirs)]
        for a, b in zip(*(jax.tree.leaves(state) for state in states)):
            np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)
            apart = max(apart, float(np.abs(a - b).max()))
        one, other = learnt(run, ours), learnt(reference, theirs)
        for step, (task, ids, loss) in one.items():
            assert (task, ids) == other[step][:2], f"{ours}: step {step} has other records"
            assert not exact or loss == other[step][2], f"{ours}: step {step} has another loss"
        if ours == run.folders[0]:  # later stages take records by cluster
            check_epochs(one)
        frames = [read_frame(folder) for folder in (ours, theirs)]
        assert frames[0] == frames[1] or not exact, f"{ours}: frames differ"
        left = [path for path in (ours / "checkpoints").iterdir() if "tmp" in path.name]
        assert not left, left
    return apart


def read_frame(folder: pathlib.Path) -> dict:
    from jaxvl.training.checkpoint import Checkpoints

    name, frame = Checkpoints(folder / "checkpoints", read_only=True).frame()
    assert name == STEPS
    # Jobs' tables are named by their folder.
    return {key: value for key, value in frame.items() if key != "config"}


# --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def disk(folder: pathlib.Path) -> Iterator[None]:
    """A disk of its own for `folder`, where this process may make one."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


@dataclasses.dataclass
class Result:
    """What was done to a system: fault -> what it did; seconds; the largest difference of a
    parameter on other devices."""

    system: str
    seed: int
    done: dict[str, str]
    lives: int
    seconds: float
    apart: float = 0.0


def disturb(
    system: str, seed: int, root: pathlib.Path, faults: dict[str, Fault], devices: bool = True
) -> Result:
    """Trains a system with and without faults, and compares. Raises AssertionError."""
    began = time.monotonic()
    draw = random.Random(f"{system} {seed}")
    programs = root / "programs"
    reference = Run(system, root / system / "reference", programs)
    reference.workdir.mkdir(parents=True)
    reference.finish()
    run = Run(system, root / system / "disturbed", programs)
    done = {}
    order = list(faults)
    draw.shuffle(order)
    with disk(run.workdir):
        for name in order:
            done[name] = faults[name](run, draw)
            print(f"{system}, seed {seed}: {name}: {done[name]}", file=sys.stderr, flush=True)
        run.finish()
        check_same(run, reference, exact=True)
    result = Result(system, seed, done, run.lives, 0.0)
    if devices:
        other = Run(system, root / system / "other", programs)
        other.workdir.mkdir()
        done["other_devices"] = ", ".join(other_devices(other, draw) for _ in range(2))
        other.finish()
        result.apart = check_same(other, reference, exact=False)
        result.lives += other.lives
    result.seconds = time.monotonic() - began
    return result


def show(results: list[Result]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("fault", *(f"{r.system}, seed {r.seed}" for r in results))
    for fault in dict.fromkeys(name for r in results for name in r.done):
        table.add_row(fault, *(r.done.get(fault, "") for r in results))
    table.add_row("lives", *(str(r.lives) for r in results))
    table.add_row("seconds", *(f"{r.seconds:.0f}" for r in results))
    table.add_row("apart on other devices", *(f"{r.apart:.1e}" for r in results))
    Console(width=max(100, 30 * (len(results) + 1))).print(table)


def unplayed(results: list[Result]) -> list[tuple[str, str]]:
    """(fault, a line that says where and why) of all that were not played."""
    return [
        (fault, f"{r.system}, seed {r.seed}: {fault}: {what}")
        for r in results
        for fault, what in r.done.items()
        if UNPLAYED in what
    ]


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument(
        "--faults", nargs="+", choices=FAULTS, help="default: all that can be played"
    )
    parser.add_argument("--workdir", type=pathlib.Path, help="kept; default: a temporary one")
    parser.add_argument("--at-once", type=int, default=2, help="systems that run at a time")
    args = parser.parse_args(argv)
    root = args.workdir or pathlib.Path(tempfile.mkdtemp(prefix="jaxvl-chaos-"))
    faults = {name: FAULTS[name] for name in args.faults or FAULTS}
    results = []
    for seed in args.seeds:
        with concurrent.futures.ThreadPoolExecutor(args.at_once) as pool:
            jobs = [
                pool.submit(disturb, system, seed, root / str(seed), faults)
                for system in args.systems
            ]
            results += [job.result() for job in jobs]
    show(results)
    if args.workdir is None:
        shutil.rmtree(root)
    missed = unplayed(results)
    for _, line in missed:
        print(line)
    asked_for = {fault for fault, _ in missed} & {*(args.faults or ())}
    if asked_for:
        print(f"asked for by --faults, and not played: {', '.join(sorted(asked_for))}")
    return 1 if asked_for else 0


if __name__ == "__main__":
    sys.exit(main())
