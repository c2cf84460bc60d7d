"""Streamed scores of pairs: values and gradients of every score and reduction against float64
loops; masks, odd sizes, blocks that do not divide; memory; meshes; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pair_scores_oracle as oracle
import pytest
from contrastive_cases import CASES, quick_jit, same, unit_rows
from contrastive_oracle import check, loss_and_gradients
from jax.sharding import AxisType

from jaxvl import hlo
from jaxvl.kernels.contrastive import (
    Diagonal,
    KPerRow,
    PairMask,
    Reduced,
    SameId,
    SoftTargets,
    Unpaired,
    Weighted,
    collectives,
    contrastive_logsumexp,
    contrastive_loss,
    routes,
    streamed_scores,
)
from jaxvl.kernels.contrastive.reductions import (
    CrossEntropy,
    Hinge,
    LogSumExp,
    ReverseKL,
    Top,
)
from jaxvl.kernels.contrastive.scores import (
    AttentionWeighted,
    Dot,
    LateInteraction,
    MaxOverQueries,
    Multilinear,
    Tokens,
)

B = 13
BLOCK = (5, 4)  # divides neither side


def rows(rng, *shape):
    x = rng.normal(size=shape)
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), np.float32)


def close(got, want, tolerance=1e-5):
    got = jax.tree.leaves(got)
    assert len(got) == len(want)
    for i, (a, b) in enumerate(zip(got, want)):
        a = np.asarray(a, np.float64)
        assert a.shape == np.shape(b) and np.isfinite(a).all(), i
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1.0), (i, a, b)


def program(make, reduce, cotangents, block=BLOCK):
    """`args -> (rows, cols), gradients` of the sum of both, weighed by `cotangents`."""
    a, b = cotangents

    def loss(args):
        score, u, v = make(*args)
        found = streamed_scores(score, u, v, reduce, block)
        return (a * found.rows).sum() + (b * found.cols).sum(), (found.rows, found.cols)

    return quick_jit(jax.value_and_grad(loss, has_aux=True))


# --------------------------------------------------------------------------------------------------
# Scores


def of_dot(rng):
    u, v = rows(rng, 2, B, 6)
    args = u, v, np.float32(3.0)
    return args, lambda u, v, scale: (Dot(scale), u, v), oracle.dot


def of_multilinear(rng):
    u, v, w = rows(rng, 3, B, 6)
    args = u, v, w, np.float32(20.0)
    return args, lambda u, v, w, scale: (Multilinear(scale), u, (v, w)), oracle.multilinear


def of_late(rng):
    u = rows(rng, B, 5, 6)
    v = rows(rng, B, 4, 6)
    masks = rng.random((B, 5)) < 0.7, rng.random((B, 4)) < 0.7
    masks[0][3] = False  # a row without any token
    masks[1][6] = False

    def make(u, v, scale):
        return LateInteraction(scale), Tokens(u, masks[0]), Tokens(v, masks[1])

    return (u, v, np.float32(4.0)), make, lambda u, v, s: oracle.late(u, v, *masks, s)


def of_attention(rng, chunk=None):
    u = rows(rng, B, 5, 6)
    v = rows(rng, B, 6)
    mask = rng.random((B, 5)) < 0.7
    mask[3] = False

    def make(u, v, scale, tau):
        return AttentionWeighted(scale, tau, chunk), Tokens(u, mask), v

    args = u, v, np.float32(4.0), np.float32(5.0)
    return args, make, lambda u, v, s, tau: oracle.attention(u, v, mask, s, tau)


def of_queries(rng):
    u = rows(rng, B, 5, 6)
    v = rows(rng, B, 6)
    mask = rng.random((B, 5)) < 0.7
    mask[3] = False

    def make(u, v, scale):
        return MaxOverQueries(scale), Tokens(u, mask), v

    return (u, v, np.float32(4.0)), make, lambda u, v, s: oracle.most(u, v, mask, s)


def full(n=B):
    return np.ones((n, n), bool), np.eye(n, dtype=bool), np.ones(n, bool), np.ones(n, bool)


SCORES = dict(
    dot=of_dot,
    multilinear=of_multilinear,
    late=of_late,
    attention=of_attention,
    attention_in_chunks=lambda rng: of_attention(rng, chunk=2),
    queries=of_queries,
)


@pytest.mark.parametrize("name", SCORES)
def test_every_score_and_its_gradients(name):
    """By log-sum-exp, whose gradient reaches every pair."""
    rng = np.random.default_rng(0)
    args, make, score = SCORES[name](rng)
    cotangents = np.asarray(rng.normal(size=(2, B)), np.float32)
    (_, found), grads = program(make, LogSumExp(), cotangents)(args)
    *matrices, back = score(*(np.float64(x) for x in args))
    row, col, of = oracle.reduce(oracle.logsumexp, matrices, *full())
    close(found, (row, col))
    close(grads, back(*of(*np.float64(cotangents))))


def test_colbert_sums_over_the_query():
    rng = np.random.default_rng(1)
    u = rows(rng, 7, 5, 6)
    v = rows(rng, 6, 4, 6)
    masks = rng.random((7, 5)) < 0.8, rng.random((6, 4)) < 0.8
    want = oracle.late(np.float64(u), np.float64(v), *masks, 2.0, "sum")
    for side, matrix in (("rows", want[0]), ("columns", want[1])):
        score = LateInteraction(2.0, side, "sum")
        got = score(Tokens(u, masks[0]), Tokens(v, masks[1]))
        np.testing.assert_allclose(got, matrix, atol=1e-5)
    np.testing.assert_allclose(
        LateInteraction(2.0, "rows")(Tokens(u), Tokens(v)),
        oracle.late(np.float64(u), np.float64(v), masks[0] | True, masks[1] | True, 2.0)[0],
        atol=1e-5,
    )


# --------------------------------------------------------------------------------------------------
# Reductions


def masked(rng):
    """Rows and columns that are not valid, and groups that do not compete."""
    ok = rng.random((2, B)) < 0.8
    group = rng.integers(0, 3, B)
    eye = np.eye(B, dtype=bool)
    keep = ((group[:, None] != group[None]) | eye) & ok[0][:, None] & ok[1]
    options = dict(row_group=group, col_group=group, drop="same")
    return ok, keep, eye & keep, options


@pytest.mark.parametrize(
    "name, of_row",
    [("kl", oracle.reverse_kl), ("hinge", oracle.hinge), ("hardest", oracle.hardest)],
)
@pytest.mark.parametrize("case", ["plain", "masked"])
def test_every_reduction_and_its_gradients(name, of_row, case):
    """On FILIP's two matrices, which no other direction may mix up."""
    rng = np.random.default_rng(2)
    args, make, score = of_late(rng)
    keep, positive, *ok = full()
    targets = Diagonal()
    if case == "masked":
        valid, keep, positive, options = masked(rng)
        targets = PairMask(targets, **options, row_valid=valid[0], col_valid=valid[1])
        ok = positive.any(1), positive.any(0)
    reduce = {
        "kl": ReverseKL(targets),
        "hinge": Hinge(targets, 0.2),
        "hardest": Hinge(targets, 0.2, "hardest"),
    }[name]
    cotangents = np.asarray(rng.normal(size=(2, B)), np.float32)
    (_, found), grads = program(make, reduce, cotangents)(args)
    *matrices, back = score(*(np.float64(x) for x in args))
    row, col, of = oracle.reduce(of_row, matrices, keep, positive, *ok)
    close(found, (row, col))
    close(grads, back(*of(*np.float64(cotangents))))


