"""The driver of a Ray job that trains: `python launch/ray_driver.py OPTIONS -- WORDS`.

Ray Train starts a worker on each node or device, starts all of them again when one is lost, and on
TPUs connects them by `jax.distributed`; elsewhere they connect themselves. Each worker runs the
command of jaxvl.
"""

from __future__ import annotations

import argparse
import importlib
import json
import socket
import sys
from collections.abc import Sequence

import ray
import ray.train
import ray.train.collective
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.jax import JaxConfig, JaxTrainer

DONE = (0, 2, 3)  # exit statuses that another try would not change
FAILED = 1


def work(config: dict) -> dict:
    """What each worker does; returns the command's exit status."""
    words = list(config["words"])
    context = ray.train.get_context()
    rank = context.get_world_rank()
    size = training(context.get_world_size(), config["workers"])
    if size > 1 and not config["connected"]:
        # To all workers, as each has to take part.
        address = ray.train.collective.broadcast_from_rank_zero(_free_address())
        words += [f"--coordinator={address}", f"--processes={size}", f"--process={rank}"]
    if rank >= size:
        print(f"launch: worker {rank} waits: {size} of {config['workers']} train", file=sys.stderr)
        return {"status": 0}
    status = importlib.import_module(config["module"]).main(words)
    if status not in DONE:
        raise RuntimeError(f"{config['module']} has ended with status {status}")
    return {"status": status}


def training(there: int, planned: int) -> int:
    """Workers that train: the largest number of those that are there which divides the planned."""
    return max(n for n in range(1, there + 1) if planned % n == 0)


def _free_address() -> str:
    """Of this node, for process 0."""
    with socket.socket() as free:
        free.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"


def main(argv: Sequence[str]) -> int:
    words = list(argv)
    split = words.index("--")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--module", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--restarts", type=int, required=True)
    parser.add_argument("--scaling", type=json.loads, required=True, help="of ScalingConfig")
    parser.add_argument("--env", type=json.loads, required=True)
    options = parser.parse_args(words[:split])
    scaling = options.scaling
    if isinstance(scaling["num_workers"], list):  # the least and all of them
        scaling["num_workers"] = tuple(scaling["num_workers"])
    made = ScalingConfig(**scaling)
    config = {
        "module": options.module,
        "words": words[split + 1 :],
        "workers": made.max_workers,
        "connected": made.use_tpu,
    }
    trainer = JaxTrainer(
        work,
        train_loop_config=config,
        # On GPUs Ray gives every worker of a node the same ones, hence nothing of its own there.
        jax_config=JaxConfig(use_tpu=made.use_tpu),
        scaling_config=made,
        run_config=RunConfig(
            name=options.name,
            failure_config=FailureConfig(max_failures=options.restarts),
            worker_runtime_env={"env_vars": options.env},
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        print(f"launch: gives up: {str(error).splitlines()[0]}", file=sys.stderr)
        return FAILED
    return result.return_value["status"]  # of the first worker; all have the same


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
