"""A job on a Ray cluster (KubeRay's too), through Ray Train's JaxTrainer.

Ray starts one worker for each host of a TPU slice, or for each `--gpus-per-worker`. When one is lost
it starts all of them again, `--restarts` times at most, and they go on from the newest checkpoint, so
`--workdir` must be on storage that all nodes see.

With `--min-workers` the run goes on with whatever workers are left, from that number on, and with all
of them again once they are there; the global batch stays what it is (`resume.devices` in the config's
`resume`). Of the workers the largest number trains that divides `--workers`; the others wait. On TPUs
Ray joins all slices that are whole, so each number of slices that may be left must divide `--slices`.

`--dry-run` prints the command, which uploads the project's folder. `--address` is that of the
cluster's dashboard (http://HOST:8265); without it a Ray is started on this machine. Needs `ray[train]`
2.60 or newer here and on the nodes.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

from targets._base import (
    DEVICES,
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

DRIVER = "launch/ray_driver.py"


def add_options(parser: Parser) -> None:
    parser.add_argument("--address", help="of the dashboard, as http://head:8265")
    parser.add_argument("--workers", type=count, help="(default: 1; on TPU that of the slices)")
    parser.add_argument(
        "--min-workers", type=count, help="to go on with when some are lost (default: all)"
    )
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument("--tpu", type=tpu_slice, metavar="KIND:TOPOLOGY", help="as v6e:4x4")
    devices.add_argument("--gpus-per-worker", type=count)
    devices.add_argument("--cpus-per-worker", type=count)
    parser.add_argument("--slices", type=count, help="of --tpu (default: 1)")
    parser.add_argument(
        "--restarts", type=number, default=10, help="of a run that fails (default: 10)"
    )
    add_environment(parser)


def render(options: Options, run: Run) -> str:
    return f"{shlex.join(_command(options, run))}\n"


def submit(options: Options, run: Run) -> int:
    return hand_over(_command(options, run), "")


def scaling(options: Options) -> dict[str, Any]:
    """Arguments of Ray Train's `ScalingConfig`."""
    workers = options.workers or 1
    made: dict[str, Any] = {}
    if options.tpu is None:
        refuse(options, ("slices",), "needs --tpu")
    else:
        workers = options.tpu.hosts * _slices(options)
        if options.workers not in (None, workers):
            raise UsageError(
                f"ray: argument --workers: {options.workers} must be {workers}, one for each host "
                f"of the slices"
            )
        made |= {
            "use_tpu": True,
            "topology": options.tpu.topology,
            "accelerator_type": options.tpu.kind.ray,
            "resources_per_worker": {"TPU": options.tpu.chips_per_host},
        }
    if options.gpus_per_worker:
        made |= {"use_gpu": True, "resources_per_worker": {"GPU": options.gpus_per_worker}}
    if options.cpus_per_worker:
        made["resources_per_worker"] = {"CPU": options.cpus_per_worker}
    if options.min_workers is None:
        return {"num_workers": workers, **made}
    _check_least(options, workers)
    return {"num_workers": [options.min_workers, workers], **made}


def _slices(options: Options) -> int:
    return options.slices or 1


def _check_least(options: Options, workers: int) -> None:
    """Whether `--min-workers` can be kept."""
    least = options.min_workers
    if least > workers:
        raise UsageError(
            f"ray: argument --min-workers: {least} must be at most the {workers} workers"
        )
    if options.tpu is None:
        return
    hosts = options.tpu.hosts
    if least % hosts:
        raise UsageError(
            f"ray: argument --min-workers: {least} must be a multiple of the {hosts} hosts of a slice"
        )
    whole = _slices(options)
    for slices in range(least // hosts, whole):
        if whole % slices:
            raise UsageError(
                f"ray: argument --min-workers: {least} would let {slices} slices go on, which do not "
                f"divide --slices={whole}"
            )


def _elastic(options: Options, run: Run) -> list[str]:
    """What tells the run how many devices its config is for."""
    if options.min_workers is None or run.value(DEVICES) is not None:
        return []
    if options.tpu:
        return [f"{DEVICES}={options.tpu.chips * _slices(options)}"]
    if options.gpus_per_worker:
        return [f"{DEVICES}={options.gpus_per_worker * (options.workers or 1)}"]
    raise UsageError(
        f"ray: argument --min-workers: needs --tpu, --gpus-per-worker or {DEVICES}=NUMBER after --"
    )


def _command(options: Options, run: Run) -> list[str]:
    environment = {"PYTHONUNBUFFERED": "1", "RAY_TRAIN_V2_ENABLED": "1", **dict(options.env)}
    words = [
        f"--module={run.module}",
        f"--name={run.name}",
        f"--restarts={options.restarts}",
        f"--scaling={json.dumps(scaling(options))}",
        f"--env={json.dumps(environment)}",
        "--",
        *(word for word in run.words if word != TOGETHER),
        *_elastic(options, run),
    ]
    if options.address is None:
        return [run.python, f"{run.root}/{DRIVER}", *words]
    submitting = [
        "ray",
        "job",
        "submit",
        f"--address={options.address}",
        f"--submission-id={run.name}",
    ]
    python = options.python or "python"
    return [*submitting, f"--working-dir={run.root}", "--", python, DRIVER, *words]
