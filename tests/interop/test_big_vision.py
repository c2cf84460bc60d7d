"""big_vision's npz files: bits there and back, and outputs through open_clip's own reader of
them."""

import dataclasses

import numpy as np
import pytest
from interop_cases import SIDE, VOCAB, check_same, images, library, ours_of, piece_file, texts

from jaxvl.interop import big_vision
from jaxvl.interop.mapping import ConversionError

WIDTH = 32
HEADS = 4
HIDDEN = 48
PATCH = 8
LENGTH = 12


def tree(scanned):
    """A random SigLIP as big_vision saves it: names and shapes as in its `models/vit.py` and
    `models/proj/image_text`."""
    rng = np.random.default_rng(0)
    out = {}

    def put(name, *shape, mean=0.0, spread=None):
        spread = 1 / np.sqrt(max(shape[-1], 1)) if spread is None else spread
        out[f"params/{name}"] = (mean + spread * rng.normal(size=shape)).astype(np.float32)

    def norm(name, lead):
        put(f"{name}/scale", *lead, WIDTH, mean=1.0, spread=0.3)
        put(f"{name}/bias", *lead, WIDTH)

    def attention_mlp(name, lead):
        head = WIDTH // HEADS
        for part in ("query", "key", "value"):
            put(f"{name}/MultiHeadDotProductAttention_0/{part}/kernel", *lead, WIDTH, HEADS, head)
            put(f"{name}/MultiHeadDotProductAttention_0/{part}/bias", *lead, HEADS, head)
        put(f"{name}/MultiHeadDotProductAttention_0/out/kernel", *lead, HEADS, head, WIDTH)
        put(f"{name}/MultiHeadDotProductAttention_0/out/bias", *lead, WIDTH)
        for i, (a, b) in enumerate(((WIDTH, HIDDEN), (HIDDEN, WIDTH))):
            put(f"{name}/MlpBlock_0/Dense_{i}/kernel", *lead, a, b)
            put(f"{name}/MlpBlock_0/Dense_{i}/bias", *lead, b)

    for stack in ("img/Transformer", "txt/Encoder_0"):
        for block, lead in (
            [("encoderblock", (2,))] if scanned else [(f"encoderblock_{i}", ()) for i in range(2)]
        ):
            norm(f"{stack}/{block}/LayerNorm_0", lead)
            norm(f"{stack}/{block}/LayerNorm_1", lead)
            attention_mlp(f"{stack}/{block}", lead)
        norm(f"{stack}/encoder_norm", ())
    put("img/embedding/kernel", PATCH, PATCH, 3, WIDTH)
    put("img/embedding/bias", WIDTH)
    put("img/pos_embedding", 1, (SIDE // PATCH) ** 2, WIDTH)
    put("img/MAPHead_0/probe", 1, 1, WIDTH)
    norm("img/MAPHead_0/LayerNorm_0", ())
    attention_mlp("img/MAPHead_0", ())
    put("txt/Embed_0/embedding", VOCAB, WIDTH)
    put("txt/pos_embedding", 1, LENGTH, WIDTH)
    put("txt/head/kernel", WIDTH, WIDTH)
    put("txt/head/bias", WIDTH)
    return out | {"params/t": np.float32([0.7]), "params/b": np.float32([-0.3])}


@pytest.mark.parametrize("scanned", [False, True])
def test_there_and_back_changes_no_bit(scanned, tmp_path):
    state = tree(scanned)
    np.savez(tmp_path / "a.npz", **state, **{"opt/count": np.zeros(1)})
    bundle = big_vision.load(tmp_path / "a.npz", "none")
    assert (bundle.inputs.image_size, bundle.inputs.text_length, bundle.inputs.vocab_size) == (
        SIDE,
        LENGTH,
        VOCAB,
    )
    big_vision.save(bundle, tmp_path / "b.npz")
    with np.load(tmp_path / "b.npz") as back:
        assert set(back.files) == set(state)
        for name, array in state.items():
            assert back[name].dtype == np.float32
            np.testing.assert_array_equal(back[name], array, err_msg=name)


@pytest.mark.parametrize("scanned", [False, True])
def test_outputs_are_those_of_open_clips_own_reader(scanned, tmp_path):
    """open_clip reads big_vision's files into a timm ViT and its text tower with code of its
    own."""
    torch = library("torch")
    open_clip = library("open_clip")
    _ = library("timm")
    from timm.models.vision_transformer import VisionTransformer

    tanh = dict(approximate="tanh")
    text = dict(
        context_length=LENGTH,
        vocab_size=VOCAB,
        width=WIDTH,
        heads=HEADS,
        layers=2,
        mlp_ratio=HIDDEN / WIDTH,
        no_causal_mask=True,
        proj_bias=True,
        pool_type="last",
        norm_kwargs=dict(eps=1e-6),
        act_kwargs=tanh,
    )
    vision = dict(image_size=SIDE, patch_size=PATCH, layers=1, width=8, head_width=8)
    theirs = open_clip.model.CustomTextCLIP(
        WIDTH, vision, text, init_logit_bias=-10, nonscalar_logit_scale=True
    )
    theirs.visual = torch.nn.Module()
    theirs.visual.trunk = VisionTransformer(
        SIDE,
        PATCH,
        embed_dim=WIDTH,
        depth=2,
        num_heads=HEADS,
        mlp_ratio=HIDDEN / WIDTH,
        class_token=False,
        global_pool="map",
        num_classes=0,
        act_layer="gelu_tanh",
    )
    np.savez(tmp_path / "a.npz", **tree(scanned))
    bundle = big_vision.load(tmp_path / "a.npz", "none")
    big_vision.save(dataclasses.replace(bundle, origin={}), tmp_path / "b.npz")  # ours, unscanned
    open_clip.factory.load_checkpoint(theirs, str(tmp_path / "b.npz"))
    theirs.eval()
    image = images()
    tokens = texts(1, 5, length=LENGTH)
    with torch.no_grad():
        wanted = (
            theirs.visual.trunk(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())),
            theirs.text(torch.from_numpy(tokens).long()),
        )
    ours = ours_of(bundle, image, tokens)
    check_same(ours, *wanted)
    np.testing.assert_allclose(
        [ours["log_scale"], ours["logit_bias"]],
        [theirs.logit_scale.item(), theirs.logit_bias.item()],
        rtol=1e-6,
    )


def test_a_tokenizer_beside_the_file_and_bfloat16(tmp_path):
    import ml_dtypes

    piece_file(tmp_path / "spiece.model")
    state = {k: v.astype(ml_dtypes.bfloat16) for k, v in tree(False).items()}
    np.savez(tmp_path / "a.npz", **state)
    bundle = big_vision.load(tmp_path / "a.npz", str(tmp_path))
    np.testing.assert_array_equal(
        bundle.arrays["text/projection/bias"], state["params/txt/head/bias"].astype(np.float32)
    )
    assert (bundle.tokenizer.vocab_size, bundle.inputs.eos_id) == (VOCAB, 1)
    with pytest.raises(ConversionError, match="--tokenizer=FOLDER"):
        big_vision.load(tmp_path / "a.npz")


def test_files_of_other_things_are_refused(tmp_path):
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 not whole")
    np.savez(tmp_path / "code.npz", x=np.array([object()], dtype=object))
    np.savez(tmp_path / "other.npz", **{"params/Dense_0/kernel": np.zeros((2, 2))})
    for name, message in (
        ("cut", "not an npz file"),
        ("code", "not an npz file of plain arrays"),
        ("other", "img/Transformer/encoderblock_0"),
    ):
        with pytest.raises(ConversionError, match=message):
            big_vision.load(tmp_path / f"{name}.npz", "none")