def test_several_positives_of_kl():
    rng = np.random.default_rng(3)
    args, make, score = of_dot(rng)
    ids = rng.integers(0, 6, B)
    cotangents = np.asarray(rng.normal(size=(2, B)), np.float32)
    (_, found), grads = program(make, ReverseKL(SameId(ids)), cotangents)(args)
    *matrices, back = score(*(np.float64(x) for x in args))
    keep, _, *ok = full()
    row, col, of = oracle.reduce(oracle.reverse_kl, matrices, keep, same(ids, ids), *ok)
    close(found, (row, col))
    close(grads, back(*of(*np.float64(cotangents))))


def test_top_of_another_number_of_columns():
    rng = np.random.default_rng(4)
    u = rows(rng, 13, 6)
    v = rows(rng, 9, 6)
    targets = Unpaired(np.arange(13) != 5, np.arange(9) != 2)
    found = quick_jit(lambda u, v: streamed_scores(Dot(2.0), u, v, Top(targets), BLOCK))(u, v)
    s = 2.0 * np.float64(u) @ np.float64(v).T
    s[5] = s[:, 2] = -np.inf
    np.testing.assert_array_equal(found.row_index, np.where(np.arange(13) == 5, -1, s.argmax(1)))
    np.testing.assert_array_equal(found.col_index, np.where(np.arange(9) == 2, -1, s.argmax(0)))
    np.testing.assert_allclose(found.rows, s.max(1), rtol=1e-6)
    np.testing.assert_allclose(found.cols, s.max(0), rtol=1e-6)
    same = np.ones((13, 6), np.float32)
    ties = quick_jit(lambda u: streamed_scores(Dot(), u, u[:9], Top(), BLOCK))(same)
    assert not ties.row_index.any() and not ties.col_index.any()


