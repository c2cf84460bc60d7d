"""open_clip's CoCa with the same random weights: outputs, gradients and written captions; both
ways; sizes (no download)."""

import dataclasses
import functools
import json
import math
import sys
import types

import jax
import numpy as np
import pytest
from interop_cases import run_convert
from PIL import Image

from jaxvl import caption, evaluate
from jaxvl.config import choose
from jaxvl.interop.files import unwrapped
from jaxvl.interop.mapping import ConversionError, write_arrays
from jaxvl.interop.open_clip import _check_padding
from jaxvl.interop.open_clip_coca import (
    config_of,
    from_open_clip,
    model_cfg_of,
    table,
    to_open_clip,
)
from jaxvl.models import MODELS, presets
from jaxvl.models.functional import functional
from jaxvl.models.generate import Generation, TextShape, generate
from jaxvl.objectives.captioning import Captioning
from jaxvl.objectives.clip import SymmetricSoftmax
from jaxvl.training.restore import restore_encoders

pytestmark = pytest.mark.usefixtures("one_device")

torch = pytest.importorskip("torch")


def import_open_clip():
    """open_clip; where torchvision was built for another torch than is here, with operators
    declared that nothing here calls."""
    try:
        return pytest.importorskip("open_clip")
    except (RuntimeError, ModuleNotFoundError):
        for name in [
            name for name in sys.modules if name.split(".")[0] in ("torchvision", "open_clip")
        ]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
        import_open_clip.library = library  # operators live as long as this
        return pytest.importorskip("open_clip")


open_clip = import_open_clip()

START = 38
END = 39
LENGTH = 9
VISION = dict(image_size=16, patch_size=8, layers=2, width=48, head_width=16, output_tokens=True)
TEXT = dict(
    context_length=LENGTH,
    vocab_size=40,
    width=32,
    heads=4,
    layers=2,
    embed_cls=True,
    output_tokens=True,
)
MULTIMODAL = dict(context_length=LENGTH, vocab_size=40, width=32, heads=4, layers=2)
POOLER = dict(attn_pooler_queries=5, attn_pooler_heads=2)


def cfg(embed_dim=32, quick_gelu=False, vision=(), text=(), **top):
    vision = VISION | dict(vision)
    text = TEXT | dict(text)
    return dict(
        embed_dim=embed_dim,
        quick_gelu=quick_gelu,
        vision_cfg=vision,
        text_cfg=text,
        multimodal_cfg=MULTIMODAL,
        **top,
    )


FORMS = {
    "coca_ViT-B-32": cfg(vision=dict(attentional_pool=True, **POOLER)),
    "coca_base": cfg(24, vision=dict(width=32)),
    "cascade": cfg(vision=dict(attentional_pool="cascade", width=32, **POOLER), quick_gelu=True),
    "parallel, no class token": cfg(
        vision=dict(attentional_pool="parallel", width=32, no_ln_pre=True, **POOLER),
        text=dict(embed_cls=False, layers=1),
    ),
}


def peer(model_cfg):
    """Their model with weights away from their initial values, so that no scale of one or bias of
    zero hides an error."""
    model = open_clip.CoCa(**{k: v for k, v in model_cfg.items() if k != "custom_text"})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name == "logit_scale":
                p.fill_(1.3)
                continue
            inputs = len(p) if name.endswith(("proj", "text_projection")) else p[0].numel()
            spread = (
                0.3
                if p.ndim == 1
                else 0.7
                if "embed" in name or "query" in name
                else 1.0 / math.sqrt(inputs)
            )
            mean = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            p.copy_(mean + spread * torch.randn(p.shape, generator=generator))
    return model.eval()


def state_of(model):
    return {k: v.detach().numpy() for k, v in model.state_dict().items()}


