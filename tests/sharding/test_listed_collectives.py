"""The compiled steps of the shipped systems, in small, hold the collectives that are listed here, no
others and not of more bytes: on data, data x fsdp, data x tensor, and with experts; and those of a
system with a teacher and queues, and of one with LoRA adapters.

By the TPUs' compiler. Towers are stacks of layers, the loss is over the whole batch, a captioner
has a vocabulary, IMP its experts: what is gathered and summed is of the same kind as at full size.
Activations are larger than weights, so that none of them passes for a weight.
"""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest
from training import tiny

from jaxvl.hlo import Collective, collectives, read
from jaxvl.planning.measure import vocabulary_of
from jaxvl.sharding.mesh import AXES, make_mesh
from jaxvl.sharding.topology import compile_only_devices
from jaxvl.training.build import build_model, fresh_state, make_tasks
from jaxvl.training.checkpoint import abstract_state
from jaxvl.training.compile import compile_turns
from jaxvl.training.teacher_models import make_teachers

WIDTH = 64  # of towers and embeddings
LAYERS = 3
ROWS = 4096
IMAGE = 4  # tokens: patches of 8 x 8 of 16 x 16
TEXT = 6
WORDS = 4096
GROUP = 1536  # tokens that are routed together: 16 groups of texts
EXPERTS = 8
RANK = 8  # of adapters
QUEUE = 2 * ROWS

EMBEDDINGS = 4 * ROWS * WIDTH  # bytes: of one side, of all devices together

SMALL = 64 * 1024  # bytes: vectors and scalars
STACK = dict(width=WIDTH, depth=LAYERS, heads=4, pool="mean", remat="full")
VIT = dict(name="vit", variant="Ti/8", **STACK)
TOWERS = dict(image=VIT, text=dict(name="text_transformer", variant="Ti", **STACK))
NET = dict(
    name="efficientnet", stem=32, stages=("mbconv_r2_k3_s2_e2_o32_se0.25",), drop_connect=0.0
)
BERT = dict(name="bert", variant="tiny", width=WIDTH, depth=LAYERS, heads=4, positions=8)
MODELS = dict(
    clip=dict(name="dual_encoder", embed_dim=WIDTH, **TOWERS),
    siglip=dict(
        name="dual_encoder",
        embed_dim=WIDTH,
        init_bias=-10.0,
        **TOWERS,
    ),
    align=dict(name="align", image=NET, text=BERT, init_temperature=0.1),
    coca=dict(
        name="coca",
        image=VIT,
        width=WIDTH,
        heads=4,
        hidden=4 * WIDTH,
        unimodal=LAYERS,
        multimodal=LAYERS,
        queries=4,
        embed_dim=WIDTH,
    ),
    imp=dict(
        name="imp",
        variant="small",
        width=WIDTH,
        depth=LAYERS,
        heads=4,
        hidden=4 * WIDTH,
        patch=8,
        most_pixels=16,
        most_words=8,
        embed_dim=WIDTH,
        projection_hidden=WIDTH,
        inputs=("image", "text"),
        pairs=("vision-text",),
        remat="full",
        moe=dict(last=1, experts=EXPERTS, group_size=GROUP),
    ),
)
MODELS["momentum"] = MODELS["lora"] = MODELS["clip"]
OBJECTIVES = dict(
    clip=dict(clip=1.0),
    siglip=dict(siglip=1.0),
    align=dict(align=1.0),
    coca=dict(clip=1.0, captioning=2.0),
    imp=dict(nce=dict(pairs=("vision-text",))),
    momentum=dict(itc_momentum=dict(queue=QUEUE, duplicates="positive")),
    lora=dict(clip=1.0),
)
# A teacher that follows the model, whose embeddings fill the queues; adapters beside frozen weights.
MOMENTUM = dict(teachers=dict(momentum=dict(source="ema", decay=0.995)))
BEFORE = dict(momentum=dict(momentum=dict(name="teach", teacher="momentum")))
LORA = dict(adapters=dict(low=dict(name="lora", paths="(query|key|value|out|up|down)$", rank=RANK)))
FURTHER = dict(momentum=MOMENTUM, lora=LORA)
MESHES = {
    "data": (8, 1, 1, 1),
    "fsdp": (2, 4, 1, 1),
    "tensor": (4, 1, 2, 1),
    "expert": (2, 2, 1, 2),
    "zero1": (8, 1, 1, 1),
    "zero1 fsdp": (2, 4, 1, 1),
}


