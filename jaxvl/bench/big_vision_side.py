"""big_vision's side of `big_vision.py`: a step of its SigLIP, from the files of a checkout.

Model, optimiser and sharding rules are big_vision's own modules, imported. Its update step and its
loss stand inside of `main` of `big_vision/trainers/proj/image_text/siglip.py`, which also opens
datasets, so they are stated here.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import linen
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.stages import Traced

from jaxvl.aliases import Foreign, Tree
from jaxvl.config import check
from jaxvl.sharding.topology import compile_only_devices
from jaxvl.training.experiment import Experiment

HOME = "https://github.com/google-research/big_vision"
OPTION = "--checkout"
# What a step needs, below `big_vision/`.
TWO_TOWERS = "models/proj/image_text/two_towers.py"
VIT = "models/vit.py"
OPTAX = "optax.py"
SHARDING = "sharding.py"
MODULES = (TWO_TOWERS, VIT, OPTAX, SHARDING)
FILES = (
    *MODULES,
    "models/proj/image_text/text_transformer.py",
    "models/common.py",
    "pp/registry.py",
    "utils.py",
)
# Where a package is not called as its module is. Of TensorFlow a step needs the import alone.
PACKAGES = {
    "absl": "absl-py",
    "ml_collections": "ml-collections",
    "tensorflow": "tensorflow-cpu",
}
AXIS = "data"
# What a config of big_vision calls `sharding_strategy`: (pattern of names, rules of `sharding.py`).
STRATEGIES = {
    "replicated": [(".*", "replicate")],
    "fsdp": [(".*", f'fsdp(axis="{AXIS}")')],
}
# `sharding_rules` of its trainer, by default: of the axes of activations, the batch is split.
RULES = [("act_batch", AXIS)]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What both sides share.

    Attributes:
      variant: of both towers, with the pictures' patch: `B/16`.
      length: tokens of a text.
      b2: of Adam, whose moments have the parameters' dtype.
      temperature, bias: of the loss, at first; `temperature` is what multiplies cosines.
    """

    variant: str
    batch: int
    image_size: int
    length: int
    vocabulary: int
    temperature: float
    bias: float
    lr: float
    b2: float
    weight_decay: float
    warmup: int
    steps: int

    @classmethod
    def of(cls, experiment: Experiment, variant: str) -> Sizes:
        """Those of a config of ours with one task of pictures and texts."""
        [task] = experiment.tasks.values()
        optim = experiment.optim
        return cls(
            variant=variant,
            batch=task.data.batch,
            image_size=experiment.preprocess.image_size,
            length=experiment.model.text.positions,
            vocabulary=experiment.tokenizer.vocab_size,
            temperature=experiment.model.init_scale,
            bias=experiment.model.init_bias,
            lr=optim.lr,
            b2=optim.b2,
            weight_decay=optim.weight_decay,
            warmup=optim.warmup,
            steps=experiment.steps,
        )


@dataclasses.dataclass(frozen=True)
class Library:
    """Modules of a checkout."""

    two_towers: Foreign
    vit: Foreign
    optax: Foreign
    sharding: Foreign


def check_checkout(checkout: pathlib.Path) -> None:
    """Raises ConfigError where a file that a step needs, or a package that it imports, is
    missing."""
    folder = checkout / "big_vision"
    for file in FILES:
        problem = f"{checkout} lacks big_vision/{file}; must be a clone of {HOME}"
        check((folder / file).is_file(), OPTION, problem)
    for file in FILES:
        for name in _imported(folder / file):
            there = name == "big_vision" or importlib.util.find_spec(name) is not None
            package = PACKAGES.get(name, name)
            problem = f"big_vision/{file} imports {name}, which is not installed: pip install "
            check(there, OPTION, problem + package)


def _imported(file: pathlib.Path) -> Iterator[str]:
    """The packages that a module imports when it is imported itself."""
    for statement in ast.parse(file.read_text()).body:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                yield alias.name.partition(".")[0]
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            yield statement.module.partition(".")[0]


def load(checkout: pathlib.Path) -> Library:
    """Imports what a step needs; the checkout stays on `sys.path`, as models import others by
    name.

    Raises:
      ConfigError: see `check_checkout`; or another big_vision is found instead.
    """
    check_checkout(checkout)
    checkout = checkout.resolve()
    sys.path.insert(0, str(checkout))
    found = []
    for file in MODULES:
        name = "big_vision." + file.removesuffix(".py").replace("/", ".")
        module = importlib.import_module(name)
        own = pathlib.Path(module.__file__).is_relative_to(checkout)
        check(own, OPTION, f"{module.__file__} is found instead of the one of {checkout}")
        found.append(module)
    return Library(*found)


