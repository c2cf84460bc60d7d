"""A SLURM batch job that is requeued until the run is done.

The processes find each other through JAX's own detection of SLURM. SIGTERM comes to them `--grace`
seconds before the time limit (and when the job is preempted): they save and end with status 75, and
the job puts itself back into the queue. So does one that fails, `--restarts` times at most, but not
one whose config is wrong (status 2) or that is done. The job's number and its output file stay the
same throughout.

With `--min-nodes` the job starts with whatever number of nodes there is from that on, as after a node
is lost; the global batch stays what it is (`resume.devices` in the config's `resume`). Of the nodes
the largest number is used that divides `--nodes`.

`--dry-run` prints the script; `sbatch FILE` submits it. The project's folder must be on storage that
all nodes see, or in the image.
"""

from __future__ import annotations

import argparse
import re
import shlex

from targets._base import (
    DEVICES,
    STOPPED,
    Options,
    Parser,
    Run,
    UsageError,
    add_environment,
    add_image,
    count,
    hand_over,
    number,
    refuse,
)

RUNTIMES = ("pyxis", "apptainer")
LAST_WORDS = 120  # seconds for the other tasks to end once one has


def duration(text: str) -> str:
    """A time limit as SLURM has it."""
    if not re.fullmatch(r"\d+(:\d\d(:\d\d)?)?|\d+-\d+(:\d\d){0,2}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS or DAYS-HOURS[:…]"
        )
    return text


def add_options(parser: Parser) -> None:
    parser.add_argument("--nodes", type=count, default=1, help="(default: 1)")
    parser.add_argument(
        "--min-nodes", type=count, help="to go on with when nodes are lost (default: all)"
    )
    parser.add_argument("--gpus-per-node", type=number, default=0, help="(default: 0)")
    parser.add_argument(
        "--tasks-per-node", type=count, help="processes (default: one per GPU, or one)"
    )
    parser.add_argument("--cpus-per-task", type=count)
    parser.add_argument("--mem", help="memory of a node, as 200G")
    parser.add_argument("--time", type=duration, help="limit of one stretch, as 24:00:00")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--qos")
    parser.add_argument("--constraint")
    parser.add_argument(
        "--grace", type=count, default=120, help="seconds from SIGTERM to the limit (default: 120)"
    )
    parser.add_argument(
        "--restarts", type=number, default=10, help="of a run that fails (default: 10)"
    )
    parser.add_argument(
        "--output", default="slurm-%x-%j.out", help="file (default: slurm-NAME-JOB.out)"
    )
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="a further option of sbatch, as --sbatch=--exclusive; may be repeated",
    )
    add_environment(parser)
    add_image(parser)
    parser.add_argument("--runtime", choices=RUNTIMES, help="for --image (default: pyxis)")
    parser.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="HOST:CONTAINER",
        help="of --image, besides the project's folder; may be repeated",
    )


def render(options: Options, run: Run) -> str:
    if options.image is None:
        refuse(options, ("runtime", "mount"), "needs --image")
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {line}" for line in _directives(options, run)),
            *_environment(options, run),
            "",
            *_step(options, run),
            "status=$?",
            "",
            *_after(options),
            "",
        ]
    )


def submit(options: Options, run: Run) -> int:
    return hand_over(["sbatch"], render(options, run))


def _tasks(options: Options) -> int:
    """Processes of a node."""
    tasks = options.tasks_per_node or options.gpus_per_node or 1
    if options.gpus_per_node and tasks not in (1, options.gpus_per_node):
        raise UsageError(
            f"slurm: argument --tasks-per-node: {tasks} must be 1 or --gpus-per-node="
            f"{options.gpus_per_node}"
        )
    return tasks


