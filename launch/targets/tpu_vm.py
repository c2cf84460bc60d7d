"""Cloud TPU VMs through gcloud: a queued resource is asked for, set up, and runs the same command on
all of its hosts.

`--dry-run` prints the script, a step a line. The run goes on in `tmux` on every host when the
connection is gone. A slice that was taken away is asked for again by the same command; the run goes
on from its newest checkpoint, so `--workdir` must be on storage that all hosts see (gs://…). On each
host `launch/submit.py local` starts the command again where it fails.
"""

from __future__ import annotations

import shlex

from targets._base import (
    TOGETHER,
    Options,
    Parser,
    Run,
    UsageError,
    add_environment,
    count,
    hand_over,
    number,
)
from targets._tpu import tpu_slice

SESSION = "jaxvl"
FOLDER = "~/jaxvl"  # of the project on a host


def add_options(parser: Parser) -> None:
    parser.add_argument(
        "--tpu", type=tpu_slice, required=True, metavar="KIND:TOPOLOGY", help="as v5e:16x16"
    )
    parser.add_argument("--slices", type=count, default=1, help="(default: 1)")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project")
    parser.add_argument("--runtime", help="software version (default: that of the kind)")
    parser.add_argument("--spot", action="store_true", help="a slice that may be taken away")
    parser.add_argument("--existing", action="store_true", help="the slice is there already")
    parser.add_argument("--repository", required=True, help="address that git clones on each host")
    parser.add_argument("--revision", default="main", help="(default: main)")
    parser.add_argument(
        "--restarts", type=number, default=10, help="of a run that fails (default: 10)"
    )
    add_environment(parser)


def render(options: Options, run: Run) -> str:
    if not any(word.startswith("--workdir=gs://") for word in run.words):
        raise UsageError("tpu_vm: --workdir=… must be on storage that all hosts see: gs://…")
    lines = ["#!/bin/bash", "set -euo pipefail"]
    if not options.existing:
        lines += [_create(options, run), *_wait(options, run)]
    for name in _nodes(options, run):
        lines += [_ssh(options, name, _setup(options)), _ssh(options, name, _start(options, run))]
    return "\n".join(lines) + "\n"


def submit(options: Options, run: Run) -> int:
    return hand_over(["bash", "-s"], render(options, run))


def _nodes(options: Options, run: Run) -> list[str]:
    if options.slices == 1:
        return [run.name]
    return [f"{run.name}-{i}" for i in range(options.slices)]


def _place(options: Options) -> list[str]:
    project = [f"--project={options.project}"] if options.project else []
    return [f"--zone={options.zone}", *project]


def _create(options: Options, run: Run) -> str:
    words = ["gcloud", "compute", "tpus", "queued-resources", "create", run.name]
    words += _place(options)
    words.append(f"--accelerator-type={options.tpu.type}")
    words.append(f"--runtime-version={options.runtime or options.tpu.kind.runtime}")
    if options.slices == 1:
        words.append(f"--node-id={run.name}")
    else:
        words += [f"--node-count={options.slices}", f"--node-prefix={run.name}"]
    words += ["--spot"] if options.spot else []
    return shlex.join(words)


def _wait(options: Options, run: Run) -> list[str]:
    words = ["gcloud", "compute", "tpus", "queued-resources", "describe", run.name]
    shown = shlex.join([*words, *_place(options), "--format=value(state.state)"])
    return [
        "while true; do",
        f'  state="$({shown})"',
        '  case "$state" in',
        "    ACTIVE) break ;;",
        f'    FAILED | SUSPENDED) echo "{run.name} is $state" >&2; exit 1 ;;',
        "  esac",
        f'  echo "{run.name} is $state"',
        "  sleep 30",
        "done",
    ]


def _ssh(options: Options, name: str, command: str) -> str:
    words = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", name, "--worker=all"]
    return shlex.join([*words, *_place(options), f"--command={command}"])


def _setup(options: Options) -> str:
    """The project and its packages on a host, which may have them already."""
    clone = f"git clone {shlex.quote(options.repository)} {FOLDER}"
    return " && ".join(
        [
            f"([ -d {FOLDER} ] || {clone})",
            f"cd {FOLDER}",
            f"git fetch --quiet origin {shlex.quote(options.revision)}",
            "git checkout --quiet FETCH_HEAD",
            "([ -d .venv ] || python3 -m venv .venv)",
            ".venv/bin/pip install --quiet --editable '.[tpu,remote]'",
        ]
    )


def _start(options: Options, run: Run) -> str:
    """`launch/submit.py local` in `tmux`: it starts the command again where it fails."""
    words = [".venv/bin/python", "launch/submit.py", "local", f"--restarts={options.restarts}"]
    words += [f"--env={name}={value}" for name, value in options.env]
    words += [f"--module={run.module}", "--", *run.words, TOGETHER]
    command = f"cd {FOLDER} && {shlex.join(words)} 2>&1 | tee -a {SESSION}.log"
    return f"tmux new-session -d -s {SESSION} {shlex.quote(command)}"
