"""Topologies by name: those that Google Cloud has, and what is said of others."""

import os

import pytest

from jaxvl.config import ConfigError
from jaxvl.sharding.topology import compile_only_devices, parse_topology
from jaxvl.slices import SLICES

# As cloud.google.com/tpu/docs lists them (v5p: a part of the list), and those of our own plans.
DOCUMENTED = {
    "v4": "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x12 8x8x16 8x16x16 16x16x16 4x4x16",
    "v5e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    "v5p": "2x2x1 2x2x2 2x4x4 4x4x4 4x4x8 8x8x8 16x16x16 16x16x24 16x20x28 1x1x1 2x1x1 8x8x4",
    "v6e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
}


@pytest.mark.parametrize("kind", DOCUMENTED)
def test_documented_slices_are_taken(kind):
    for size in DOCUMENTED[kind].split():
        assert parse_topology(f"{kind}:{size}").size == size
        assert parse_topology(f"2*{kind}:{size}").slices == 2
    assert set(DOCUMENTED) == set(SLICES)


FLAT = "must be v5e:NxN, as v5e:4x4: 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 or 16x16"
CUBES = "must be v4:NxNxN, as v4:4x4x4: 2x2x1, 2x2x2, 2x2x4, 2x4x4, or multiples of 4 with 4,096 "


@pytest.mark.parametrize(
    "name, said",
    [
        ("v5e:16x16x2", FLAT),
        ("v5e:100x100", FLAT),
        ("v5e:3x4", FLAT),
        ("v5e:5x7", FLAT),
        ("v5e:2x8", FLAT),
        ("v5e:16X16", FLAT),
        ("v5e:44", FLAT),
        ("v5e:0x4", FLAT),
        ("v5e:04x4", FLAT),
        ("v5e:4x4x", FLAT),
        ("2*v5e:3x4", FLAT),
        ("v6e:64x64", FLAT.replace("v5e", "v6e")),
        ("v4:2x2", CUBES),
        ("v4:1x1x1", CUBES),
        ("v4:4x4x6", CUBES),
        ("v4:16x16x20", CUBES),
        ("v5p:16x20x32", "2x4x4, or multiples of 4 with 8,960 chips at most"),
        ("h200:8", "must be h200:1xHOSTSxGPUS, as h200:1x2x8 for 2 hosts of 8"),
        ("h200:1x0x8", "must be h200:1xHOSTSxGPUS"),
    ],
)
def test_other_slices_are_refused_without_the_compiler(monkeypatch, name, said):
    monkeypatch.setenv("TPU_LIBRARY_PATH", os.devnull)
    with pytest.raises(ConfigError) as refused:
        compile_only_devices(name)
    text = str(refused.value)
    assert text.startswith(f"topology: {name!r} must be ") and said in text
    assert "pip install" not in text


@pytest.mark.usefixtures("tpu_compiler")
@pytest.mark.parametrize(
    "name, chips",
    [
        ("v5e:1x1", 1),
        ("v6e:1x1", 1),
        ("v5p:1x1x1", 1),
        ("v5p:2x1x1", 2),
        ("v4:2x2x1", 4),
        ("v5e:2x4", 8),
        ("2*v4:2x2x1", 8),
        ("v4:16x16x16", 4096),
        ("v5p:16x20x28", 8960),
    ],
)
def test_the_compiler_has_the_smallest_and_the_largest(name, chips):
    assert len(compile_only_devices(name)) == chips


@pytest.mark.parametrize(
    "error, hint",
    [
        (RuntimeError("JAX TPU support not installed; cannot generate TPU topology."), True),
        (RuntimeError("INTERNAL: Failed to open libtpu.so: file too short"), True),
        (RuntimeError("INVALID_ARGUMENT: Topology layout is not divisible by"), False),
    ],
)
def test_the_extra_is_named_where_the_compiler_could_not_be_loaded(monkeypatch, error, hint):
    def fail(**_):
        raise error

    monkeypatch.setattr("jaxvl.sharding.topology.topologies.get_topology_desc", fail)
    with pytest.raises(ConfigError) as refused:
        compile_only_devices("v5e:4x4")
    text = str(refused.value)
    assert text.startswith(f"topology: 'v5e:4x4' cannot be compiled for: {error}")
    assert text.endswith(" (the compiler: pip install 'jaxvl[tpu]')") == hint
