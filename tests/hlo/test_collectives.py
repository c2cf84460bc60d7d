"""Collectives of real compiled programs against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from google.protobuf import json_format
from jax import lax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from jaxvl.hlo import Program, axes_of, collectives, counted, read, traffic
from jaxvl.hlo.groups import groups_of, slices_of
from jaxvl.hlo.proto import module_class
from jaxvl.sharding.topology import compile_only_devices

N = 1000  # floats of a device's part
SHAPE = {"data": 2, "fsdp": 4}


def compiled(f, *shapes, devices=None, shape=(2, 4), dtype=jnp.float32, specs=None):
    """A function of arrays that are split over all axes, each device's part run by `f`."""
    devices = jax.devices() if devices is None else devices
    axes = ("data", "fsdp")
    mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 2, devices=devices)
    whole = specs or [P(axes)] * len(shapes)
    mapped = jax.shard_map(f, mesh=mesh, in_specs=tuple(whole), out_specs=P(axes), check_vma=False)
    arrays = [
        jax.ShapeDtypeStruct(s, dtype, sharding=NamedSharding(mesh, spec))
        for s, spec in zip(shapes, whole)
    ]
    return read(jax.jit(mapped).lower(*arrays).compile())


def only(program, devices=8):
    [found] = collectives(program, devices)
    return found


def turn(x, axis, n):
    return lax.ppermute(x, axis, [(i, (i + 1) % n) for i in range(n)])