@dataclasses.dataclass(frozen=True)
class Listed:
    """Collectives that may be there.

    Attributes:
      kinds: of `hlo.KINDS`, in words.
      axes: of the mesh, along which devices take part.
      source: pattern of the names that JAX gave what they are for; of several that the compiler has
        joined, one of them.
      most: bytes of a device's parts, in a step, all of them together.
      why: what they are for.
    """

    kinds: str
    axes: str
    source: str
    most: float
    why: str


def listed(name, mesh, parameters, adapters):
    """What a system's step may hold; `parameters`: their number, `adapters`: of those, the
    adapters', beside which all others are frozen."""
    on = dict(zip(AXES, MESHES[mesh]))
    zero1 = mesh.startswith("zero1")
    batch = " x ".join(axis for axis in ("data", "fsdp") if on[axis] > 1)
    shards = on["data"] * on["fsdp"]
    words = 4 * WORDS * WIDTH
    weights = 2 * (parameters - WORDS * WIDTH)  # bfloat16
    # Gradients: the words' is float32, the rest's bfloat16, as the products that make them.
    table = 0 if adapters else words
    rest = 2 * adapters if adapters else weights
    if name == "imp":  # one tower, run for pictures and for texts; gradients of experts in float32
        weights = 2 * rest
        rest = 2 * rest
    # On all devices: of fsdp's parameters the words' and adapters' only, whose parts no fusion
    # scatters.
    unscattered = on["fsdp"] == 1 or adapters
    summed = 0 if mesh == "zero1" else table + (rest if unscattered else 0)
    rows = [
        *(_queues(batch) if name == "momentum" else _pairs(batch)),
        Listed(
            "all-reduce",
            batch,
            "",
            summed / on["tensor"] + SMALL,
            "gradients of what is not split, and sums of the loss",
        ),
    ]
    if zero1:
        whole = 4 * parameters / on["fsdp"]
        rows.append(Listed("all-gather", "data", "", whole + SMALL, "new parameters, of parts"))
    if mesh == "zero1":
        rows.append(
            Listed(
                "reduce-scatter collective-permute",
                "data",
                "transpose",
                table + 1.2 * rest,
                "gradients, as parts; some by way of a ring of eight and one round for nothing",
            )
        )
    if on["fsdp"] > 1:
        rows += [
            Listed(
                "all-gather collective-permute",
                "fsdp",
                "model",
                3 * weights + words,
                "weights in bfloat16: forward, backward, recomputation; the words' in float32",
            ),
            *(_teachers(1.1 * weights + words) if name == "momentum" else ()),
            Listed("reduce-scatter", "fsdp", "transpose", rest, "gradients, as parts"),
            Listed("all-reduce", "fsdp", "", 0.4 * rest, "gradients of narrow kernels; norms"),
            Listed("all-reduce", "data", "", rest / on["fsdp"] + SMALL, "gradients' parts"),
        ]
    if zero1 and on["fsdp"] > 1:
        rows.append(Listed("reduce-scatter", "data", "", SMALL, "gradients of projections"))
    if on["tensor"] > 1:
        rows.append(
            Listed(
                "all-reduce",
                "tensor",
                "",
                _tensor(name, shards) + SMALL,
                "products over split widths: two a layer and pass, one of recomputation; words",
            )
        )
    if on["expert"] > 1:
        rows += _experts(on, parameters)
    return rows