EVERY_KIND = (
    "diagonal_offset",
    "same_id_mask_smooth",
    "k_per_row_release",
    "mixup_normalised",
    "soft_masked",
    "soft_linear",
    "mask_valid",
)


@pytest.mark.parametrize("case", EVERY_KIND)
def test_cross_entropy_of_every_kind_of_target(case):
    build, ratio = CASES[case]
    rng = np.random.default_rng(5)
    targets, dense = build(B, B * ratio, rng)
    u = unit_rows(rng, B, 6)
    v = unit_rows(rng, B * ratio, 6)

    def loss(u, v, log_scale):
        return streamed_scores(Dot(jnp.exp(log_scale)), u, v, CrossEntropy(targets), BLOCK).loss()

    value, grads = quick_jit(jax.value_and_grad(loss, (0, 1, 2)))(u, v, jnp.float32(1.5))
    check((value, *grads), loss_and_gradients(u, v, np.float32(1.5), dense)[:4], 1.5)


def test_it_is_the_fused_core_for_dot_products():
    rng = np.random.default_rng(6)
    u = unit_rows(rng, 40, 8)
    v = unit_rows(rng, 40, 8)
    ids = rng.integers(0, 20, 40)
    mask = PairMask(Unpaired(ids != 3), row_group=ids, col_group=ids, drop="same")

    @quick_jit
    def all_of_them(u, v):
        score = Dot(jnp.exp(2.0))
        found = streamed_scores(score, u, v, CrossEntropy(SameId(ids)), (16, 8))
        fused = contrastive_loss(u, v, 2.0, targets=SameId(ids), directions="sum")
        sums = streamed_scores(score, u, v, LogSumExp(mask), (16, 8))
        return found, fused, (sums.rows, sums.cols), contrastive_logsumexp(u, v, 2.0, targets=mask)

    found, fused, sums, wanted = all_of_them(u, v)
    np.testing.assert_allclose(found.loss("sum"), fused, rtol=1e-6)
    np.testing.assert_allclose(2 * found.loss("mean"), fused, rtol=1e-6)
    np.testing.assert_allclose(found.loss("rows") + found.loss("columns"), fused, rtol=1e-6)
    for a, b in zip(sums, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_large_and_equal_scores():
    u = jnp.ones((6, 2)) * 1e4

    def loss(u):
        kinds = (CrossEntropy(), ReverseKL(), LogSumExp())
        found = [streamed_scores(Dot(), u, u, reduce, 4) for reduce in kinds]
        return sum(one.loss() for one in found), found[0].rows

    (value, rows), grad = quick_jit(jax.value_and_grad(loss, has_aux=True))(u)
    assert np.isfinite(value) and np.isfinite(grad).all()
    np.testing.assert_allclose(rows, np.log(6.0), rtol=1e-6)


# --------------------------------------------------------------------------------------------------
# Weighted


@pytest.mark.parametrize("divide", ["count", "weights"])
def test_weights_of_rows_and_columns(divide):
    """In the fused core and here: each row's loss times its weight."""
    rng = np.random.default_rng(7)
    build, _ = CASES["same_id"]
    targets, dense = build(B, B, rng)
    u = unit_rows(rng, B, 6)
    v = unit_rows(rng, B, 6)
    a, b = np.asarray(rng.random((2, B)), np.float32)
    dense.rows = dense.rows * np.float64(a)[:, None]
    dense.cols = dense.cols * np.float64(b)
    if divide == "weights":
        anchors = dense.anchor_rows, dense.anchor_cols
        dense.rows *= anchors[0].sum() / np.float64(a)[anchors[0]].sum()
        dense.cols *= anchors[1].sum() / np.float64(b)[anchors[1]].sum()
    want = loss_and_gradients(u, v, np.float32(1.5), dense)[:4]
    weighted = Weighted(targets, a, b, divide=divide)

    def fused(u, v, log_scale):
        return contrastive_loss(u, v, log_scale, targets=weighted)

    def streamed(u, v, log_scale):
        return streamed_scores(Dot(jnp.exp(log_scale)), u, v, CrossEntropy(weighted), BLOCK).loss()

    for loss in (fused, streamed) if divide == "count" else (fused,):
        value, grads = quick_jit(jax.value_and_grad(loss, (0, 1, 2)))(u, v, jnp.float32(1.5))
        check((value, *grads), want, 1.5)


def test_weights_of_another_reduction_inside_a_mask():
    rng = np.random.default_rng(7)
    u, v = rows(rng, 2, B, 6)
    weights = np.asarray(rng.random(B), np.float32)
    valid = np.arange(B) > 3

    @quick_jit
    def weighed(u, v, weights):
        masks = [PairMask(t, row_valid=valid) for t in (Diagonal(), Weighted(rows=weights))]
        return [streamed_scores(Dot(), u, v, ReverseKL(mask), BLOCK) for mask in masks]

    each, found = weighed(u, v, weights)
    np.testing.assert_allclose(found.rows, weights * each.rows, atol=1e-6)
    np.testing.assert_allclose(found.cols, each.cols, atol=1e-6)


def test_weights_that_are_refused():
    u = jnp.ones((4, 2))
    soft = SoftTargets(u, u)
    for targets, kind, why in (
        (Weighted(), "sigmoid", "Weighted is of kind='softmax'"),
        (Weighted(soft), "softmax", "Weighted cannot hold SoftTargets"),
        (SoftTargets(u, u, targets=Weighted()), "softmax", "SoftTargets cannot hold Weighted"),
        (Weighted(rows=jnp.ones(3)), "softmax", r"rows: shape \(3,\) does not fit"),
    ):
        with pytest.raises(ValueError, match=why):
            jax.eval_shape(lambda: contrastive_loss(u, u, 0.0, targets=targets, kind=kind))  # noqa: B023


# --------------------------------------------------------------------------------------------------
# Meshes, memory, errors


@pytest.mark.parametrize(
    "n, collective",
    [pytest.param(24, "grid", marks=pytest.mark.slow), (21, "grid"), (21, "gather")],
)
def test_eight_devices_equal_one(n, collective):
    """21: rows that the mesh does not divide. All reductions in one program each."""
    rng = np.random.default_rng(8)
    u = rows(rng, n, 5, 6)
    v = rows(rng, n, 4, 6)
    masks = jnp.asarray(rng.random((n, 5)) < 0.7), jnp.asarray(rng.random((n, 4)) < 0.7)
    ids = jnp.asarray(rng.integers(0, n // 2, n))
    valid = PairMask(SameId(ids), row_valid=ids != 1)
    reductions = (
        CrossEntropy(valid),
        ReverseKL(SameId(ids)),
        Hinge(SameId(ids, duplicates="mask")),
        Hinge(PairMask(row_valid=ids != 1), negatives="hardest"),
        Top(),
    )

    def loss(u, v, scale):
        total = 0.0
        found = []
        for reduce in reductions:
            score = LateInteraction(scale)
            one = streamed_scores(score, Tokens(u, masks[0]), Tokens(v, masks[1]), reduce, (3, 4))
            total += one.loss("sum")
            found.append(one)
        return total, found

    step = quick_jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    one = step(u, v, jnp.float32(4.0))
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh), collectives.using(collective):
        many = step(u, v, jnp.float32(4.0))
        closed = quick_jit(lambda u, s: streamed_scores(lambda a, b: s * a @ b.T, u, u, Top()).rows)
        with pytest.raises(ValueError, match="score: closes over traced arrays, which a mesh"):
            closed(u[:, 0], 2.0)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("places", [(1, 4, 2), (2, 2, 2), (1, 8, 1)])
def test_of_equal_scores_the_first_wins_wherever_its_device_stands(places, monkeypatch):
    order = np.random.default_rng(0).permutation(8).reshape(places)
    monkeypatch.setattr(routes, "grid", lambda axes: order)
    u = jnp.asarray(np.random.default_rng(1).integers(0, 3, (24, 1)), jnp.float32)
    found = jax.jit(lambda u: streamed_scores(Dot(), u, u[::-1], Top(), (2, 3)))
    one = found(u)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh), collectives.using("grid"):
        many = found(u)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_array_equal(a, b)
    scores = np.asarray(u) @ np.asarray(u)[::-1].T
    np.testing.assert_array_equal(one.row_index, scores.argmax(1))
    np.testing.assert_array_equal(one.col_index, scores.argmax(0))


def test_gradients_go_through_vectors_and_fewer_bytes_travel_in_a_grid():
    """A row's own weight is a vector, which the fused core sends by its bits."""
    rng = np.random.default_rng(2)
    u = rows(rng, 32, 6)
    weight = jnp.asarray(rng.uniform(1, 2, 32), jnp.float32)
    weighted = jax.tree_util.Partial(lambda a, b: a[1][:, None] * b[1][None] * (a[0] @ b[0].T))

    def loss(u, v):
        return streamed_scores(weighted, u, v, CrossEntropy(), 4).loss()

    step = jax.grad(loss, (0, 1))
    one = quick_jit(step)((u, weight), (u, weight))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    received = {}
    for name in ("gather", "grid", "auto"):
        with jax.set_mesh(mesh), collectives.using(name):
            compiled = quick_jit(lambda *sides: step(*sides)).lower((u, weight), (u, weight))
            compiled = compiled.compile()
        received[name] = sum(c.size * c.times for c in hlo.collectives(hlo.read(compiled), 8))
        many = compiled((u, weight), (u, weight))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # 2 + 4 blocks of eight devices.
    assert received["auto"] == received["grid"] < 0.85 * received["gather"]


def test_memory_does_not_grow_with_the_square_of_the_batch():
    def temporary(b):
        u = jax.ShapeDtypeStruct((b, 8), jnp.float32)

        def loss(u, v, scale):
            return streamed_scores(Dot(scale), u, v, CrossEntropy(), 64).loss()

        step = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
        program = step.lower(u, u, jax.ShapeDtypeStruct((), jnp.float32)).compile()
        return program.memory_analysis().temp_size_in_bytes

    small = temporary(1024)
    large = temporary(4096)
    assert large < 4.5 * small and large < 4096 * 4096 * 4 / 30


def test_what_is_refused():
    u = jnp.ones((4, 2))
    ids = jnp.arange(4)
    for call, why in (
        (lambda: streamed_scores(Dot(), u, jnp.ones((0, 2)), Top()), "v: leaves of lengths"),
        (lambda: streamed_scores(Dot(), (u, u[:3]), u, Top()), "u: leaves of lengths"),
        (lambda: streamed_scores(Dot(), u, u, Top(), 0), "block: 0 is not valid"),
        (lambda: streamed_scores(lambda a, b: a, u, u, Top()), r"score: gives float32\(2, 2\)"),
        (lambda: streamed_scores(Dot(), u, u, Top(Diagonal())), "Diagonal is not valid for Top"),
        (lambda: streamed_scores(Dot(), u, u, Hinge(SameId(ids))), "one positive in each row"),
        (lambda: streamed_scores(Dot(), u, u, Hinge(KPerRow(1))), "one positive in each row"),
        (lambda: streamed_scores(Dot(), u[:3], u, Hinge()), "Hinge needs as many as u"),
        (lambda: streamed_scores(Dot(), u, u, ReverseKL(SoftTargets(u, u))), "takes hard targets"),
        (lambda: streamed_scores(Dot(), u, u, ReverseKL(Diagonal(0, 0.1))), "takes hard targets"),
        (
            lambda: streamed_scores(Dot(), u, u, CrossEntropy(PairMask(keep=u @ u.T > 0))),
            r"PairMask\(keep=…\) is as large as the scores",
        ),
        (lambda: Reduced(u, u, 4, 4).loss("both"), "directions: 'both'"),
        (lambda: Hinge(negatives="some"), "negatives: 'some' is not valid"),
    ):
        with pytest.raises(ValueError, match=why):
            jax.eval_shape(call)  # nothing is compiled
