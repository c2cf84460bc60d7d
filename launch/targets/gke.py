"""A JobSet on Google Kubernetes Engine (or another Kubernetes), on TPU slices or nodes with GPUs.

A process that is evicted saves and ends with status 75: its pod is replaced, which counts for
nothing. When one fails, the JobSet starts all of them again, `--restarts` times at most; not where
that would change nothing: a wrong config (status 2), a failed evaluator (3).

`--dry-run` prints the manifest; `kubectl apply -f FILE` submits it. The cluster needs JobSet
(https://jobset.sigs.k8s.io); `--queue` names a queue of Kueue, where there is one.
"""

from __future__ import annotations

from typing import Any

import yaml

from targets._base import (
    EVALUATORS,
    PORT,
    STOPPED,
    TOGETHER,
    WRONG,
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

WORKERS = "workers"  # the only group of jobs


def add_options(parser: Parser) -> None:
    devices = parser.add_mutually_exclusive_group(required=True)
    devices.add_argument("--tpu", type=tpu_slice, metavar="KIND:TOPOLOGY", help="as v5e:16x16")
    devices.add_argument("--gpu", metavar="NAME", help="as nvidia-h100-80gb")
    parser.add_argument("--slices", type=count, help="of --tpu (default: 1)")
    parser.add_argument("--nodes", type=count, help="with --gpu (default: 1)")
    parser.add_argument("--gpus-per-node", type=count, help="with --gpu (default: 8)")
    parser.add_argument(
        "--grace", type=count, default=120, help="seconds to save after SIGTERM (default: 120)"
    )
    parser.add_argument(
        "--restarts", type=number, default=10, help="of a run that fails (default: 10)"
    )
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--queue", help="a LocalQueue of Kueue")
    parser.add_argument("--service-account")
    parser.add_argument("--spot", action="store_true", help="nodes that may be taken away")
    add_environment(parser)
    add_image(parser, required=True)


def render(options: Options, run: Run) -> str:
    return yaml.safe_dump(manifest(options, run), sort_keys=False, width=100)


def submit(options: Options, run: Run) -> int:
    return hand_over(["kubectl", "apply", "-f", "-"], render(options, run))


def manifest(options: Options, run: Run) -> dict[str, Any]:
    """The JobSet. Raises UsageError for options of GPUs with TPUs, and the other way round."""
    if options.tpu:
        refuse(options, ("nodes", "gpus_per_node"), "needs --gpu")
    else:
        refuse(options, ("slices",), "needs --tpu")
    metadata: dict[str, Any] = {"name": run.name, "namespace": options.namespace}
    if options.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": options.queue}
    if options.tpu:  # one slice for each job of the set
        metadata["annotations"] = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
    pods = options.tpu.hosts if options.tpu else _nodes(options)
    job = {
        "parallelism": pods,
        "completions": pods,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": _pod_failures()},
        "template": {"spec": _pod(options, run)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": options.restarts,
                "rules": [
                    {
                        "name": "anotherTryWouldChangeNothing",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": WORKERS, "replicas": options.slices or 1, "template": {"spec": job}},
            ],
        },
    }


def _nodes(options: Options) -> int:
    return options.nodes or 1


def _pod_failures() -> list[dict[str, Any]]:
    """What the exit status of a pod says; any other status fails the job, and the set starts it
    again."""

    def exits(*values: int) -> dict[str, Any]:
        return {"containerName": WORKERS, "operator": "In", "values": list(values)}

    return [
        {"action": "FailJob", "onExitCodes": exits(WRONG, EVALUATORS)},
        {"action": "Ignore", "onExitCodes": exits(STOPPED)},
    ]


def _pod(options: Options, run: Run) -> dict[str, Any]:
    selector = {}
    if options.tpu:
        selector["cloud.google.com/gke-tpu-accelerator"] = options.tpu.kind.label
        selector["cloud.google.com/gke-tpu-topology"] = options.tpu.topology
    else:
        selector["cloud.google.com/gke-accelerator"] = options.gpu
    if options.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace,
        "nodeSelector": selector,
        "containers": [_container(options, run)],
    }
    if options.tpu:
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    else:  # where NCCL keeps what processes of a node share
        pod["volumes"] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
        pod["containers"][0]["volumeMounts"] = [{"name": "shm", "mountPath": "/dev/shm"}]
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    return pod


def _container(options: Options, run: Run) -> dict[str, Any]:
    if options.tpu:
        resources = {"google.com/tpu": options.tpu.chips_per_host}
        # Google's admission hook tells each pod its slice and its place in it.
        together = [TOGETHER]
        ports = [8471, 8080, 8482]  # libtpu within a slice, between slices, JAX
    else:
        resources = {"nvidia.com/gpu": options.gpus_per_node or 8}
        together = [
            f"--coordinator={run.name}-{WORKERS}-0-0.{run.name}:{PORT}",
            f"--processes={_nodes(options)}",
            "--process=$JOB_COMPLETION_INDEX",
        ]
        ports = [PORT]
    environment = {"PYTHONUNBUFFERED": "1", **dict(options.env)}
    folder = {"workingDir": options.root} if options.root else {}
    return {
        "name": WORKERS,
        "image": options.image,
        **folder,
        # `exec`: SIGTERM comes to Python itself
        "command": ["bash", "-c", f"exec {run.shell(*together)}"],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "ports": [{"containerPort": port, "protocol": "TCP"} for port in ports],
        "resources": {"limits": resources},
    }