def batch_of(inputs, rows=3, seed=0):
    """Texts of several lengths, the last without any padding."""
    rng = np.random.default_rng(seed)
    t = inputs.text_length
    v = inputs.vocab_size
    start = START if v == 40 else 49406
    text = rng.integers(1, min(v, start), (rows, t))
    text[:, 0] = start
    for row in range(rows):
        end = t - 1 - 2 * (rows - 1 - row)
        text[row, end], text[row, end + 1 :] = inputs.eos_id, inputs.pad_id
    image = rng.normal(size=(rows, inputs.image_size, inputs.image_size, 3))
    return dict(image=np.float32(image), text=np.int32(text))


def theirs_of(model, batch):
    image = torch.from_numpy(batch["image"].transpose(0, 3, 1, 2))
    text = torch.from_numpy(batch["text"]).long()
    return model(image, text), image, text


def ours_of(model, params, batch):
    out, _ = model.apply(params, {}, batch)
    return out, model.apply(params, {}, batch["image"], batch["text"], method="caption_logits")[0]


def compare(out, logits, theirs, inputs):
    """Largest difference of the embeddings, and of the logits relative to their spread; both are
    asserted."""
    rows = {side: theirs[f"{side}_features"].detach().numpy() for side in ("image", "text")}
    differences = {
        side: float(np.abs(out[side] - r.reshape(len(r), -1)).max()) for side, r in rows.items()
    }
    differences["logits"] = float(np.abs(logits[:, :-1] - theirs["logits"].detach().numpy()).max())
    assert max(differences.values()) < 1e-4, differences
    np.testing.assert_allclose(np.exp(out["log_scale"]), theirs["logit_scale"].item(), rtol=1e-6)
    np.testing.assert_array_equal(out["caption_weight"], theirs["labels"].numpy() != inputs.pad_id)
    return differences


@functools.cache
def both(form):
    """(their model, our configuration, inputs, functional, parameters) of a form."""
    theirs = peer(FORMS[form])
    config, inputs = config_of(FORMS[form], start_id=START, eos_id=END)
    model = functional(config, inputs)
    return theirs, config, inputs, model, from_open_clip(state_of(theirs), config, shapes(model))


def shapes(model):
    return {p: s.shape for p, s in model.params.items()}


# The release of the base, and all that it has not: what is between them is slow.
DAILY = ("coca_base", "parallel, no class token")


@pytest.mark.parametrize(
    "form", [pytest.param(f, marks=[] if f in DAILY else [pytest.mark.slow]) for f in FORMS]
)
def test_outputs_loss_and_gradients(form):
    theirs, config, inputs, model, params = both(form)
    batch = batch_of(inputs)

    @jax.jit
    def value_and_gradient(params):
        def loss(params):
            out, logits = ours_of(model, params, batch)
            contrast, _ = SymmetricSoftmax()(out, {}, (), None)
            caption, _ = Captioning()(out, {}, (), None)
            return contrast.value + 2 * caption.value, (out, logits)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, (out, logits)), gradient = value_and_gradient(params)
    wanted, _, _ = theirs_of(theirs, batch)
    compare(out, logits, wanted, inputs)
    pair = {
        f"{side}_features": wanted[f"{side}_features"].reshape(3, -1) for side in ("image", "text")
    }
    parts = open_clip.CoCaLoss(2.0, 1.0)(
        **pair, logits=wanted["logits"], labels=wanted["labels"], logit_scale=wanted["logit_scale"]
    )
    theirs.zero_grad()
    sum(parts).backward()
    np.testing.assert_allclose(loss, sum(parts).item(), rtol=1e-5)
    # Gradients go through the same table as weights, being linear in them.
    for name, g in write_arrays(table(config), gradient).items():
        got = dict(theirs.named_parameters())[name].grad
        got = np.zeros_like(g) if got is None else got.numpy()
        np.testing.assert_allclose(g, got, atol=2e-5 * max(1.0, np.abs(got).max()), err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_export_is_loaded_strictly_and_is_the_same_model(form):
    theirs, config, inputs, _, params = both(form)
    again = open_clip.CoCa(
        **{k: v for k, v in model_cfg_of(config, inputs).items() if k != "custom_text"}
    ).eval()
    state = to_open_clip(params, config)
    again.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=True)
    for name, array in state_of(theirs).items():
        np.testing.assert_array_equal(state[name], array, err_msg=name)
    batch = batch_of(inputs, seed=1)
    with torch.no_grad():
        a = theirs_of(theirs, batch)[0]
        b = theirs_of(again, batch)[0]
    for name in ("image_features", "text_features", "logits", "logit_scale"):
        np.testing.assert_array_equal(a[name], b[name])
    assert config_of(model_cfg_of(config, inputs), start_id=START, eos_id=END) == (config, inputs)


