"""A kernel that no chip has run is checked before it is used, and not used where it is wrong."""

import dataclasses
import logging
import threading
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contrastive_cases import unit_rows
from test_contrastive_mesh import mesh_of

from jaxvl.kernels.contrastive import (
    Chunked,
    Diagonal,
    contrastive_loss,
    dispatch,
    plan,
    routes,
    verified,
)


@dataclasses.dataclass(frozen=True)
class Fake(Chunked):
    """Stands for a kernel of a TPU on this CPU.

    Attributes:
      fault: "" for none.
    """

    fault: str = ""
    name: ClassVar[str] = "pallas_tpu"

    def softmax_forward(self, *args):
        if self.fault == "raises":
            raise RuntimeError("Mosaic failed to compile TPU kernel\nand more")
        return super().softmax_forward(*args)

    def softmax_backward(self, *args):
        (dx, dscale), dy = super().softmax_backward(*args)
        if self.fault == "gradient":
            dy = 1.01 * dy
        if self.fault == "nan":
            dx = dx.at[0, 0].set(jnp.nan)
        return (dx, dscale), dy


@pytest.fixture
def pretend(monkeypatch):
    """Makes dispatch take this CPU for a TPU whose kernel has a given fault; returns how often a
    kernel was compared."""
    compared = []
    compare = verified._compare

    def counting(*args):
        compared.append(args)
        return compare(*args)

    def set_up(fault, name="cpu"):
        monkeypatch.setattr(dispatch, "device", lambda: ("tpu", name))
        monkeypatch.setitem(
            dispatch.IMPLEMENTATIONS, "pallas_tpu", lambda *args: Fake(64, 64, fault)
        )
        monkeypatch.setattr(verified, "_compare", counting)
        monkeypatch.setattr(verified, "_verdicts", {})
        monkeypatch.setattr(verified, "ROWS", 100)
        return compared

    return set_up


FAULTS = {
    "gradient": "dv is off by 1.0e-02; 1e-04 is allowed",
    "nan": "du is off by nan",
    "raises": "RuntimeError: Mosaic failed to compile TPU kernel",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_kernel_is_not_used(pretend, caplog, fault):
    compared = pretend(fault)
    with caplog.at_level(logging.INFO, "jaxvl.kernels.contrastive.verified"):
        found = plan((64, 64, 8))
        plan((128, 128, 8))
    assert found.implementation == "chunked"
    assert FAULTS[fault] in found.skipped["pallas_tpu"]
    assert len(compared) == 1, "it is compared once in a process"
    warning, error = (r for r in caplog.records if r.levelno >= logging.WARNING)
    assert "pallas_tpu has not been verified on a cpu" in warning.getMessage()
    assert error.levelno == logging.ERROR and FAULTS[fault] in error.getMessage()


def test_a_right_kernel_is_used_and_its_figures_logged(pretend, caplog):
    compared = pretend("")
    with caplog.at_level(logging.INFO, "jaxvl.kernels.contrastive.verified"):
        assert plan((64, 64, 8)).implementation == "pallas_tpu"
        assert plan((64, 64, 8), kind="sigmoid").implementation == "pallas_tpu"
    assert len(compared) == 2
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert "agrees with the chunked form: loss" in caplog.text and "dbias" in caplog.text


def test_what_has_passed_on_a_chip_is_not_compared_again(pretend, monkeypatch, caplog):
    compared = pretend("gradient")
    monkeypatch.setitem(verified.VERIFIED_ON, "pallas_tpu", ("cpu",))
    assert plan((64, 64, 8)).implementation == "pallas_tpu"
    assert not compared and not caplog.records


def test_a_named_kernel_is_obeyed(pretend):
    compared = pretend("gradient")
    assert plan((64, 64, 8), implementation="pallas_tpu").implementation == "pallas_tpu"
    assert not compared


def test_nothing_is_compared_where_nothing_can_run(pretend, monkeypatch):
    """As when a laptop plans for a pod, or a TPU's host for another topology of its own chips."""
    compared = pretend("gradient", name="TPU v5 lite")
    assert plan((64, 64, 8)).implementation == "pallas_tpu"
    pretend("gradient")
    monkeypatch.setattr(routes, "mesh_devices", lambda: ["a description of a device"])
    assert plan((64, 64, 8)).implementation == "pallas_tpu"
    assert not compared


@pytest.mark.parametrize("fault", ["", "gradient"])
def test_in_the_middle_of_tracing_a_program_for_a_mesh(pretend, fault):
    compared = pretend(fault)
    rng = np.random.default_rng(0)
    u, v = unit_rows(rng, 32, 8), unit_rows(rng, 32, 8)
    with jax.set_mesh(mesh_of((2, 4))):
        got = jax.jit(jax.value_and_grad(contrastive_loss))(u, v, jnp.float32(1.0))
    want = jax.value_and_grad(contrastive_loss)(
        u, v, jnp.float32(1.0), targets=Diagonal(), implementation="chunked"
    )
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], want[1], atol=1e-5)
    assert len(compared) == 1


class Shared:
    """A key-value store as jax's, between threads."""

    def __init__(self):
        self.values = {}
        self.changed = threading.Condition()

    def key_value_set(self, key, value):
        with self.changed:
            assert key not in self.values
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, timeout_in_ms):
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.values, timeout_in_ms / 1000)
            return self.values[key]


def test_all_processes_come_to_the_same_result():
    """A kernel that is wrong on one chip of a pod is used on none."""
    mine = [verified.Verdict({"loss": 0.0}, "dv is off" if i == 2 else "") for i in range(4)]
    store = Shared()
    out = [None] * 4

    def process(i):
        out[i] = verified.agreed(mine[i], "x", range(4), i, store)

    threads = [threading.Thread(target=process, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [v.failure for v in out] == ["process 2: dv is off"] * 2 + ["dv is off"] + [
        "process 2: dv is off"
    ]