def _least(options: Options, run: Run) -> int:
    """`--min-nodes`."""
    if options.min_nodes > options.nodes:
        raise UsageError(
            f"slurm: argument --min-nodes: {options.min_nodes} must be at most --nodes="
            f"{options.nodes}"
        )
    if not options.gpus_per_node and run.value(DEVICES) is None:
        raise UsageError(
            f"slurm: argument --min-nodes: needs --gpus-per-node or {DEVICES}=NUMBER after --"
        )
    return options.min_nodes


def _directives(options: Options, run: Run) -> list[str]:
    wanted = {
        "job-name": run.name,
        "nodes": f"{_least(options, run)}-{options.nodes}" if options.min_nodes else options.nodes,
        "ntasks-per-node": _tasks(options),
        "gpus-per-node": options.gpus_per_node or None,
        "cpus-per-task": options.cpus_per_task,
        "mem": options.mem,
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "output": options.output,
        "open-mode": "append",
        "signal": f"TERM@{options.grace}",
    }
    lines = [f"--{name}={value}" for name, value in wanted.items() if value is not None]
    return [*lines, "--requeue", *options.sbatch]


def _environment(options: Options, run: Run) -> list[str]:
    settings = {"PYTHONPATH": run.root, "PYTHONUNBUFFERED": "1"}
    if options.gpus_per_node > 1 and _tasks(options) == 1:
        # JAX would take one GPU for each task.
        settings["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, range(options.gpus_per_node)))
    settings |= dict(options.env)
    return [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]


def _step(options: Options, run: Run) -> list[str]:
    """`srun`. When a task is lost it lets the others end by themselves, which name it."""
    words = ["srun", "--kill-on-bad-exit=0", f"--wait={LAST_WORDS}"]
    before = []
    own = []
    shared = ""
    if options.min_nodes:
        parts = " ".join(str(n) for n in range(1, options.nodes + 1) if options.nodes % n == 0)
        before = [
            f'for n in {parts}; do [ "$n" -le "$SLURM_JOB_NUM_NODES" ] && nodes=$n; done',
            f'echo "launch: $nodes of {options.nodes} nodes"',
        ]
        shared = f' --nodes="$nodes" --ntasks="$((nodes * {_tasks(options)}))"'
        if run.value(DEVICES) is None:
            own = [f"{DEVICES}={options.nodes * options.gpus_per_node}"]
    if options.cpus_per_task:  # since SLURM 22.05 a step does not have it from the job
        words.append(f"--cpus-per-task={options.cpus_per_task}")
    mounts = [f"{run.root}:{run.root}", *options.mount]
    if options.image and options.runtime in (None, "pyxis"):
        words += [
            f"--container-image={options.image}",
            f"--container-mounts={','.join(mounts)}",
            f"--container-workdir={run.root}",
        ]
    elif options.image:
        words += ["apptainer", "exec", *(["--nv"] if options.gpus_per_node else [])]
        words += [f"--bind={','.join(mounts)}", f"--pwd={run.root}", options.image]
    else:
        words.append(f"--chdir={run.root}")
    srun, *rest = words
    return [*before, f"{srun}{shared} {shlex.join(rest)} \\", f"  {run.shell(*own)}"]


def _after(options: Options) -> list[str]:
    """What the script does once the processes have ended."""
    return f"""\
# {STOPPED}: stopped by a signal, with everything saved. 0: done. 2: a wrong config. 3: an evaluator failed.
failures="${{SLURM_SUBMIT_DIR:-.}}/.$SLURM_JOB_NAME-$SLURM_JOB_ID.failures"
case $status in
  0 | 2 | 3)
    rm -f "$failures"
    exit $status
    ;;
  {STOPPED})
    echo "launch: stopped with everything saved; back into the queue"
    ;;
  *)
    echo "$status" >>"$failures"
    if [ "$(wc -l <"$failures")" -gt {options.restarts} ]; then
      echo "launch: gives up after {options.restarts} restarts"
      rm -f "$failures"
      exit $status
    fi
    echo "launch: ended with status $status; back into the queue"
    ;;
esac
scontrol requeue "$SLURM_JOB_ID" && sleep 600 # which ends this script""".splitlines()
