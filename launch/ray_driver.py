"""The driver of a Ray job that trains: `python launch/ray_driver.py OPTIONS -- WORDS`.

Ray Train starts a worker on each node or device, starts all of them again when one is lost, and on
TPU and GPU connects them by `jax.distributed`. Each worker runs the command of jaxvl.
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
from ray.train.v2.jax import JaxTrainer

DONE = (0, 2, 3)  # exit statuses that another try would not change
FAILED = 1


def work(config: dict) -> dict:
    """What each worker does; returns the command's exit status."""
    words = list(config["words"])
    size = ray.train.get_context().get_world_size()
    if size > 1 and not config["accelerator"]:
        address = ray.train.collective.broadcast_from_rank_zero(_free_address())
        rank = ray.train.get_context().get_world_rank()
        words += [f"--coordinator={address}", f"--processes={size}", f"--process={rank}"]
    status = importlib.import_module(config["module"]).main(words)
    if status not in DONE:
        raise RuntimeError(f"{config['module']} has ended with status {status}")
    return {"status": status}


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
    config = {
        "module": options.module,
        "words": words[split + 1 :],
        "accelerator": scaling.get("use_tpu", False) or scaling.get("use_gpu", False),
    }
    trainer = JaxTrainer(
        work,
        train_loop_config=config,
        scaling_config=ScalingConfig(**scaling),
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
