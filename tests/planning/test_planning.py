"""Prices, the range, which rule sharded what, and what a search tries and leaves out."""

import dataclasses
import json
import typing

import jax
import numpy as np
import pytest
import yaml
from jax.sharding import AxisType
from training import tiny

from jaxvl import plan
from jaxvl.config import ConfigError
from jaxvl.nn.stack import Remat
from jaxvl.planning import prices
from jaxvl.planning.candidates import (
    AGAIN,
    LEANER,
    Candidate,
    candidates,
    meshes,
    other_collectives,
    own_choice,
)
from jaxvl.planning.estimate import Model, estimate
from jaxvl.planning.figures import Plan, Refusal, StateBytes, StepBytes, StepFigures
from jaxvl.planning.measure import refusal
from jaxvl.planning.parameters import by_axes, sharded_parameters
from jaxvl.planning.roofline import EFFICIENCY, Roofline
from jaxvl.planning.search import FITS, NO_ROOM, NOT_TRIED, SLOWER, Guess, Trial, judge, next_guess
from jaxvl.sharding.mesh import MeshConfig, make_mesh
from jaxvl.sharding.topology import (
    COMPILED,
    GPUS,
    chip,
    compile_only_devices,
    parse_topology,
    target_config,
)

GIB = 2**30


def test_every_chip_has_a_price_or_says_that_none_was_found():
    table = prices.read_prices(None)
    assert set(table) == set(COMPILED)
    for price in table.values():
        assert price.price is None or (price.source != "none" and price.kind and price.date)


def test_a_price_of_ones_own(tmp_path, capsys):
    assert plan.main(["--show-prices"]) == 0
    own = yaml.safe_load(capsys.readouterr().out)
    own["v5e"]["price"] = 0.5
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(own))
    assert prices.read_prices(str(tmp_path / "mine.yaml"))["v5e"].price == 0.5


@pytest.mark.parametrize(
    "text, named",
    [
        ("v5e: 1.2", "v5e"),
        ("v5e: {price: -1}", "-1"),
        ("v5e: {price: 1, colour: red}", "colour"),
        ("- 1", "must map"),
        ("v5e: {price: [", "--prices"),
    ],
)
def test_a_wrong_price_is_told(tmp_path, text, named):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match="--prices") as error:
        prices.read_prices(str(tmp_path / "mine.yaml"))
    assert named in str(error.value) and "\n" not in str(error.value)


def test_a_price_of_examples():
    # 16 chips at 1 $ an hour, 1,000 examples a second: 10^9 take 10^6 s = 277.8 h.
    assert prices.of_examples(1.0, 16, 1000.0) == pytest.approx(16 * 1e6 / 3600)


def test_the_range():
    roofline = Roofline(compute=3.0, memory=2.0, ici=1.0, dcn=0.5, exposed=0.7, scheduled=None)
    assert (roofline.limit, roofline.low) == ("compute", 3.0)
    assert roofline.high == 3.0 / EFFICIENCY + 3.5
    slow = dataclasses.replace(roofline, scheduled=40.0, ici=5.0)
    assert (slow.limit, slow.low, slow.high) == ("network in a slice", 5.0, 40.0)


def test_topologies():
    assert parse_topology("2*v5e:16x16") == parse_topology("2*v5e:16x16")
    parsed = parse_topology("2*v5e:16x16")
    assert (parsed.slices, parsed.name, parsed.size) == (2, "v5e", "16x16")
    assert parse_topology("v4").slices == 1 and parse_topology("cpu:8").chip is None
    for wrong in ("v9:2x2", "x*v5e:2x2", "0*v5e:2x2", "2*h200:1x1x8"):
        with pytest.raises(ConfigError, match="topology"):
            parse_topology(wrong)
    with pytest.raises(ConfigError, match="CPU"):
        chip("cpu:8")
    for gpu in GPUS:
        assert gpu.upper() in target_config(gpu)
    assert "major: 10 minor: 0" in target_config("b200")


