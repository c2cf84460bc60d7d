"""Tables of weights: every form undoes itself, and what does not fit is said."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvl.interop import mapping
from jaxvl.interop.mapping import ConversionError, Source, read_arrays, write_arrays

D = 12
H = 3
K = 4
SHAPES = {  # form -> shape of theirs
    mapping.SAME: (5, 4),
    mapping.TRANSPOSED: (5, 4),
    mapping.CONVOLUTION: (6, 3, 2, 2),
    mapping.ONE: (1,),
    mapping.LEADING: (1, 5, 4),
    mapping.POINTWISE: (6, 4, 1, 1),
    mapping.heads_out(H): (H * K, D),
    mapping.heads_in(H): (D, H * K),
    mapping.heads_bias(H): (H * K,),
}


@settings(max_examples=25, deadline=None)
@given(
    form=st.sampled_from(list(SHAPES)),
    layers=st.integers(0, 3),
    parts=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_writing_undoes_reading(form, layers, parts, seed):
    shape = SHAPES[form]
    rng = np.random.default_rng(seed)
    name = "block.{i}.weight" if layers else "weight"
    whole = (shape[0] * parts, *shape[1:]) if parts > 1 else shape
    state = {
        name.format(i=i): rng.normal(size=whole).astype(np.float32) for i in range(max(layers, 1))
    }
    table = {
        f"part{i}": Source(name, form, layers, (i, parts) if parts > 1 else None)
        for i in range(parts)
    }
    shapes = {path: source.read(state).shape for path, source in table.items()}
    arrays = read_arrays(table, state, shapes)
    back = write_arrays(table, arrays)
    assert set(back) == set(state)
    for key, array in state.items():
        np.testing.assert_array_equal(back[key], array)


def test_a_layout_by_hand():
    """Queries, keys and values in one matrix of torch: y = x Wᵀ + b, heads one after the other."""
    rng = np.random.default_rng(0)
    state = {
        "a.in_proj_weight": rng.normal(size=(3 * D, D)),
        "a.in_proj_bias": rng.normal(size=3 * D),
        "a.out_proj.weight": rng.normal(size=(D, D)),
        "a.out_proj.bias": rng.normal(size=D),
    }
    table = dict(mapping.multihead_attention("o", "a", H))
    arrays = {path: source.read(state) for path, source in table.items()}
    x = rng.normal(size=D)
    whole = state["a.in_proj_weight"] @ x + state["a.in_proj_bias"]
    for i, part in enumerate(("query", "key", "value")):
        ours = np.einsum("d,dhk->hk", x, arrays[f"o/{part}/kernel"]) + arrays[f"o/{part}/bias"]
        np.testing.assert_allclose(ours.reshape(-1), whole[i * D : (i + 1) * D])
    y = rng.normal(size=(H, K))
    np.testing.assert_allclose(
        np.einsum("hk,hkd->d", y, arrays["o/out/kernel"]),
        state["a.out_proj.weight"] @ y.reshape(-1),
    )


@pytest.mark.parametrize(
    "state, message",
    [
        ({"stray": np.zeros(1)}, "missing: a, b; without a place in the model: stray"),
        (
            {"a": np.zeros((4, 3)), "b": np.zeros(5)},
            r"tensor b \[5\] reads as \[5\]; y must be \[4\]",
        ),
        (
            {"a": np.zeros((5, 3)), "b": np.zeros(4)},
            r"tensor a: does not fit x \[3, 2, 2\] \(cannot reshape",
        ),
    ],
)
def test_what_does_not_fit_is_said(state, message):
    table = {"x": Source("a", mapping.heads_out(2)), "y": Source("b")}
    with pytest.raises(ConversionError, match=message):
        read_arrays(table, state, {"x": (3, 2, 2), "y": (4,)}, spare=("buffer*",))