def make_model(library: Library, sizes: Sizes) -> linen.Module:
    """SigLIP: layers scanned and recomputed as a whole, the picture's tower in bfloat16, with its
    table of positions. The text's has no dtype to choose: its activations are float32."""
    layers = dict(scan=True, remat_policy="nothing_saveable")
    image = dict(variant=sizes.variant, pool_type="map", dtype_mm="bfloat16", **layers)
    tower = sizes.variant.partition("/")[0]
    return library.two_towers.Model(
        image=image,
        text=dict(variant=tower, vocab_size=sizes.vocabulary, **layers),
        out_dim=(None, library.vit.decode_variant(tower)["width"]),
        temperature_init=sizes.temperature,
        bias_init=sizes.bias,
    )


def make_optimiser(library: Library, sizes: Sizes, params: Tree) -> optax.GradientTransformation:
    """AdamW with warm-up and cosine. `params`: their shapes."""
    config = ml_collections.ConfigDict(
        dict(
            optax_name="scale_by_adam",
            optax=dict(b2=sizes.b2),
            lr=sizes.lr,
            wd=sizes.weight_decay,
            schedule=dict(decay_type="cosine", warmup_steps=sizes.warmup),
        )
    )
    length = dict(total_steps=sizes.steps, batch_size=sizes.batch)
    optimiser, _ = library.optax.make(config, params, sched_kw=length)
    return optimiser


def make_update(
    library: Library, model: linen.Module, optimiser: optax.GradientTransformation
) -> Callable[..., tuple[Tree, Mapping[str, jax.Array]]]:
    """`(state, rng, batch) -> (state, metrics)`, as `update_fn` of big_vision's trainer."""

    def update(state: Tree, rng: jax.Array, batch: Tree) -> tuple[Tree, Mapping[str, jax.Array]]:
        step = library.optax.get_count(state["opt"], jittable=True)
        _, dropout = jax.random.split(jax.random.fold_in(rng, step))

        def loss_of(params: Tree) -> jax.Array:
            """Zhai et al. 2023, algorithm 1; `loss_fn` of the trainer."""
            image, text, extras = model.apply(
                {"params": params},
                batch["image"],
                batch["labels"],
                train=True,
                rngs={"dropout": dropout},
            )
            logits = jnp.dot(image, text.T) * extras["t"] + extras["b"]
            signs = 2 * jnp.eye(len(image)) - 1
            return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(signs * logits), axis=-1))

        loss, gradients = jax.value_and_grad(loss_of)(state["params"])
        updates, opt = optimiser.update(gradients, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        metrics = {
            "training_loss": loss,
            "l2_grads": optax.global_norm(gradients),
            "l2_params": optax.global_norm(params),
            "l2_updates": optax.global_norm(updates),
        }
        return {"params": params, "opt": opt}, metrics

    return update


@dataclasses.dataclass(frozen=True)
class TracedStep:
    """A step that is not compiled yet.

    Attributes:
      state, shardings: of parameters (`params`) and optimiser (`opt`), shapes and where they lie.
      devices: how many.
    """

    traced: Traced
    state: Tree
    shardings: Tree
    devices: int


def trace(library: Library, sizes: Sizes, topology: str, strategy: str) -> TracedStep:
    """The step on a mesh of all devices, the state donated.

    Args:
      strategy: of `STRATEGIES`.

    Raises:
      ConfigError: the topology cannot be compiled for.
    """
    devices = compile_only_devices(topology)
    grid = mesh_utils.create_device_mesh((len(devices),), devices)
    mesh = Mesh(grid, (AXIS,), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(AXIS))
    pixels = (sizes.batch, sizes.image_size, sizes.image_size, 3)
    batch = {
        "image": jax.ShapeDtypeStruct(pixels, jnp.float32, sharding=rows),
        "labels": jax.ShapeDtypeStruct((sizes.batch, sizes.length), jnp.int32, sharding=rows),
    }
    model = make_model(library, sizes)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(model.init, key, batch["image"], batch["labels"])["params"]
    optimiser = make_optimiser(library, sizes, params)
    state = {"params": params, "opt": jax.eval_shape(optimiser.init, params)}
    shardings = library.sharding.infer_sharding(state, strategy=STRATEGIES[strategy], mesh=mesh)

    def put(shape: jax.ShapeDtypeStruct, where: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)

    update = jax.jit(
        make_update(library, model, optimiser),
        donate_argnums=0,
        out_shardings=(shardings, everywhere),
    )
    # As its trainer has it: flax reads the mesh of the activations' axes from this context.
    with mesh, linen.logical_axis_rules(RULES):
        placed = jax.tree.map(put, state, shardings)
        traced = update.trace(placed, put(key, everywhere), batch)
    return TracedStep(traced, state, shardings, len(devices))