def _pairs(batch):
    """Of a loss whose rows are compared with those of the batch."""
    return [
        Listed(
            "all-gather collective-permute",
            batch,
            "objectives/",
            3.2 * EMBEDDINGS,
            "the loss' blocks meet: v forward, u and v backward, and vectors of their rows",
        ),
        Listed("all-to-all", batch, "objectives/", 16 * ROWS, "sums of columns go home"),
    ]


def _queues(batch):
    """Of a loss whose rows are compared with a teacher's, of the batch and of two queues."""
    keys = 1 + QUEUE / ROWS  # a row of the batch, of one side
    return [
        Listed(
            "all-gather",
            batch,
            r"itc_momentum\)/scatter",
            2.1 * EMBEDDINGS,
            "the teacher's rows and their groups, of which each device has a part of the places",
        ),
        Listed(
            "all-to-all collective-permute",
            batch,
            r"itc_momentum\)/concatenate",
            2 * keys * EMBEDDINGS / 3,
            "batch and queue, each split over devices, as one",
        ),
        Listed(
            "all-gather collective-permute",
            batch,
            "objectives/",
            2 * keys * EMBEDDINGS * 1.2,
            "the loss' blocks meet: both sides' keys forward, none backward; vectors of their rows",
        ),
        Listed(
            "all-to-all",
            batch,
            "objectives/",
            2 * 2 * keys * 16 * ROWS,
            "sums of columns go home: of two sides, against hard and soft targets",
        ),
    ]


def _teachers(weights):
    why = "the teacher's weights: forward only; those of patches in float32"
    return [Listed("all-gather collective-permute", "fsdp", "before/momentum", weights, why)]


def _tensor(name, shards):
    """Bytes of activations that are summed over `tensor`."""
    image, text = (2 * ROWS / shards * tokens * WIDTH for tokens in (IMAGE, TEXT))
    passes = 5 * LAYERS
    looked_up = 2 * text  # in float32
    return dict(
        clip=passes * (image + text) + looked_up,
        siglip=passes * (image + text) + looked_up,
        align=1.25 * passes * text + looked_up,  # and the pooler
        coca=passes * (image + 3 * text) + 8 * image + looked_up,  # crossing: a third one
        imp=1.2 * passes * (image + text) + looked_up,  # MoE layers recompute all
    )[name]


def _experts(on, parameters):
    tokens = 2 * ROWS / (on["data"] * on["fsdp"] * on["expert"]) * (IMAGE + TEXT) * WIDTH
    return [
        Listed(
            "all-to-all",
            "expert",
            "model",
            6 * tokens,
            "tokens to experts and back: forward, recomputation, backward",
        ),
        Listed(
            "all-reduce",
            "data x fsdp x expert",
            "",
            4 * WORDS * WIDTH + SMALL,
            "gradients of what is not split",
        ),
        Listed("all-reduce", "data x expert", "", parameters, "gradients' parts"),
        Listed(
            "all-gather",
            "expert",
            "model",
            2 * 2 * ROWS / (on["data"] * on["fsdp"]) * WIDTH,
            "embeddings of rows that lay by groups, for the loss",
        ),
    ]


def compiled(name, shape, zero1=False, remat="full"):
    """The collectives of a system's step, the number of its parameters, and of its adapters'."""
    towers = {k: dict(v, remat=remat) for k, v in TOWERS.items()} if remat != "full" else {}
    pairs = dict(tiny.task(batch=ROWS), objectives=OBJECTIVES[name], before=BEFORE.get(name, {}))
    experiment = tiny.experiment(
        model=MODELS[name] | towers,
        tasks=dict(pairs=pairs),
        tokenizer=dict(vocab_size=WORDS),
        optim=dict(lr=1e-3, warmup=2, zero1=zero1),
        mesh=dict(zip(AXES, shape)),
        dtype="bfloat16",
        **FURTHER.get(name, {}),
    )
    mesh = make_mesh(experiment.mesh, compile_only_devices("v5e:2x4"))
    vocabulary = vocabulary_of(experiment)
    model = build_model(experiment, vocabulary)
    teachers = make_teachers(experiment, model, vocabulary)
    with jax.set_mesh(mesh):
        _, shapes, places = fresh_state(experiment, model, mesh, teachers)
        tasks = make_tasks(experiment)
        turns = experiment.schedule.build(["pairs"], experiment.steps).turns
        abstract = abstract_state(shapes, places)
        [program] = compile_turns(experiment, tasks, turns, model, abstract, places, mesh, teachers)
    sizes = {path: math.prod(s.shape) for path, s in shapes.params.items()}
    adapters = sum(size for path, size in sizes.items() if "/adapter/" in path)
    return collectives(read(program.step), mesh.size), sum(sizes.values()), adapters