@pytest.mark.parametrize("form", ["coca_ViT-B-32", "parallel, no class token"])
def test_greedy_captions_are_those_of_their_model_without_kept_keys(form):
    theirs, _, inputs, model, params = both(form)
    batch = batch_of(inputs, rows=8, seed=2)
    length = LENGTH - 1

    @jax.jit
    def write(params, image):
        (kv_cache, cross_kv), _ = model.apply(params, {}, image, length, method="prefill")
        step = lambda kv_cache, *args: model.apply(
            params, {}, kv_cache, cross_kv, *args, method="decode_step"
        )[0]
        return generate(step, kv_cache, Generation(), TextShape(8, length, END, 0)).tokens

    _, image, _ = theirs_of(theirs, batch)
    text = torch.full((8, 1), START)
    done = torch.zeros(8, dtype=bool)
    with torch.no_grad():
        for t in range(length):
            given = (
                torch.nn.functional.pad(text, (0, LENGTH - 1 - t))
                if form != "coca_ViT-B-32"
                else text
            )  # whose mask is of one length
            logits = theirs(image, given, output_labels=False)["logits"][:, t]
            logits[:, 0] = -torch.inf
            new = torch.full((8,), END) if t == length - 1 else logits.argmax(-1)
            text = torch.cat([text, torch.where(done, 0, new)[:, None]], 1)
            done |= new == END
    assert len(np.unique(text.numpy(), axis=0)) > 2  # else a constant caption would pass
    np.testing.assert_array_equal(write(params, batch["image"]), text[:, 1:].numpy())


def test_the_mask_in_its_right_place_is_theirs_too():
    theirs, config, inputs, _, params = both("coca_ViT-B-32")
    model = functional(dataclasses.replace(config, late_mask=False), inputs)
    batch = batch_of(inputs)
    late = theirs_of(theirs, batch)[0]["text_features"]
    theirs.text.correct_cls_mask = True
    try:
        right = theirs_of(theirs, batch)[0]["text_features"].detach().numpy()
    finally:
        theirs.text.correct_cls_mask = False
    text, _ = jax.jit(functools.partial(model.apply, method="encode_text"))(
        params, {}, batch["text"]
    )
    np.testing.assert_allclose(text, right, atol=1e-5)
    assert np.abs(late.detach().numpy() - right).max() > 1e-2


