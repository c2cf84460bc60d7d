"""Every test sees 8 simulated CPU devices; that has to be said before jax is imported."""

import contextlib
import gc
import importlib.metadata
import importlib.util
import inspect
import os
import pathlib
import shutil
import tempfile
import threading

# Corpora and vocabularies that tests make go to a folder of their own, kept between runs.
KEPT = pathlib.Path(tempfile.gettempdir()) / "jaxvl-tests"
os.environ.setdefault("JAXVL_CACHE", str(KEPT))
os.environ["JAX_PLATFORMS"] = "cpu"
flags = [
    f
    for f in os.environ.get("XLA_FLAGS", "").split()
    if "xla_force_host_platform_device_count" not in f
]
# Tests compile much and compute little: the compiler's costly passes are left out, which halves the
# time of the suite.
quick = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if importlib.metadata.version("jaxlib").startswith(
    "0.10."
):  # a flag that XLA does not know ends the process
    quick.append(
        "--xla_cpu_use_fusion_emitters=false"
    )  # the older emitters compile in two thirds of the time
    quick.append(
        "--xla_cpu_parallel_codegen_split_count=1"
    )  # there is a process for every core already
os.environ["XLA_FLAGS"] = " ".join(
    [*quick, *flags, "--xla_force_host_platform_device_count=8"]
)  # the last one given counts
os.environ.setdefault(
    "NPROC", "32"
)  # on few cores the CPU collectives' thread pool would otherwise starve and abort
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test downloads a model
# Long compilations of several tests, processes of tests or runs of the suite are done once. A
# damaged file is compiled again. Short ones are not kept: writing one takes as long as making it.
# Jax has no limit of size to keep: it would look at every file before it writes one, a tenth of the
# suite's time.
PROGRAMS = KEPT / "programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", "-1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
# No test reads from which line an operation came.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import jax
import pytest
from jax._src.interpreters import mlir, partial_eval

jax.config.update("jax_threefry_partitionable", True)
# A traced array is asked for its sharding at every random number that flax draws, and answers with
# the story of its origin, which nobody reads: 5 % of the suite's time.
if hasattr(partial_eval.DynamicJaxprTracer, "_origin_msg"):
    partial_eval.DynamicJaxprTracer._origin_msg = lambda self: ""


# Every program is lowered in an MLIR context of its own, which takes 7 ms to make: of small
# programs, a fifth of the time. Here several in turn are lowered in one; what they hold of
# constants lives as long as it. One that is lowered in the middle of another has its own, else
# parts of it would come into the other.
class _Contexts(threading.local):
    left = 0

    def take(self):
        with contextlib.suppress(ValueError):  # there is no current one
            if mlir.ir.Context.current is not None:
                return mlir.make_ir_context()
        if not self.left:
            self.context = mlir.make_ir_context()
            self.left = 50
        self.left -= 1
        return self.context


contexts = _Contexts()
lowering = getattr(mlir, "ModuleContext", None)
if lowering is not None and "context" in inspect.signature(lowering.__init__).parameters:
    init = lowering.__init__

    def in_a_known_context(self, *args, context=None, **kwargs):
        init(self, *args, context=context or contexts.take(), **kwargs)

    lowering.__init__ = in_a_known_context


def pytest_configure(config):
    """Programs of earlier runs are removed where they have become many."""
    if "PYTEST_XDIST_WORKER" in os.environ or not PROGRAMS.is_dir():
        return
    with os.scandir(PROGRAMS) as files:
        size = sum(file.stat().st_size for file in files)
    if size > 2 * 2**30:
        shutil.rmtree(PROGRAMS, ignore_errors=True)


def pytest_collection_finish():
    """What has been imported stays, and the collector need not look at it again, which took 8 % of
    the time of runs in miniature."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 10)


@pytest.fixture(scope="session", autouse=True)
def eight_devices():
    assert jax.device_count() == 8, "tests must see 8 CPU devices"


@pytest.fixture(scope="session")
def tpu_compiler():
    """Skips where libtpu is not installed, and only there."""
    path = os.environ.get("TPU_LIBRARY_PATH")
    if not (path and pathlib.Path(path).is_file()) and importlib.util.find_spec("libtpu") is None:
        pytest.skip("no TPU compiler; launch/test.sh installs it")


@pytest.fixture(scope="session", autouse=True)
def first_states_are_made_operation_by_operation():
    """A run's first state is drawn by operations that earlier runs have compiled, not by a program
    of its own, which takes longer to compile than the step; `training/test_step.py` has that."""
    from jaxvl.training import setup

    fresh_state = setup.fresh_state

    def known(*args):
        fresh, shapes, shardings = fresh_state(*args)

        def constants(seed=None):
            del seed  # an argument of the program, and the experiment's own
            with jax.ensure_compile_time_eval():
                return fresh()

        return constants, shapes, shardings

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "fresh_state", known)
        yield


@pytest.fixture(scope="module")
def one_device():
    """Runs have one device, where meshes are not what is tested: their steps compile in half the
    time."""
    from jaxvl.sharding.mesh import make_mesh

    def first(config):
        return make_mesh(config, jax.devices()[:1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxvl.train.make_mesh", first)
        patch.setattr("jaxvl.training.restore.make_mesh", first)
        yield


@pytest.fixture(autouse=True)
def no_mesh_is_left_behind():
    yield
    assert jax.sharding.get_abstract_mesh().empty, (
        "the test left a mesh set, which changes what later ones compute"
    )


@pytest.fixture(scope="module", autouse=True)
def programs_are_dropped():
    """Drops the compiled programs of earlier files in time: each holds memory maps, and Linux kills
    a process at 65,530 of them."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()
