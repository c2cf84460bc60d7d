"""What a search tries: meshes, remat policies, microbatches and dtypes of moments that a config
could have; and of the best of these, how the rows of its contrastive losses meet.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Iterator, Mapping

import jax.numpy as jnp

from jaxvl.kernels.contrastive.collectives import NAMES
from jaxvl.sharding.mesh import AXES, MeshConfig
from jaxvl.training.experiment import Experiment

# Policies that are tried. An encoder that can only recompute or not (`remat: bool`) recomputes for
# all but "none".
REMAT = ("none", "dots", "full", "chunks")
# All that a config may have, from what needs most memory to what needs least.
LEANER = ("none", "dots", "attention", "full", "chunks", "offload")
MICROBATCHES = (1, 2, 4, 8)
MOST_TENSOR = 8  # shards of a width; more leave products too thin
# Products and convolutions that a policy computes again, as a share of what the model needs.
AGAIN = {"none": 0.0, "dots": 0.05, "attention": 1 / 3} | dict.fromkeys(LEANER[3:], 1 / 3)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A choice.

    Attributes:
      mesh: devices by axis, in the order of `AXES`.
      remat: policy of every stack of layers; None: the model has none to choose.
      microbatches: of every task.
      moments: dtype of the first moment.
      collective: of every task (`TaskConfig.collective`).
    """

    mesh: tuple[int, ...]
    remat: str | None
    microbatches: int
    moments: str
    collective: str = "auto"

    @property
    def mesh_config(self) -> MeshConfig:
        return MeshConfig(**dict(zip(AXES, self.mesh)))

    @property
    def batch_shards(self) -> int:
        return self.mesh[0] * self.mesh[1]

    def hunger(self, rows: int) -> tuple[int, float]:
        """What its activations grow with: (place of its remat, rows that a device encodes at
        once)."""
        place = LEANER.index(self.remat or "none")
        return -place, rows / self.batch_shards / self.microbatches

    def only_saves(self, other: Candidate) -> bool:
        """Whether it does all of the other's work, and more, to need less memory: the same mesh and
        remat policy with more microbatches or smaller moments, and less of neither.

        Another policy may be faster though it computes more, as what is not kept is not written."""
        choices = [(c.microbatches, -jnp.dtype(c.moments).itemsize) for c in (self, other)]
        own, others = choices
        alike = (self.mesh, self.remat) == (other.mesh, other.remat)
        return alike and own != others and all(map(operator.ge, own, others))

    def assignments(self, experiment: Experiment) -> dict[str, str]:
        """As `--config.KEY=VALUE`."""
        made = {f"mesh.{axis}": str(n) for axis, n in zip(AXES, self.mesh)}
        for key, kind in remat_keys(experiment).items():
            if self.remat is not None:
                made[key] = str(self.remat != "none") if kind is bool else self.remat
        for task in experiment.tasks:
            made[f"tasks.{task}.microbatches"] = str(self.microbatches)
            made[f"tasks.{task}.collective"] = self.collective
        made["optim.moment_dtype"] = self.moments
        return made


def remat_keys(experiment: Experiment) -> dict[str, type]:
    """Keys of the config that hold a remat policy -> bool or str."""

    def walk(node: object, path: str) -> Iterator[tuple[str, type]]:
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            if field.name == "remat":
                yield f"{path}.remat", bool if isinstance(value, bool) else str
            elif dataclasses.is_dataclass(value):
                yield from walk(value, f"{path}.{field.name}")

    return dict(walk(experiment.model, "model"))


def own_choice(experiment: Experiment, mesh: tuple[int, ...]) -> Candidate:
    """The config as it is."""
    policies = {_policy(experiment, key) for key in remat_keys(experiment)}
    leanest = max(policies, key=LEANER.index) if policies else None
    microbatches = max(task.microbatches for task in experiment.tasks.values())
    moments = experiment.optim.moment_dtype
    chosen = {task.collective for task in experiment.tasks.values()}
    collective = chosen.pop() if len(chosen) == 1 else "auto"
    return Candidate(mesh, leanest, microbatches, moments, collective)


def other_collectives(candidate: Candidate) -> list[Candidate]:
    """The same, but for how the rows of contrastive losses meet."""
    if candidate.batch_shards == 1:
        return []
    every = [dataclasses.replace(candidate, collective=name) for name in ("auto", *NAMES)]
    return [other for other in every if other != candidate]


def _policy(experiment: Experiment, key: str) -> str:
    node: object = experiment
    for name in key.split("."):
        node = getattr(node, name)
    if isinstance(node, bool):
        return "full" if node else "none"
    return str(node)


def meshes(
    devices: int, axes: Mapping[str, tuple[str | None, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """Factorisations of the devices over `AXES` that a model's parameters permit: an axis of the
    mesh has to divide every dimension of at least half of what it could shard.

    Args:
      axes, shapes: path -> logical axes, and shape, of the parameters.
    """
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    tensor = [
        n for n in divisors if n <= MOST_TENSOR and _divides(n, ("mlp", "heads"), axes, shapes)
    ]
    expert = [n for n in divisors if _divides(n, ("expert",), axes, shapes)]
    fsdp = [n for n in divisors if _divides(n, ("embed", "conv_out"), axes, shapes)]
    found = []
    for f, t, e in itertools.product(fsdp, tensor, expert):
        if devices % (f * t * e) == 0:
            found.append((devices // (f * t * e), f, t, e))
    return found


def _divides(n: int, names: tuple[str, ...], axes: Mapping, shapes: Mapping) -> bool:
    """Whether `n` shards divide at least half of the parameters that have such an axis."""
    if n == 1:
        return True
    sizes: dict[bool, int] = {True: 0, False: 0}
    for path, of in axes.items():
        dims = [size for name, size in zip(of, shapes[path]) if name in names]
        if dims:
            sizes[all(size % n == 0 for size in dims)] += math.prod(shapes[path])
    return sizes[True] > sizes[False]


def candidates(experiment: Experiment, shapes: list[tuple[int, ...]]) -> list[Candidate]:
    """All choices for these meshes whose batches divide over them."""
    remat = REMAT if remat_keys(experiment) else (None,)
    if all(kind is bool for kind in remat_keys(experiment).values()) and remat != (None,):
        remat = ("none", "full")
    moments = dict.fromkeys(("float32", "bfloat16"))
    found = []
    for mesh, policy, n, dtype in itertools.product(shapes, remat, MICROBATCHES, moments):
        parts = mesh[0] * mesh[1] * n
        if all(task.data.batch % parts == 0 for task in experiment.tasks.values()):
            found.append(Candidate(mesh, policy, n, dtype))
    return found