def test_older_layouts():
    theirs, config, _, model, params = both("coca_ViT-B-32")
    state = state_of(theirs) | {
        "text_decoder.attn_mask": np.zeros((LENGTH, LENGTH)),
        "text.attn_mask": np.zeros((LENGTH + 1,) * 2),
    }
    for rename in (
        lambda n: f"module.{n}",
        lambda n: n.removeprefix("text."),
        lambda n: f"module.{n.removeprefix('text.')}",
    ):
        old = {rename(n): a.reshape(1) if n == "logit_scale" else a for n, a in state.items()}
        arrays = from_open_clip(unwrapped(old), config, shapes(model))
        for path, array in params.items():
            np.testing.assert_array_equal(arrays[path], array, err_msg=path)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            dict(vision=dict(ls_init_value=0.1)),
            r"vision_cfg.ls_init_value: 0.1 has no counterpart in coca; must be None",
        ),
        (
            dict(vision=dict(layers=[3, 4, 6, 3])),
            r"vision_cfg.layers: \[3, 4, 6, 3\] must be one number",
        ),
        (
            dict(text=dict(hf_model_name="roberta-base")),
            r"text_cfg.hf_model_name: 'roberta-base' has no counterpart",
        ),
        (dict(text=dict(rotary=True)), r"text_cfg.rotary: True is not known here"),
        (dict(text=dict(heads=8)), r"multimodal_cfg.heads: 4; must be that of text_cfg, 8"),
        (
            dict(text=dict(embed_cls=False, pool_type="last")),
            r"text_cfg.pool_type: 'last' does not read the EOS token, 39",
        ),
        (dict(vision=dict(head_width=0)), r"vision_cfg.head_width: 0 must be a whole number >= 1"),
        (dict(vision=dict(width="32")), r"vision_cfg.width: '32' must be a whole number >= 1"),
        (dict(text=dict(pad_id="a")), r"text_cfg.pad_id: 'a' must be the id of a token"),
        (dict(embed_dim=None), r"embed_dim: is missing"),
        (dict(stray=1), r"stray: 1; is not a field that is known here"),
        (dict(init_logit_scale="large"), r"init_logit_scale: 'large'; must be a number"),
        (
            dict(vision=dict(attentional_pool=True), embed_dim=24),
            r"embed_dim: 24 has no counterpart in open_clip's CoCa; must be 32",
        ),
    ],
)
def test_what_has_no_counterpart_is_named(change, words):
    with pytest.raises(ConversionError, match=words):
        config_of(cfg(**change), start_id=START, eos_id=END)


@pytest.mark.parametrize(
    "pad_id, words",
    [
        (1, "text_cfg.pad_id: 0 is what the model masks, but the tokenizer pads with 1"),
        (END, "tokenizer: pads with its EOS"),
    ],
)
def test_a_tokenizer_that_pads_with_another_token_is_refused(pad_id, words):
    config, inputs = config_of(FORMS["coca_ViT-B-32"], start_id=START, eos_id=END)
    inputs = dataclasses.replace(inputs, pad_id=pad_id if pad_id == END else 0)
    with pytest.raises(ConversionError, match=words):
        _check_padding(config, inputs, types.SimpleNamespace(pad_id=pad_id, eos_id=END))


def test_the_papers_form_is_not_open_clips():
    with pytest.raises(
        ConversionError,
        match="model: 'coca' has no counterpart in open_clip's CoCa; must be 'open_clip_coca'",
    ):
        table(choose(MODELS, presets.coca(), "model"))


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14", "base"])
def test_published_shapes_and_sizes(name):
    model_cfg = open_clip.get_model_config(f"coca_{name}")
    with torch.device("meta"):
        theirs = {
            k: tuple(v.shape)
            for k, v in open_clip.CoCa(**{k: v for k, v in model_cfg.items() if k != "custom_text"})
            .state_dict()
            .items()
        }
    config, inputs = config_of(model_cfg)
    assert config == choose(MODELS, presets.coca_open_clip(name), "model")
    assert config_of(model_cfg_of(config, inputs)) == (config, inputs)
    ours = functional(config, inputs).params
    assert sum(math.prod(s.shape) for s in ours.values()) == sum(map(math.prod, theirs.values()))
    sources = table(config)
    assert set(sources) == set(ours)
    assert {n for source in sources.values() for n in source.names()} == set(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "base"])
def test_full_size(name):
    model_cfg = open_clip.get_model_config(f"coca_{name}")
    theirs = peer(model_cfg)
    config, inputs = config_of(model_cfg)
    model = functional(config, inputs)
    batch = batch_of(inputs, rows=2)
    params = from_open_clip(state_of(theirs), config, shapes(model))
    out, logits = jax.jit(functools.partial(ours_of, model))(params, batch)
    with torch.no_grad():
        wanted, _, _ = theirs_of(theirs, batch)
    print(name, compare(out, np.asarray(logits), wanted, inputs))
    np.testing.assert_array_equal(
        to_open_clip(params, config)["visual.proj"], state_of(theirs)["visual.proj"]
    )