def test_messages_of_the_compiler_are_read():
    state = 3 * GIB
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 23.30G of 15.75G hbm."
    )
    found = refusal("pairs", message, state)
    assert found.needed == pytest.approx(23.3 * GIB)
    assert found.available == pytest.approx(15.75 * GIB)
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (40.00G) exceeds available HBM (15.75G)."
    )
    assert refusal("pairs", message, state).needed == pytest.approx(43 * GIB)
    assert refusal("pairs", "INTERNAL: something else", state).needed is None


def mesh(**sizes):
    types = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types)


def test_which_rule_sharded_what_and_why_not():
    shapes = {
        "kernel": jax.ShapeDtypeStruct((8, 12), "float32"),
        "square": jax.ShapeDtypeStruct((8, 8), "float32"),
        "odd": jax.ShapeDtypeStruct((6, 3), "float32"),
        "scale": jax.ShapeDtypeStruct((8,), "float32"),
    }
    axes = {
        "kernel": ("embed", "mlp"),
        "square": ("embed", "embed"),
        "odd": ("embed", "mlp"),
        "scale": ("norm",),
    }
    on = mesh(data=1, fsdp=4, tensor=2, expert=1)
    found = {p.path: p for p in sharded_parameters(axes, shapes, on)}
    assert found["kernel"].over == ("fsdp", "tensor")
    assert (found["kernel"].bytes, found["kernel"].bytes_per_device) == (384, 48)
    assert not found["kernel"].reasons and not found["scale"].reasons
    assert found["square"].over == ("fsdp", "")
    assert found["square"].reasons == ("embed: fsdp shards another dimension",)
    assert found["odd"].reasons == (
        "embed: 6 is not divisible by fsdp = 4",
        "mlp: 3 is not divisible by tensor = 2",
    )
    assert by_axes(list(found.values())) == {"fsdp x tensor": 96, "fsdp": 64, "no axis": 26}


def test_meshes_that_the_parameters_permit():
    shapes = {"kernel": (8, 12), "experts": (4, 8, 12)}
    axes = {"kernel": ("embed", "mlp"), "experts": ("expert", "embed", "mlp")}
    found = meshes(8, axes, shapes)
    assert (8, 1, 1, 1) in found and (1, 2, 1, 4) in found and (1, 2, 4, 1) in found
    assert all(e <= 4 and t in (1, 2, 4) for _, _, t, e in found)  # 12 is not divisible by 8
    dense = meshes(8, {"kernel": ("embed", "mlp")}, {"kernel": (8, 12)})
    assert all(e == 1 for *_, e in dense)


def test_every_remat_policy_can_be_a_config_s_own():
    for policy in typing.get_args(Remat):
        experiment = tiny.experiment()
        image = dataclasses.replace(experiment.model.image, remat=policy)
        model = dataclasses.replace(experiment.model, image=image)
        experiment = dataclasses.replace(experiment, model=model)
        own = own_choice(experiment, (8, 1, 1, 1))
        assert own.remat == policy
        assert own.hunger(16)[0] == -LEANER.index(policy)
        assert policy in AGAIN


def test_candidates_keep_the_batch_divisible():
    experiment = tiny.experiment()  # a batch of 16
    own = own_choice(experiment, (8, 1, 1, 1))
    assert own == Candidate((8, 1, 1, 1), "none", 1, "float32")
    found = candidates(experiment, [(8, 1, 1, 1), (4, 2, 1, 1), (1, 1, 8, 1)])
    assert {c.microbatches for c in found if c.mesh == (8, 1, 1, 1)} == {1, 2}
    assert {c.microbatches for c in found if c.mesh == (1, 1, 8, 1)} == {1, 2, 4, 8}
    assert {c.remat for c in found} == {"none", "dots", "full", "chunks"}
    options = found[-1].assignments(experiment)
    assert options["model.image.remat"] == options["model.text.remat"] == "chunks"
    assert options["tasks.pairs.microbatches"] == "8"
    assert options["tasks.pairs.collective"] == "auto"
    assert [c.collective for c in other_collectives(own)] == ["gather", "ring", "grid"]
    ring = dataclasses.replace(own, collective="ring")
    assert other_collectives(ring)[0] == own
    assert not other_collectives(Candidate((1, 1, 8, 1), "none", 1, "float32"))


