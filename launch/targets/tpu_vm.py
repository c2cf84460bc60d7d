"""Cloud TPU VMs through gcloud: a queued resource is asked for, set up, and runs the same command on
all of its hosts.

`--dry-run` prints the script. The run goes on in `tmux` on every host when the connection is gone.
The same command can be given again: it takes the request that is there, on its slice leaves a run
alone that goes on, and starts one that has ended. A request that has failed, or whose slice was taken
away, is deleted and made anew; the run goes on from its newest checkpoint, so `--workdir` must be on
storage that all hosts see (gs://…). On each host `launch/submit.py local` starts the command again
where it fails.
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
    refuse,
)
from targets._tpu import tpu_slice

SESSION = "jaxvl"
FOLDER = "~/jaxvl"  # of the project on a host
RUNNING = f"tmux has-session -t ={SESSION} 2>/dev/null"

# A suspended request is never given a slice again, and a failed one stays until it is deleted
# (cloud.google.com/tpu/docs/queued-resources). One that fails after it was made here is left, to be
# looked at.
REQUEST = """\
errors="$(mktemp)"
trap 'rm -f "$errors"' EXIT

state() { # of the request; empty where there is none
  @describe 2>"$errors" || grep -q NOT_FOUND "$errors" || { cat "$errors" >&2; return 1; }
}

made=
while true; do
  state="$(state)"
  case "$made$state" in
    ACTIVE | "made ACTIVE") break ;;
    "")
      @create
      made="made "
      continue
      ;;
    FAILED | SUSPENDED)
      echo "@name is $state: deletes it and asks again"
      @delete
      continue
      ;;
    "made FAILED" | "made SUSPENDED" | "made ") echo "@name is ${state:-gone}" >&2; exit 1 ;;
  esac
  echo "@name is $state"
  sleep 30
done"""


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
    if not (run.value("--workdir") or "").startswith("gs://"):
        raise UsageError("tpu_vm: --workdir=… must be on storage that all hosts see: gs://…")
    refuse(options, ("python", "root"), f"is {FOLDER} and the interpreter in it on a host")
    if options.existing:
        refuse(options, ("runtime", "spot"), "is of a slice that is made, not of --existing")
    lines = ["#!/bin/bash", "set -euo pipefail"]
    if not options.existing:
        lines += ["", _request(options, run), ""]
    for name in _nodes(options, run):
        lines += [_ssh(options, name, _setup(options)), _ssh(options, name, _start(options, run))]
    return "\n".join(lines) + "\n"


def submit(options: Options, run: Run) -> int:
    # Not through its standard input, which `gcloud … ssh` would read to the end.
    return hand_over(["bash", "-c", render(options, run)], "")


def _nodes(options: Options, run: Run) -> list[str]:
    if options.slices == 1:
        return [run.name]
    return [f"{run.name}-{i}" for i in range(options.slices)]


def _place(options: Options) -> list[str]:
    project = [f"--project={options.project}"] if options.project else []
    return [f"--zone={options.zone}", *project]


def _request(options: Options, run: Run) -> str:
    """What ends once the slice is there."""
    parts = {
        "@describe": _queued(options, run, "describe", "--format=value(state.state)"),
        "@create": _create(options, run),
        "@delete": _queued(options, run, "delete", "--quiet", "--force"),
        "@name": run.name,
    }
    text = REQUEST
    for place, part in parts.items():
        text = text.replace(place, part)
    return text


def _queued(options: Options, run: Run, verb: str, *more: str) -> str:
    words = ["gcloud", "compute", "tpus", "queued-resources", verb, run.name]
    return shlex.join([*words, *_place(options), *more])


def _create(options: Options, run: Run) -> str:
    words = [
        f"--accelerator-type={options.tpu.type}",
        f"--runtime-version={options.runtime or options.tpu.kind.runtime}",
    ]
    if options.slices == 1:
        words.append(f"--node-id={run.name}")
    else:
        words += [f"--node-count={options.slices}", f"--node-prefix={run.name}"]
    words += ["--spot"] if options.spot else []
    return _queued(options, run, "create", *words)


def _ssh(options: Options, name: str, command: str) -> str:
    words = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", name, "--worker=all"]
    return shlex.join([*words, *_place(options), f"--command={command}"])


def _setup(options: Options) -> str:
    """The project and its packages on a host, which may have them already; not beneath a run."""
    clone = f"git clone {shlex.quote(options.repository)} {FOLDER}"
    steps = " && ".join(
        [
            f"([ -d {FOLDER} ] || {clone})",
            f"cd {FOLDER}",
            f"git fetch --quiet origin {shlex.quote(options.revision)}",
            "git checkout --quiet FETCH_HEAD",
            "([ -d .venv ] || python3 -m venv .venv)",
            ".venv/bin/pip install --quiet --editable '.[tpu,remote]'",
        ]
    )
    return f"{RUNNING} || {{ {steps}; }}"


def _start(options: Options, run: Run) -> str:
    """`launch/submit.py local` in `tmux`: it starts the command again where it fails."""
    words = [".venv/bin/python", "launch/submit.py", "local", f"--restarts={options.restarts}"]
    words += [f"--env={name}={value}" for name, value in options.env]
    words += [f"--module={run.module}", "--", *run.words, TOGETHER]
    command = f"cd {FOLDER} && {shlex.join(words)} 2>&1 | tee -a {SESSION}.log"
    return f"{RUNNING} || tmux new-session -d -s {SESSION} {shlex.quote(command)}"
