"""EfficientNet: published sizes, blocks, and batch statistics across devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from small_models import ALIGN, batch_of, model_of, torch_and_transformers, with_options

from jaxvl.models import InputSpec
from jaxvl.models.efficientnet import EfficientNetConfig
from jaxvl.models.efficientnet_variants import VARIANTS, Stage, parse_stage, round_channels
from jaxvl.sharding import MeshConfig, make_mesh


def parameters(config, image_size=64, classes=1000):
    """Of the encoder with a linear classifier behind."""
    module = nnx.eval_shape(lambda: config.build(InputSpec(image_size, 8, 8), nnx.Rngs(params=0)))
    own = sum(math.prod(v.shape) for _, v in nnx.to_flat_state(nnx.state(module, nnx.Param)))
    return own + config.features * classes + classes


# Tan & Le 2019, table 2; Xie et al. 2020 for L2; Tan & Le 2021, table 7 (V2-S 22M, M 54M, L 120M),
# in millions.
@pytest.mark.parametrize(
    "variant, millions",
    [
        ("b0", 5.3),
        ("b1", 7.8),
        ("b2", 9.1),
        ("b3", 12),
        ("b4", 19),
        ("b5", 30),
        ("b6", 43),
        ("b7", 66),
        pytest.param("l2", 480, marks=pytest.mark.slow),
        ("v2_s", 21.5),
        ("v2_m", 54),
        pytest.param("v2_l", 119, marks=pytest.mark.slow),
    ],
)
def test_published_parameter_counts(variant, millions):
    count = parameters(EfficientNetConfig(variant, head=True)) / 1e6
    digits = 1 if isinstance(millions, float) else 0
    assert round(count, digits) == millions, count


@pytest.mark.parametrize("variant", ["b0", "b3", "b7"])
def test_count_equals_transformers_classifier(variant):
    torch, transformers = torch_and_transformers()
    plan = VARIANTS[variant]
    with torch.device("meta"):
        config = transformers.EfficientNetConfig(
            width_coefficient=plan.width,
            depth_coefficient=plan.depth,
            num_labels=1000,
            hidden_dim=round_channels(1280 * plan.width),
        )
        theirs = transformers.EfficientNetForImageClassification(config)
    assert parameters(EfficientNetConfig(variant, head=True)) == sum(
        p.numel() for p in theirs.parameters()
    )


@pytest.mark.parametrize(
    "variant, widths, repeats",
    [
        ("b0", (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)),
        ("b3", (24, 32, 48, 96, 136, 232, 384), (2, 3, 3, 5, 5, 6, 2)),
        ("b7", (32, 48, 80, 160, 224, 384, 640), (4, 7, 7, 10, 10, 13, 4)),
        ("l2", (72, 104, 176, 344, 480, 824, 1376), (6, 11, 11, 16, 16, 22, 6)),
    ],
)
def test_stage_widths_and_repeats(variant, widths, repeats):
    _, stages, _ = EfficientNetConfig(variant).plan()
    assert tuple(s.channels for s in stages) == widths
    assert tuple(s.repeats for s in stages) == repeats
    assert EfficientNetConfig(variant).features == widths[-1]


def test_notation():
    assert parse_stage("mbconv_r2_k5_s2_e6_o24_se0.25") == Stage("mbconv", 2, 5, 2, 6, 24, 0.25)
    assert parse_stage("fused_r3_k3_s1_e1_o16") == Stage("fused", 3, 3, 1, 1, 16, 0.0)


def test_stem_stride_keeps_resolution():
    sides = {}
    for stride in (1, 2):
        config = EfficientNetConfig(stem=8, stem_stride=stride, stages=("fused_r1_k3_s2_e1_o8",))
        run = lambda image, config=config: (
            config.build(InputSpec(16, 8, 8), nnx.Rngs(params=0))(image).tokens
        )
        sides[stride] = jax.eval_shape(run, jnp.ones((1, 16, 16, 3))).shape[1]
    assert sides == {1: 64, 2: 16}


def test_head_and_group_norm():
    config = EfficientNetConfig(
        stem=8, stages=("mbconv_r1_k3_s2_e2_o8_se0.25",), head=True, width=0.1, norm="group"
    )
    module = nnx.eval_shape(lambda: config.build(InputSpec(16, 8, 8), nnx.Rngs(params=0)))
    assert not nnx.to_flat_state(nnx.state(module, nnx.BatchStat))
    pooled = jax.eval_shape(
        lambda x: config.build(InputSpec(16, 8, 8), nnx.Rngs(params=0))(x, train=True).pooled,
        jnp.ones((2, 16, 16, 3)),
    )
    assert pooled.shape == (2, config.features) == (2, 128)


@pytest.mark.slow  # through all statistics: `test_mesh_equals_one_device[align]`
def test_batch_norm_on_eight_devices_equals_one():
    """Loss, gradients and running statistics; rows differ much between devices, so that local
    statistics would show."""
    model, _ = model_of(ALIGN)
    params, rest = model.init(jax.random.key(0))
    batch = batch_of(16)
    batch["image"] = batch["image"] * jnp.linspace(0.1, 3, 16)[:, None, None, None]
    weight = jax.random.normal(jax.random.key(5), (16, 24))

    def loss(params, rest, batch):
        out, new = model.apply(params, rest, batch, train=True)
        return jnp.sum(out["image"] * weight), new

    grad = jax.value_and_grad(loss, has_aux=True)
    one = jax.jit(grad)(params, rest, batch)
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        eight = jax.jit(grad)(params, rest, jax.device_put(batch, rows))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, eight)


def test_running_statistics_follow_the_batch():
    model, _ = model_of(ALIGN)
    params, rest = model.init(jax.random.key(0))
    batch = batch_of(8)
    _, new = jax.jit(lambda p, r, b: model.apply(p, r, b, train=True))(params, rest, batch)
    path = "image/encoder/stem/norm"
    kernel = params["image/encoder/stem/conv/kernel"]
    y = np.asarray(
        jax.lax.conv_general_dilated(
            batch["image"], kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        np.float64,
    )
    np.testing.assert_allclose(new[f"{path}/mean"], 0.01 * y.mean((0, 1, 2)), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(new[f"{path}/var"], 0.99 + 0.01 * y.var((0, 1, 2)), rtol=1e-5)
    _, kept = jax.jit(model.apply)(params, rest, batch)
    jax.tree.map(np.testing.assert_array_equal, kept, rest)


REPEATS = dict(
    image__stages=("mbconv_r1_k3_s2_e1_o8_se0.25", "mbconv_r4_k3_s2_e2_o16_se0.25"),
    image__drop_connect=0.3,
)


def loss_and_gradients(**options):
    """Of a tower whose second stage has three blocks of one shape; (loss, statistics), gradients,
    and the lowered program."""
    model, _ = model_of(with_options(ALIGN, **REPEATS, **options))
    params, rest = model.init(jax.random.key(0))

    def loss(p):
        out, new = model.apply(p, rest, batch_of(4), train=True, key=jax.random.key(1))
        return (out["image"] ** 3).sum(), new

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return step(params), step.lower(params).as_text()


@pytest.fixture(scope="module")
def plain():
    return loss_and_gradients()


@pytest.mark.parametrize(
    "options", [dict(remat=True), dict(scan=True), dict(scan=True, remat=True)], ids=str
)
def test_other_ways_to_run_the_blocks(plain, options):
    found, text = loss_and_gradients(**{f"image__{k}": v for k, v in options.items()})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), found, plain[0]
    )
    if options == dict(scan=True):
        products = "stablehlo.dot_general"
        assert text.count(products) < plain[1].count(products)