def guess(mesh=(8, 1, 1, 1), remat="none", microbatches=1, state=1, compute=1.0):
    roofline = Roofline(compute, 0.0, 0.0, 0.0, 0.0, None)
    return Guess(Candidate(mesh, remat, microbatches, "float32"), state * GIB, roofline)


def trial(of, outcome, needed=None, seconds=None):
    size = None if needed is None else needed * GIB
    known = of.roofline.high
    return Trial(of.candidate, {}, of.state, known, outcome, needed=size, seconds=seconds)


def test_a_search_goes_by_the_trial_with_the_same_mesh():
    of = guess(mesh=(4, 2, 1, 1), state=2)
    other = guess(mesh=(1, 8, 1, 1), state=1)
    trials = [trial(g, FITS, needed=16, seconds=(1.0, 2.0)) for g in (of, other)]
    ring = dataclasses.replace(of, candidate=dataclasses.replace(of.candidate, collective="ring"))
    assert judge(ring, trials, 64, 16 * GIB)[0] == FITS
    assert judge(ring, trials[1:], 64, 16 * GIB)[0] == NOT_TRIED  # 2 + (16 - 1) GiB


def test_what_a_search_never_compiles():
    rows, memory = 64, 16 * GIB
    outcome, reason = judge(guess(state=20), [], rows, memory)
    assert outcome == NO_ROOM and "state alone needs 20.00 GiB, 4.00 too many" in reason
    full = trial(guess(remat="dots"), NO_ROOM, needed=19)
    outcome, reason = judge(guess(remat="none"), [full], rows, memory)
    assert outcome == NO_ROOM and "3.00 GiB too many" in reason
    # Less may have room: a leaner policy, chunks, more shards of the batch or of widths, a smaller
    # state.
    for leaner in (
        guess(remat="full"),
        guess(remat="dots", microbatches=2),
        guess(remat="dots", mesh=(1, 4, 2, 1)),
        guess(remat="dots", state=0.5),
    ):
        assert judge(leaner, [full], rows, memory)[0] == FITS, leaner
    good = trial(guess(), FITS, needed=10, seconds=(1.0, 2.0))
    outcome, reason = judge(guess(compute=2.5), [good], rows, memory)
    assert outcome == SLOWER and "compute alone takes 2.500 s, the best 2.000 s" in reason
    # The estimate of 2 s was right, then half a second too short: so may that of 1.6 s be.
    assert judge(guess(compute=0.8), [good], rows, memory)[0] == FITS
    late = dataclasses.replace(good, seconds=(1.0, 2.5))
    assert judge(guess(compute=0.9), [late], rows, memory)[0] == FITS
    assert judge(guess(compute=1.01), [late], rows, memory)[0] == FITS  # who knows
    assert judge(guess(compute=1.1, remat="full"), [late], rows, memory)[0] == FITS
    outcome, reason = judge(guess(compute=1.1), [late], rows, memory)
    assert outcome == SLOWER and "expected 2.700 s, the best 2.500 s" in reason
    # 9 GiB of activations, of twice the rows 18, unless each device has half of the widths.
    several = trial(guess(microbatches=2), FITS, needed=10, seconds=(1.0, 2.0))
    outcome, reason = judge(guess(compute=0.9), [several], rows, memory)
    assert outcome == NOT_TRIED and "expected 19.00 GiB" in reason
    assert judge(guess(mesh=(4, 1, 2, 1), compute=0.9), [good], rows, memory)[0] == FITS


def test_what_fits_needs_no_leaner_form():
    """Of what only saves memory beside one that fits, nothing is compiled."""
    rows, memory = 64, 16 * GIB
    good = trial(guess(remat="dots", microbatches=2), FITS, needed=10, seconds=(1.0, 2.0))
    spares = lambda of: judge(of, [good], rows, memory)
    outcome, reason = spares(guess(remat="dots", microbatches=8))
    assert outcome == SLOWER and "remat dots; 2 microbatches; float32 moments, which fits" in reason
    smaller = dataclasses.replace(good.candidate, moments="bfloat16")
    outcome, reason = spares(dataclasses.replace(guess(), candidate=smaller))
    assert outcome == SLOWER and "to save memory" in reason
    for other in (
        guess(remat="full", microbatches=2),  # writes less
        guess(remat="none", microbatches=4),
        guess(remat="dots", microbatches=2, mesh=(4, 2, 1, 1)),
        guess(remat="dots", microbatches=2),
    ):
        assert "to save memory" not in spares(other)[1], other


