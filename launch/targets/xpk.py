"""The same on TPU slices of Google Kubernetes Engine, through xpk (accelerated processing kit).

xpk makes the JobSet, for clusters that `xpk cluster create` made. `--dry-run` prints its command.
"""

from __future__ import annotations

import shlex

from targets._base import (
    STOPPED,
    TOGETHER,
    Options,
    Parser,
    Run,
    add_environment,
    add_image,
    count,
    hand_over,
    number,
    refuse,
)
from targets._tpu import tpu_slice

FAILED = 1


def add_options(parser: Parser) -> None:
    parser.add_argument("--cluster", required=True)
    parser.add_argument(
        "--tpu", type=tpu_slice, required=True, metavar="KIND:TOPOLOGY", help="as v5e:16x16"
    )
    parser.add_argument("--slices", type=count, default=1, help="(default: 1)")
    parser.add_argument(
        "--grace", type=count, default=120, help="seconds to save after SIGTERM (default: 120)"
    )
    parser.add_argument(
        "--restarts", type=number, default=10, help="of a run that fails (default: 10)"
    )
    parser.add_argument("--project")
    parser.add_argument("--zone")
    parser.add_argument(
        "--priority", choices=("very-low", "low", "medium", "high", "very-high"), default="medium"
    )
    add_environment(parser)
    add_image(parser, required=True)


def render(options: Options, run: Run) -> str:
    return f"{shlex.join(_command(options, run))}\n"


def submit(options: Options, run: Run) -> int:
    return hand_over(_command(options, run), "")


def _command(options: Options, run: Run) -> list[str]:
    refuse(options, ("root",), "is the folder of the image, which xpk cannot change")
    words = [
        "xpk",
        "workload",
        "create",
        f"--cluster={options.cluster}",
        f"--workload={run.name}",
        f"--tpu-type={options.tpu.type}",
        f"--num-slices={options.slices}",
        f"--docker-image={options.image}",
        f"--max-restarts={options.restarts}",
        f"--restart-on-exit-codes={FAILED},{STOPPED}",
        f"--termination-grace-period-seconds={options.grace}",
        f"--priority={options.priority}",
    ]
    words += [f"--project={options.project}"] if options.project else []
    words += [f"--zone={options.zone}"] if options.zone else []
    words += [f"--env={name}={value}" for name, value in options.env]
    return [*words, f"--command=exec {run.shell(TOGETHER)}"]