@pytest.mark.slow
def test_a_converted_captioner_captions_and_is_evaluated_from_its_folder(tmp_path, capsys):
    """`convert`, then `caption` and `evaluate` on what it wrote; the caption is that of their own
    model, read by their tokenizer."""
    form = cfg(
        text=dict(vocab_size=49408, context_length=16, layers=1),
        vision=dict(attentional_pool=True, layers=1, **POOLER),
    ) | dict(
        custom_text=True,
        multimodal_cfg=dict(MULTIMODAL, vocab_size=49408, context_length=16, layers=1),
    )
    theirs = peer(form)
    folder = tmp_path / "from"
    workdir = tmp_path / "run"
    shown = tmp_path / "shown"
    folder.mkdir(), shown.mkdir()
    preprocess = dict(
        size=16,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation="bicubic",
        resize_mode="shortest",
    )
    (folder / "open_clip_config.json").write_text(
        json.dumps(dict(model_cfg=form, preprocess_cfg=preprocess))
    )
    torch.save(theirs.state_dict(), folder / "open_clip_pytorch_model.bin")
    status, said = run_convert(f"--from=open_clip:{folder}", f"--to=jaxvl:{workdir}", "--check")
    assert status == 0, said

    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(shown / f"{i}.png")
    capsys.readouterr()
    assert caption.main([f"--workdir={workdir}", "--json", str(shown)]) == 0
    written = [json.loads(line)["caption"] for line in capsys.readouterr().out.splitlines()]
    image = torch.from_numpy((pixels.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5).float()
    text = torch.full((4, 1), 49406)
    tokenizer = open_clip.SimpleTokenizer()
    with torch.no_grad():  # not padded: the mask of this form is of one length
        for t in range(15):
            logits = theirs(image, text, output_labels=False)["logits"][:, t]
            logits[:, 0] = -torch.inf
            text = torch.cat([text, logits.argmax(-1, keepdim=True)], 1)
    for have, tokens in zip(written, text[:, 1:].tolist()):
        tokens = (
            tokens[: tokens.index(49407)] if 49407 in tokens else tokens[:-1]
        )  # the last place is the end's
        assert have.split() == tokenizer.decode(tokens).split()
    assert len(set(written)) > 1

    assert (
        evaluate.main(
            [
                f"--workdir={workdir}",
                "--config.evals.named.name=zero_shot",
                "--config.evals.named.source.name=shapes",
                "--config.evals.named.source.split=test_a",
                "--config.evals.said.name=likelihood",
                "--config.evals.said.source.name=shapes",
                "--config.evals.said.source.split=test_a",
                "--config.evals.said.text=name/en",
            ]
        )
        == 0
    )
    results = json.loads((workdir / "evaluate" / "results.json").read_text())
    assert 0 <= results["named/acc@1"] < 0.2 and results["said/captions"] == 144 * 4

    encoders = restore_encoders(workdir)[2]
    said = encoders.tokenizer.encode(
        ["one red circle", "two dogs", "a", "three green stars and more"], 16
    )
    scores = encoders.scores(pixels, said[:, None]).rows[:, 0]
    with torch.no_grad():
        out = theirs(image, torch.from_numpy(said).long())
    counts = out["labels"] != encoders.tokenizer.pad_id
    log_p = torch.log_softmax(out["logits"].double(), -1).gather(-1, out["labels"][..., None])[
        ..., 0
    ]
    np.testing.assert_allclose(scores[:, 0], (log_p * counts).sum(1).numpy(), rtol=1e-5)
    np.testing.assert_array_equal(scores[:, 1], counts.sum(1).numpy())