@pytest.fixture
def little_effort():
    before = jax.config.jax_exec_time_optimization_effort
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    yield
    jax.config.update("jax_exec_time_optimization_effort", before)


def cases():
    daily = {("clip", "data"), ("clip", "fsdp"), ("imp", "expert")}
    daily |= {("momentum", "fsdp")}
    only = {"expert": {"imp"}, "zero1": {"clip"}, "zero1 fsdp": {"clip"}}
    only |= {"tensor": {*MODELS} - {*FURTHER}}
    for name in MODELS:
        for on in MESHES:
            if name in only.get(on, MODELS):
                slow = () if (name, on) in daily else (pytest.mark.slow,)
                yield pytest.param(name, on, marks=slow)


def unlisted(found, rows, on):
    """Lines that say what is wrong: collectives without an entry, entries with too many bytes."""
    taken = dict.fromkeys(rows, 0)
    wrong = []
    for collective in found:
        size = collective.size * collective.times
        axes = collective.axes(on)
        entry = next((row for row in rows if _fits(row, collective, axes)), None)
        if entry is not None:
            taken[entry] += size
        elif size > 4096:  # single numbers, biases
            wrong.append(f"{collective.kind} {axes} {size} bytes: {collective.source}")
    for row, size in taken.items():
        if size > row.most:
            wrong.append(f"{row.kinds} {row.axes} ({row.why}): {size} bytes, {row.most:.0f} listed")
    return wrong


def _fits(row, collective, axes):
    named = re.search(row.source, collective.source)
    return collective.kind in row.kinds.split() and axes == row.axes and named is not None


@pytest.mark.usefixtures("tpu_compiler", "little_effort")
@pytest.mark.parametrize("name, mesh", cases())
def test_only_listed_collectives(name, mesh):
    found, *sizes = compiled(name, MESHES[mesh], zero1=mesh.startswith("zero1"))
    wrong = unlisted(found, listed(name, mesh, *sizes), dict(zip(AXES, MESHES[mesh])))
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


@pytest.mark.usefixtures("tpu_compiler", "little_effort")
@pytest.mark.parametrize("mesh", ["data", "fsdp"])
def test_recomputation_by_parts_adds_no_collectives(mesh):
    """However many parts the rows of a layer have, its gradient is summed over devices once."""
    found, *sizes = compiled("clip", MESHES[mesh], remat="chunks")
    wrong = unlisted(found, listed("clip", mesh, *sizes), dict(zip(AXES, MESHES[mesh])))
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


def test_what_is_not_listed_is_told():
    on = dict(zip(AXES, MESHES["data"]))
    rows = listed("clip", "data", 600_000, 0)
    everyone = np.arange(8)[None]
    gather = Collective("all-gather", "g", "jvp(model)/image/add", 2**20, 3, everyone)
    assert unlisted([gather], rows, on) == ["all-gather data 3145728 bytes: jvp(model)/image/add"]
    loss = dataclasses.replace(gather, source="jvp(objectives/clip)/all_gather")
    assert not unlisted([loss], rows, on)
    [told] = unlisted([loss, loss], rows, on)
    assert "the loss' blocks meet" in told and "6291456 bytes" in told
    one_slice = dataclasses.replace(loss, groups=np.arange(8).reshape(2, 4))
    assert "all-gather data (4 of 8)" in unlisted([one_slice], rows, on)[0]