def test_what_is_likely_to_have_room_comes_first():
    rows, memory = 64, 16 * GIB
    failed = trial(guess(), NO_ROOM, needed=61)  # 60 of activations
    chunks = [guess(microbatches=n) for n in (2, 4, 8)]
    # 60 / 4 + 1 has just room.
    assert next_guess(chunks, [failed], rows, memory).candidate.microbatches == 4
    assert next_guess(chunks[:1], [failed], rows, memory) is chunks[0]


def test_an_estimate_before_compiling():
    chip = COMPILED["v5e"]
    known = Model(flops=6e15, width=1024, parameters=10**9)
    copies = Candidate((16, 1, 1, 1), "none", 1, "float32")
    found = estimate(copies, known, state=12 * 10**9, parameters=4 * 10**9, chip=chip)
    assert found.compute == pytest.approx(6e15 / 16 / chip.flops)
    assert found.memory == pytest.approx(24e9 / chip.bandwidth)
    # The gradient's ring all-reduce.
    assert found.ici == pytest.approx(2 * 15 / 16 * 4e9 / (2 * chip.link))
    # Split over 16: gathered twice in bfloat16, its gradient scattered in float32.
    split = dataclasses.replace(copies, mesh=(1, 16, 1, 1))
    found = estimate(split, known, state=12 * 10**9 // 16, parameters=4 * 10**9 // 16, chip=chip)
    assert found.ici == pytest.approx(15 / 16 * 1e9 * (2 + 2 + 4) / (2 * chip.link))
    # Recomputation gathers once more and computes a third more.
    again = dataclasses.replace(split, remat="full")
    slower = estimate(again, known, state=12 * 10**9 // 16, parameters=4 * 10**9 // 16, chip=chip)
    assert slower.ici / found.ici == pytest.approx(10 / 8)
    assert slower.compute / found.compute == pytest.approx(4 / 3)


@pytest.fixture
def known_needs(monkeypatch):
    """Compiling is replaced by a law: a batch of 16 needs 64 GiB of activations, half of that with
    dots, a quarter with full, a fifth with chunks; a microbatch its share. A step takes 1 s, a
    third more with full, some more with chunks, half a second more for each microbatch, and 1 %
    less in a grid."""
    asked = []

    def measured(experiment, setting, stop_at_refusal):
        assert stop_at_refusal
        mesh = experiment.mesh.shape(len(setting.devices))
        remat = experiment.model.image.remat
        n = experiment.tasks["pairs"].microbatches
        share = {"none": 1, "dots": 0.5, "full": 0.25, "chunks": 0.2}[remat]
        needed = 64 * share / n / mesh[0] / mesh[1] * 4
        collective = experiment.tasks["pairs"].collective
        asked.append((mesh, remat, n, experiment.optim.moment_dtype, collective))
        size = StepBytes(0, 0, int(needed * GIB), 0, 0, None)
        seconds = {"none": 1.0, "dots": 1.1, "full": 4 / 3, "chunks": 1.4}[remat] + (n - 1) / 2
        seconds *= 0.99 if collective == "grid" else 1
        roofline = Roofline(seconds, 0.0, 0.0, 0.0, 0.0, None)
        step = StepFigures("pairs", 16, 1.0, 1.0, size, 1.0, (), roofline, None, None, 0, 1.0)
        state = StateBytes(1, 1, 0, 0, 0, 0)
        refused = ()
        if needed > 16:
            refused = (Refusal("pairs", "no room", needed * GIB, 16.0 * GIB),)
        return Plan(
            topology=setting.name,
            devices=4,
            slices=1,
            quick=False,
            mesh={},
            parameters=1,
            memory=16.0 * GIB,
            state=state,
            sharding={},
            sharded=(),
            steps=() if refused else (step,),
            refused=refused,
        )

    monkeypatch.setattr("jaxvl.planning.search.measure", measured)
    return asked


@pytest.mark.usefixtures("tpu_compiler")
def test_a_search_finds_the_fastest_that_fits(known_needs, tmp_path, capsys):
    config = tiny.config_file(tmp_path / "config.py")
    written = tmp_path / "search.json"
    options = ["--topology=v5e:2x2", "--search", f"--json={written}"]
    assert plan.main([f"--config={config}", *options]) == 0
    found = json.loads(written.read_text())
    # As it is: 64 GiB. With dots 32, full 16: just room; dots in two chunks takes longer.
    assert known_needs[0][:3] == ((4, 1, 1, 1), "none", 1)
    best = found["trials"][0]
    assert best["outcome"] == "fits" and best["assignments"]["model.image.remat"] == "full"
    assert best["assignments"]["tasks.pairs.microbatches"] == "1"
    assert best["assignments"]["tasks.pairs.collective"] == "grid"
    assert best["seconds"] == pytest.approx([0.99 * 4 / 3, 0.99 * 8 / 3])
    seconds = [t["seconds"][1] for t in found["trials"] if t["outcome"] == "fits"]
    assert seconds == sorted(seconds)
    as_it_is = next(t for t in found["trials"] if not t["assignments"])
    assert as_it_is["outcome"] == "no room" and "48.00 too many" in as_it_is["reason"]
    # Collectives are tried for the best alone.
    tried = known_needs[-3:]
    assert [k[4] for k in tried] == ["gather", "ring", "grid"]
    assert {k[:4] for k in tried} <= {k[:4] for k in known_needs[:-3]}
    assert {k[4] for k in known_needs[:-3]} == {"auto"}
    # What needs as much as one that had no room is never compiled.
    assert len(known_needs) < len(found["trials"])
    assert [k[:3] for k in known_needs].count(((4, 1, 1, 1), "none", 1)) == 1
    printed = capsys.readouterr()
    assert "--config.model.image.remat=full" in printed.out and "lost" in printed.out
    assert "compiling data 4; remat none" in printed.err


@pytest.mark.usefixtures("tpu_compiler")
def test_a_search_ends_with_its_budget(known_needs, tmp_path):
    config = tiny.config_file(tmp_path / "config.py")
    written = tmp_path / "search.json"
    options = ["--topology=v5e:2x2", "--search", "--budget=0.001", f"--json={written}"]
    assert plan.main([f"--config={config}", *options]) == 1
    found = json.loads(written.read_text())
    assert not known_needs
    assert {t["outcome"] for t in found["trials"]} == {"not compiled"}
    assert all("budget" in t["reason"] for t in found["trials"])


# --------------------------------------------------------------------------------------------------
# Meshes on topologies that are not here


@pytest.mark.usefixtures("tpu_compiler")
def test_data_goes_over_the_slices():
    devices = compile_only_devices("2*v5e:2x2")
    assert len(devices) == 8
    mesh = make_mesh(MeshConfig(data=-1, fsdp=2), devices)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1, "expert": 1}
    slices = [[device.slice_index for device in row.flat] for row in mesh.devices]
    assert slices == [[0, 0], [0, 0], [1, 1], [1, 1]]


@pytest.mark.usefixtures("tpu_compiler")
def test_an_axis_that_is_longer_than_a_slice_goes_over_several():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8), compile_only_devices("2*v5e:2x2"))
    assert [d.slice_index for d in mesh.devices.flat] == [0] * 4 + [1] * 4


@pytest.mark.usefixtures("tpu_compiler")
def test_an_axis_may_be_a_part_of_a_side():
    mesh = make_mesh(MeshConfig(fsdp=16), compile_only_devices("v5p:8x8x4"))
    assert mesh.shape["data"] == 16
    for group in mesh.devices.reshape(16, 16):
        box = np.ptp([device.coords for device in group], axis=0) + 1
        assert np.prod(box) == 16, "the devices of a shard are a block of the grid"