@pytest.mark.parametrize("axes, n", [("data", 2), ("fsdp", 4), (("data", "fsdp"), 8)])
def test_a_sum_over_an_axis(axes, n):
    found = only(compiled(lambda x: lax.psum(x, axes), (8 * N,)))
    assert (found.kind, found.size, found.times) == ("all-reduce", 4 * N, 1)
    assert found.sent == pytest.approx(2 * (n - 1) / n * 4 * N)
    assert found.axes(SHAPE) == (axes if isinstance(axes, str) else " x ".join(axes))
    assert found.groups.shape == (8 // n, n)
    assert sorted(found.groups.flat) == list(range(8))
    assert not found.overlaps


def test_groups_are_those_of_the_axis():
    data = only(compiled(lambda x: lax.psum(x, "data"), (8 * N,))).groups
    assert {tuple(sorted(group)) for group in data.tolist()} == {(0, 4), (1, 5), (2, 6), (3, 7)}
    fsdp = only(compiled(lambda x: lax.psum(x, "fsdp"), (8 * N,))).groups
    assert {tuple(sorted(group)) for group in fsdp.tolist()} == {(0, 1, 2, 3), (4, 5, 6, 7)}


def test_a_gather_counts_what_it_makes():
    found = only(compiled(lambda x: lax.all_gather(x, "fsdp", tiled=True), (8 * N,)))
    assert (found.kind, found.size, found.axes(SHAPE)) == ("all-gather", 4 * 4 * N, "fsdp")
    assert found.sent == 3 / 4 * 16 * N == 3 * 4 * N  # three others' parts come in


def test_a_scatter_and_an_exchange_count_what_they_are_given():
    scatter = lambda x: lax.psum_scatter(x, "fsdp", scatter_dimension=0, tiled=True)
    found = only(compiled(scatter, (8 * 4 * N,)))
    assert (found.kind, found.size) == ("reduce-scatter", 4 * 4 * N)
    assert found.sent == 3 * 4 * N
    exchange = lambda x: lax.all_to_all(x, "fsdp", 0, 0, tiled=True)
    found = only(compiled(exchange, (8 * 4 * N,)))
    assert (found.kind, found.size) == ("all-to-all", 4 * 4 * N)
    assert found.sent == 3 * 4 * N


@pytest.mark.parametrize("rounds", [3, 7])
def test_a_permute_called_counts_every_round(rounds):
    def ring(x):
        return lax.scan(lambda c, _: (turn(c, "fsdp", 4) * 2, None), x, None, length=rounds)[0]

    program = compiled(ring, (8 * N,))
    found = only(program)
    assert (found.kind, found.times, found.size) == ("collective-permute", rounds, 4 * N)
    assert found.sent == 4 * N
    assert found.axes(SHAPE) == "fsdp"
    assert counted(program) == {"collective-permute": 1}
    assert program.loops_without_count == 0


def test_loops_in_loops_multiply():
    def inner(c, _):
        return lax.scan(lambda c, _: (turn(c, "data", 2) + 1, None), c, None, length=3)[0], None

    found = only(compiled(lambda x: lax.scan(inner, x, None, length=5)[0], (8 * N,)))
    assert found.times == 15


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    def until(x):
        return lax.while_loop(lambda c: jnp.sum(c) < 1e6, lambda c: turn(c, "data", 2) + 1, x)

    program = compiled(until, (8 * N,))
    assert program.loops_without_count == 1
    assert only(program).times == 1


def test_bfloat16_that_stays_so_counts_two_bytes():
    program = compiled(lambda x: lax.all_gather(x, "fsdp", tiled=True), (8 * N,), dtype=jnp.int8)
    assert only(program).size == 4 * N


def test_axes_that_are_only_partly_spanned_are_named_with_their_number():
    groups = np.array([[0, 1], [2, 3], [4, 5], [6, 7]])
    assert axes_of(groups, SHAPE) == "fsdp (2 of 4)"
    assert axes_of(np.array([[0, 3], [1, 2]]), {"data": 2, "fsdp": 2}) == "data x fsdp (2 of 4)"
    assert axes_of(np.arange(8)[None], SHAPE) == "data x fsdp"


def instruction(**fields):
    """XLA's form of an instruction with these fields."""
    field = module_class()().computations.add().instructions.add()
    for name, value in fields.items():
        json_format.ParseDict({name: value}, field, ignore_unknown_fields=False)
    return field


AXES = [dict(name="a", size=4), dict(name="b", size=1), dict(name="c", size=2)]
LISTED = [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    "fields, groups",
    [
        ({}, [list(range(8))]),
        (dict(replica_groups=[dict(ids=g) for g in LISTED]), LISTED),
        (dict(device_list=dict(groups=[dict(ids=g) for g in LISTED])), LISTED),
        # [2,4]<=[8], and [4,2]<=[2,4]T(1,0)
        (dict(iota_groups=dict(groups=2, size=4, reshape=[8], transpose=[0])), LISTED),
        (
            dict(device_list=dict(iota=dict(groups=4, size=2, reshape=[2, 4], transpose=[1, 0]))),
            [[0, 4], [1, 5], [2, 6], [3, 7]],
        ),
        # mesh['a'=4,'b'=1,'c'=2] {'a'}, and of the same devices in another order
        (
            dict(mesh_groups=dict(mesh=dict(axes=AXES), axes=[dict(index=0)])),
            [[0, 2, 4, 6], [1, 3, 5, 7]],
        ),
        (
            dict(
                mesh_groups=dict(
                    mesh=dict(axes=AXES, iota=dict(reshape=[2, 4], transpose=[1, 0])),
                    axes=[dict(index=0)],
                )
            ),
            LISTED,
        ),
        # {'a':(1)2}, the outer half of an axis
        (
            dict(
                mesh_groups=dict(
                    mesh=dict(axes=AXES), axes=[dict(index=0, part=dict(before=1, size=2))]
                )
            ),
            [[0, 4], [1, 5], [2, 6], [3, 7]],
        ),
    ],
)
def test_every_form_of_groups(fields, groups):
    found = groups_of(instruction(**fields), 8)
    assert found.tolist() == groups


@pytest.mark.parametrize("rows, columns", [("data", "fsdp"), ("fsdp", "data")])
def test_groups_that_the_compiler_chose(rows, columns):
    """A product over a dimension that is split: its parts are summed over that axis."""
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    left = jax.ShapeDtypeStruct((64, 64), "float32", sharding=NamedSharding(mesh, P(rows, columns)))
    right = jax.ShapeDtypeStruct((64, 32), "float32", sharding=NamedSharding(mesh, P(columns)))
    out = NamedSharding(mesh, P(rows))
    found = only(read(jax.jit(lambda a, b: a @ b, out_shardings=out).lower(left, right).compile()))
    assert (found.kind, found.axes(SHAPE)) == ("all-reduce", columns)
    assert found.size == 4 * 64 // SHAPE[rows] * 32
    assert found.groups.shape == (SHAPE[rows], SHAPE[columns])


# --------------------------------------------------------------------------------------------------
# A program written by hand

F32, S32 = 11, 4
EIGHT = dict(element_type=F32, dimensions=[8])
NUMBER = dict(element_type=S32)
STATE = dict(tuple_shapes=[NUMBER, EIGHT])


def by_hand(*computations):
    """A scheduled program of computations of lines `(name, opcode, operands, shape, other
    fields)`, the last of which is the root; the last computation is the entry."""
    ids = {}
    made = []
    for number, lines in enumerate(computations, 1):
        for name, *_ in lines:
            ids[name] = len(ids) + 1
        instructions = [
            dict(
                name=name,
                opcode=opcode,
                id=ids[name],
                operand_ids=[ids[o] for o in operands.split()],
                shape=shape,
                **fields,
            )
            for name, opcode, operands, shape, fields in lines
        ]
        root = instructions[-1]["id"]
        made.append(dict(name=str(number), id=number, root_id=root, instructions=instructions))
    orders = [
        dict(key=c["id"], value=dict(instruction_ids=[i["id"] for i in c["instructions"]]))
        for c in made
    ]
    module = dict(
        computations=made, entry_computation_id=len(made), schedule=dict(sequences=orders)
    )
    return Program(json_format.ParseDict(module, module_class()()).SerializeToString())


@pytest.mark.parametrize(
    "opcode, target, beside, kernels",
    [
        ("custom-call", "tpu_custom_call", 1, ("between",)),
        ("custom-call", "mosaic_gpu_v2", 1, ("between",)),
        ("custom-call", "__cublas$gemm", 1, ()),
        ("add", "", 0, ()),
    ],
)
@pytest.mark.parametrize("called", [False, True])
def test_a_kernel_beside_a_collective_is_told_from_others(opcode, target, beside, kernels, called):
    constant = lambda n: dict(literal=dict(s32s=[n]))
    kernel = [
        ("r", "parameter", "", EIGHT, {}),
        ("between", opcode, "r", EIGHT, dict(custom_call_target=target)),
    ]
    between = ("between", opcode, "x", EIGHT, dict(custom_call_target=target))
    if called:
        between = ("called", "call", "x", EIGHT, dict(called_computation_ids=[1]))
        beside = 1  # what is called counts as one
    pairs = [dict(source=0, target=1), dict(source=1, target=0)]
    body = [
        ("p", "parameter", "", STATE, {}),
        ("i", "get-tuple-element", "p", NUMBER, {}),
        ("one", "constant", "", NUMBER, constant(1)),
        ("next", "add", "i one", NUMBER, {}),
        ("x", "get-tuple-element", "p", EIGHT, dict(tuple_index=1)),
        ("begun", "collective-permute-start", "x", EIGHT, dict(source_target_pairs=pairs)),
        between,
        ("done", "collective-permute-done", "begun", EIGHT, {}),
        ("t", "tuple", "next done", STATE, {}),
    ]
    condition = [
        ("q", "parameter", "", STATE, {}),
        ("bound", "constant", "", NUMBER, constant(7)),
        ("j", "get-tuple-element", "q", NUMBER, {}),
        ("less", "compare", "j bound", dict(element_type=1), dict(comparison_direction="LT")),
    ]
    entry = [
        ("a", "parameter", "", EIGHT, {}),
        ("zero", "constant", "", NUMBER, constant(0)),
        ("first", "tuple", "zero a", STATE, {}),
        ("w", "while", "first", STATE, dict(called_computation_ids=[2, 3])),
        ("g", "all-gather", "a", EIGHT, dict(replica_groups=[dict(ids=[0, 1])])),
        ("last", "get-tuple-element", "w", EIGHT, dict(tuple_index=1)),
    ]
    if not called:
        kernel = [("r", "parameter", "", EIGHT, {})]
    permute, gather = collectives(by_hand(kernel, body, condition, entry), 2)
    assert (permute.kind, permute.times, permute.size) == ("collective-permute", 7, 32)
    assert permute.groups.tolist() == [[0, 1], [1, 0]]
    assert (permute.beside, permute.kernels) == (beside, kernels)
    assert (gather.kind, gather.times, gather.size) == ("all-gather", 1, 64)
    assert (gather.beside, gather.kernels) == (None, ())


# --------------------------------------------------------------------------------------------------
# The TPU compiler's programs, which have a schedule


@functools.cache
def tpus(topology):
    return tuple(compile_only_devices(topology))


@pytest.mark.usefixtures("tpu_compiler")
def test_a_product_beside_a_permute_overlaps_it_and_none_does_not():
    def ring(x, w, with_product):
        def one(carry, _):
            x, total = carry
            moved = turn(x, "fsdp", 4)
            return (moved, total + (x @ w if with_product else 0)), None

        return lax.scan(one, (x, jnp.zeros_like(x)), None, length=4)[0][1 if with_product else 0]

    for with_product in (True, False):
        program = compiled(
            functools.partial(ring, with_product=with_product),
            (4 * 1024, 2048),
            (2048, 2048),
            devices=tpus("v5e:2x2"),
            shape=(1, 4),
            dtype=jnp.bfloat16,
            specs=[P(("data", "fsdp")), P()],
        )
        moves = [c for c in collectives(program, 4) if c.kind == "collective-permute"]
        assert program.scheduled and sum(c.times for c in moves) == 4
        assert {c.size for c in moves} == {1024 * 2048 * 2}
        assert all(c.overlaps is with_product for c in moves), [c.beside for c in moves]


@pytest.mark.usefixtures("tpu_compiler")
def test_a_gather_that_the_compiler_spreads_over_fusions_counts_once():
    """Parameters split over `fsdp` in a scan: the second pass gathers while it multiplies."""
    mesh = jax.make_mesh(
        (1, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=tpus("v5e:2x2")
    )

    def step(x, w):
        def loss(w):
            h = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0]
            return jnp.sum(h.astype(jnp.float32) ** 2)

        return w - jax.grad(loss)(w)

    x = jax.ShapeDtypeStruct((4096, 1024), jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp")))
    split = NamedSharding(mesh, P(None, "fsdp"))
    w = jax.ShapeDtypeStruct((6, 1024, 1024), jnp.bfloat16, sharding=split)
    with jax.set_mesh(mesh):
        executable = jax.jit(step, out_shardings=split).lower(x, w).compile()
    program = read(executable)
    found = collectives(program, 4)
    text = executable.as_text()
    begun = text.count('custom_call_target="AsyncCollectiveStart"')
    standing = text.count(" all-gather(")
    gathers = [c for c in found if c.kind == "all-gather"]
    assert begun and standing > len(gathers), "the compiler no longer spreads gathers: no test"
    spread = [c for c in gathers if c.beside is not None]
    assert len(spread) == begun and all(c.overlaps for c in spread)
    assert all(c.times in (1, 6) for c in found)
    scatters = text.count("calls=%all-reduce-scatter")
    assert sum(c.kind == "reduce-scatter" for c in found) == scatters > 0


@pytest.mark.usefixtures("tpu_compiler")
def test_two_slices_meet_over_the_data_centres_network():
    devices = tpus("2*v5e:2x2")
    placed = mesh_utils.create_hybrid_device_mesh((1, 4), (2, 1), devices)
    mesh = Mesh(placed, ("data", "fsdp"))
    f = lambda x, w: jnp.sum((x @ w) ** 2)
    rows = NamedSharding(mesh, P(("data", "fsdp")))
    split = NamedSharding(mesh, P("fsdp"))
    x = jax.ShapeDtypeStruct((1024, 512), jnp.bfloat16, sharding=rows)
    w = jax.ShapeDtypeStruct((512, 512), jnp.float32, sharding=split)
    program = read(jax.jit(jax.grad(f, 1), out_shardings=split).lower(x, w).compile())
    between = [c for c in collectives(program, 8) if c.between_slices]
    assert [(c.kind, c.axes({"data": 2, "fsdp": 4})) for c in between] == [("all-reduce", "slices")]
    assert between[0].groups.shape == (1, 2)
    # Each device has its quarter of the gradient to sum over the two slices.
    assert between[0].size == 512 * 512 * 4 // 4
    assert between[0].sent == between[0].size


@pytest.mark.usefixtures("tpu_compiler")
@pytest.mark.parametrize(
    "before, after, sent",
    [
        # A device gets its twin's part in the other slice.
        (("fsdp", "data"), "fsdp", {"all-gather": 8}),
        ("data", None, {"all-gather": 2}),
        # The same parts in another order: they change places first.
        (("data", "fsdp"), "fsdp", {"all-gather": 8, "collective-permute": 8}),
    ],
)
def test_what_slices_send_each_other(before, after, sent):
    devices = tpus("2*v5e:2x2")
    placed = mesh_utils.create_hybrid_device_mesh((1, 4), (2, 1), devices)
    mesh = Mesh(placed, ("data", "fsdp"))
    x = jax.ShapeDtypeStruct((1024, 512), "float32", sharding=NamedSharding(mesh, P(before)))
    out = NamedSharding(mesh, P(after))
    program = read(jax.jit(lambda x: x * 2, out_shardings=out).lower(x).compile())
    between = [c for c in collectives(program, 8) if c.between_slices]
    assert {c.axes(dict(mesh.shape)) for c in between} == {"slices"}
    whole = 1024 * 512 * 4
    assert {c.kind: c.sent for c in between} == {k: whole / n for k, n in sent.items()}


def test_targets_between_slices():
    assert slices_of("{1,2}x{0:15}").tolist() == [[1, 2]]
    assert slices_of("{1:4}x{0:3}").tolist() == [[1, 2, 3, 4]]
    pairs = "{{100001->200000},{100002->200001},{200000->100003}}"
    assert slices_of(pairs).tolist() == [[1, 2], [2, 1]]


# --------------------------------------------------------------------------------------------------
# Bytes through memory


def single(f, *shapes, dtype=jnp.float32):
    return jax.jit(f).lower(*(jax.ShapeDtypeStruct(s, dtype) for s in shapes)).compile()


def test_traffic_of_a_product_is_its_operands_and_result():
    program = read(single(lambda a, b: a @ b, (256, 512), (512, 128)))
    assert traffic(program) == 4 * (256 * 512 + 512 * 128 + 256 * 128)


def test_traffic_without_loops_is_the_compilers_own():
    f = lambda a, b: jnp.tanh(a @ b).sum(0)
    executable = single(f, (512, 512), (512, 512))
    assert traffic(read(executable)) == pytest.approx(
        executable.cost_analysis()["bytes accessed"], rel=0.05
    )


def test_a_loop_reads_a_slice_each_round():
    """The compiler's own figure counts one round, and the whole of what is sliced."""
    f = lambda h, ws: lax.scan(lambda h, w: (h @ w, None), h, ws)[0]
    n = 256
    once = 4 * n * n
    few, many = (traffic(read(single(f, (n, n), (rounds, n, n)))) for rounds in (4, 16))
    # A round reads h and a slice, and writes h; slicing and carrying copy both.
    assert 3 * once * 12 <= many - few <= 7.1 * once * 12


def test_an_update_in_place_writes_the_update():
    def f(x, u):
        return lax.fori_loop(0, 8, lambda i, x: lax.dynamic_update_slice(x, u, (i * 8, 0)), x)

    x = jax.ShapeDtypeStruct((4096, 256), jnp.float32)
    u = jax.ShapeDtypeStruct((8, 256), jnp.float32)
    moved = traffic(read(jax.jit(f, donate_argnums=0).lower(x, u).compile()))
    assert moved < 4 * 4096 * 256, "the whole array counts, eight times"


@pytest.mark.usefixtures("tpu_compiler")
def test_what_stays_on_the_chip_is_no_traffic():
    where = SingleDeviceSharding(tpus("v5e:2x2")[0])
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=where)
    executable = jax.jit(lambda a, b: a @ b).lower(x, x).compile()
    assert traffic(read(executable)) == 3 * 4096**2 * 2
    # The compiler stages operands in its on-chip memory, and counts that too.
    assert executable.cost_analysis()["bytes accessed"] > 4 * 4096**2 * 2


def test_a_program_is_read_again_from_its_bytes():
    executable = single(lambda a: a * 2, (8,))
    [module] = executable.runtime_executable().hlo_modules()
    program = Program(module.as_serialized_hlo_module_proto())
    assert program.entry.parameters[0].size == 32
