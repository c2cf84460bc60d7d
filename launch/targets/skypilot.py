"""A managed job of SkyPilot, on whichever cloud or Kubernetes it finds the devices.

SkyPilot replaces a cluster that is taken away (`--spot`) and runs the command again; so it does after
status 75 (stopped, everything saved), and `--restarts` times after any other failure. `--workdir` must
be on storage that outlives a cluster: an address such as s3://…, or a folder below a `--mount`.

`--dry-run` prints the task; `sky jobs launch FILE` submits it.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from typing import Any

import yaml

from targets._base import (
    PORT,
    STOPPED,
    Options,
    Parser,
    Run,
    add_environment,
    add_image,
    count,
    hand_over,
    number,
)

SETUP = "pip install --quiet --editable '.[{extras}]'"


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def mount(text: str) -> tuple[str, str]:
    folder, sign, source = text.partition("=")
    if not sign or not folder.startswith(("/", "~")):
        raise argparse.ArgumentTypeError(f"{text!r} must be /FOLDER=ADDRESS, as /data=s3://bucket")
    return folder, source


def add_options(parser: Parser) -> None:
    parser.add_argument(
        "--accelerators", required=True, metavar="NAME:N", help="of a node, as H100:8"
    )
    parser.add_argument("--nodes", type=count, default=1, help="(default: 1)")
    parser.add_argument("--infra", help="where, as gcp/us-central1 or k8s (default: the cheapest)")
    parser.add_argument("--spot", action="store_true", help="nodes that may be taken away")
    parser.add_argument("--disk", type=count, help="GB of a node")
    parser.add_argument(
        "--mount",
        action="append",
        default=[],
        type=mount,
        metavar="FOLDER=ADDRESS",
        help="a bucket as a folder; may be repeated",
    )
    parser.add_argument(
        "--extras", default="gpu,remote", help="of jaxvl, to install (default: gpu,remote)"
    )
    parser.add_argument(
        "--restarts", type=number, default=10, help="of a run that fails (default: 10)"
    )
    add_environment(parser)
    add_image(parser)


def render(options: Options, run: Run) -> str:
    return yaml.dump(task(options, run), Dumper=_Dumper, sort_keys=False, width=100)


def submit(options: Options, run: Run) -> int:
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / f"{run.name}.yaml"
        file.write_text(render(options, run))
        return hand_over(["sky", "jobs", "launch", "--yes", str(file)], "")


def task(options: Options, run: Run) -> dict[str, Any]:
    """SkyPilot's own description of a job."""
    resources: dict[str, Any] = {
        "accelerators": options.accelerators,
        "use_spot": options.spot,
        "job_recovery": {
            "max_restarts_on_errors": options.restarts,
            "recover_on_exit_codes": [STOPPED],
        },
    }
    if options.infra:
        resources["infra"] = options.infra
    if options.disk:
        resources["disk_size"] = options.disk
    if options.image:
        resources["image_id"] = f"docker:{options.image}"
    made: dict[str, Any] = {
        "name": run.name,
        "num_nodes": options.nodes,
        "resources": resources,
        "workdir": run.root,
        "envs": {"PYTHONUNBUFFERED": "1", **dict(options.env)},
    }
    if options.mount:
        made["file_mounts"] = {
            folder: {"source": source, "mode": "MOUNT"} for folder, source in options.mount
        }
    made["setup"] = f"{SETUP.format(extras=options.extras)}\n"
    made["run"] = _run(options, run)
    return made


def _run(options: Options, run: Run) -> str:
    """The script of every node, which SkyPilot tells its place."""
    if options.nodes == 1:
        return f"exec {run.shell()}\n"
    together = [
        f"--coordinator=$first:{PORT}",
        "--processes=$SKYPILOT_NUM_NODES",
        "--process=$SKYPILOT_NODE_RANK",
    ]
    return f'first="$(head -n1 <<<"$SKYPILOT_NODE_IPS")"\nexec {run.shell(*together)}\n'
