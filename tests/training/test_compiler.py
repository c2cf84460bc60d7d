"""Flags that the compilers are told: each is known to its compiler, the user's win, and a step is
compiled with them."""

import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
import tiny
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvl.config import ConfigError, to_dict
from jaxvl.sharding.topology import compile_only_devices
from jaxvl.training.compiler import CPU, GPU, TPU, compiler_options, describe_options
from jaxvl.training.resume import check_resumable


@pytest.fixture(autouse=True)
def no_flags(monkeypatch):
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "")


def mesh_of(platform, kind, slices=1):
    """Of descriptions of devices."""
    devices = [
        types.SimpleNamespace(platform=platform, device_kind=kind, slice_index=i)
        for i in range(slices)
    ]
    return types.SimpleNamespace(devices=np.array(devices))


def test_flags_are_chosen_by_platform_chip_and_slices():
    chosen = lambda *mesh: set(compiler_options("recommended", mesh_of(*mesh)))
    names = lambda flags: {flag.name for flag in flags}
    assert chosen("gpu", "NVIDIA H100") == names(GPU)
    assert chosen("tpu", "TPU v6 lite", 2) == names(TPU)
    assert names(TPU) - chosen("tpu", "TPU v5 lite", 2) == {"xla_tpu_scoped_vmem_limit_kib"}
    between = {flag.name for flag in TPU if flag.several}
    assert names(TPU) - chosen("tpu", "TPU v6 lite") == between and len(between) == 2
    assert chosen("cpu", "cpu") == names(CPU)
    assert not compiler_options("default", mesh_of("tpu", "TPU v6 lite"))
    assert set(compiler_options("default", mesh_of("cpu", "cpu"))) == names(CPU)


def test_flags_of_the_user_win_and_are_shown(monkeypatch):
    mine = "--xla_gpu_enable_latency_hiding_scheduler=false"
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=x {mine}")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_enable_async_all_gather=false")
    gpu = compiler_options("recommended", mesh_of("gpu", "NVIDIA H100"))
    tpu = compiler_options("recommended", mesh_of("tpu", "TPU v5"))
    assert "xla_gpu_enable_latency_hiding_scheduler" not in gpu and len(gpu) == len(GPU) - 1
    assert "xla_enable_async_all_gather" not in tpu
    line = describe_options("recommended", gpu)
    assert "xla_gpu_enable_pipelined_all_reduce=True" in line
    assert line.endswith("xla_dump_to=x, " + mine[2:] + ", xla_enable_async_all_gather=false")


def test_each_says_why_and_who():
    for flag in (*TPU, *GPU, *CPU):
        assert flag.reason and flag.source.count(".") >= 1, flag


@pytest.mark.parametrize("flag", (*GPU, *CPU), ids=lambda flag: flag.name)
def test_flags_of_gpus_and_cpus_are_known(flag):
    """XLA's options are one list for CPUs and GPUs. What it does not know, it refuses."""
    lowered = jax.jit(lambda x: x + 1).lower(jnp.ones(3))
    lowered.compile(compiler_options={flag.name: flag.value})
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        lowered.compile(compiler_options={f"{flag.name}_not": flag.value})


def test_gpu_flags_may_stand_in_the_environment():
    """As whoever sets them by hand would: a flag that is not known ends the process."""
    program = "import jax; jax.devices()"

    def status(flags):
        env = {**os.environ, "PYTHONPATH": str(processes.ROOT), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env=env | {"XLA_FLAGS": flags}, capture_output=True)

    flags = " ".join(f"--{flag.name}={str(flag.value).lower()}" for flag in GPU)
    assert status(flags).returncode == 0
    refused = status(f"{flags} --xla_gpu_not_a_flag=true")
    assert refused.returncode != 0 and b"xla_gpu_not_a_flag" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2", "v5p:2x2x1", "2*v5e:2x2"])
def test_a_tpu_compiler_takes_them(tpu_compiler, topology):
    mesh = Mesh(np.array(compile_only_devices(topology)), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((64, 512), jnp.bfloat16, sharding=rows)
    w = jax.ShapeDtypeStruct((512, 512), jnp.bfloat16, sharding=rows)
    loss = lambda w, x: jnp.sum((x @ w).astype(jnp.float32) ** 2)
    lowered = jax.jit(jax.grad(loss)).lower(w, x)
    options = compiler_options("recommended", mesh)
    assert ("xla_tpu_scoped_vmem_limit_kib" in options) == topology.startswith("v6e")
    assert ("xla_tpu_enable_data_parallel_all_reduce_opt" in options) == topology.startswith("2*")
    lowered.compile(compiler_options=options)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_tpu_not_a_flag"):
        lowered.compile(compiler_options=options | {"xla_tpu_not_a_flag": True})


def test_a_run_may_go_on_with_other_flags_attention_and_recomputation():
    """They change no number beyond rounding; another model is still refused."""
    model = tiny.config().to_dict()["model"]

    def resumed(changes=(), **root):
        tower = {**model["image"], **dict(changes)}
        return tiny.experiment(model={**model, "image": tower}, **root)

    there = tiny.experiment()
    frame = dict(config=to_dict(there), step=6, preprocess=there.preprocess.to_json())
    others = dict(attention="xla", remat="full", scan=False)
    check_resumable(resumed(others, compiler="recommended"), None, frame)
    with pytest.raises(ConfigError, match=r"model\.image\.qk_norm: differs"):
        check_resumable(resumed(dict(qk_norm=True)), None, frame)
