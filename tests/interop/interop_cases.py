"""Shared by the tests of interop: random peers, folders as hubs have them, and our outputs without
the code under test."""

import contextlib
import io
import math

import jax
import numpy as np
import pytest
import sentencepiece
import tokenizers

from jaxvl import convert
from jaxvl.interop.mapping import ConversionError
from jaxvl.interop.peers import peer

SIDE = 24
LENGTH = 16
VOCAB = 60
TEXT = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
WORDS = [
    "a",
    "photo",
    "of",
    "cat",
    "dog",
    "stamp",
    "red",
    "blue",
    "two",
    "1950",
    "the",
    "small",
    "very",
    "long",
    "shadow",
    "ball",
]


def library(name):
    """A peer library; skips the test (or file) where it is not installed."""
    try:
        return peer(name)
    except ConversionError as error:
        pytest.skip(str(error), allow_module_level=True)


def randomise(model):
    """Weights away from their initial values, so that no scale of one or bias of zero hides an
    error."""
    torch = library("torch")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "temperature" in name or "logit" in name:
                p.copy_(torch.full_like(p, 0.7))
                continue
            spread = 0.3 if p.ndim == 1 else 1.5 / math.sqrt(p[0].numel())
            mean = (
                1.0
                if any(n in name.lower() for n in ("norm", "bn", "ln_", ".ln"))
                and name.endswith("weight")
                else 0.0
            )
            p.copy_(mean + spread * torch.randn(p.shape, generator=generator))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(0.3 * torch.randn(b.shape, generator=generator))
            if name.endswith("running_var"):
                b.copy_(0.5 + torch.rand(b.shape, generator=generator))
    return model.eval()


def images(size=SIDE, batch=3):
    return np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype(np.float32)


def texts(pad, eos, first=None, length=LENGTH, vocab=VOCAB, batch=3):
    """Random tokens of falling length, EOS, padding."""
    rng = np.random.default_rng(1)
    tokens = np.full((batch, length), pad, np.int32)
    for row in range(batch):
        n = length - 1 - 4 * row
        tokens[row, :n] = rng.integers(5, vocab - 2, n)
        tokens[row, n] = eos
    if first is not None:
        tokens[:, 0] = first
    return tokens


def ours_of(bundle, image, tokens):
    """Our outputs."""
    model = bundle.functional()
    params, rest = (
        {p: bundle.arrays[p] for p in part} for part in (model.params, model.model_state)
    )
    return jax.jit(model.apply)(params, rest, dict(image=image, text=tokens))[0]


def check_same(ours, image, text, atol=1e-4):
    """Our unit rows against theirs, unit or not, as torch tensors."""
    for side, theirs in (("image", image), ("text", text)):
        theirs = theirs.detach().numpy()
        theirs = theirs / np.linalg.norm(theirs, axis=-1, keepdims=True)
        np.testing.assert_allclose(ours[side], theirs, atol=atol, rtol=0, err_msg=side)


def same_tensors(a, b, rtol=0.0):
    """Two state dicts of torch hold the same."""
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_allclose(
            a[name].numpy(), b[name].numpy(), rtol=rtol, atol=0, err_msg=name
        )


def run_convert(*argv):
    """(exit status, what was said) of the command."""
    out = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
    ):
        patch.setenv("COLUMNS", "200")
        return convert.main(argv), out.getvalue()


# --------------------------------------------------------------------------------------------------
# Tokenizers


def clip_files(folder):
    """CLIP's kind of byte pairs in a vocabulary of VOCAB: letters, then pairs; [start] and [end]
    are its last two."""
    transformers = library("transformers")
    letters = "abcdefghijklmnopqrst"
    words = [
        "\u0120",
        "!",
        *letters,
        *(c + "</w>" for c in letters),
        "ph",
        "ca",
        "og</w>",
        "at</w>",
        "hot",
        "ed</w>",
    ][: VOCAB - 2]
    words += [f"unused{i}" for i in range(VOCAB - 2 - len(words))] + [
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    merges = [("p", "h"), ("c", "a"), ("o", "g</w>"), ("a", "t</w>"), ("e", "d</w>")]
    tokenizer = transformers.CLIPTokenizer(
        vocab={w: i for i, w in enumerate(words)},
        merges=merges,
        bos_token=words[-2],
        eos_token=words[-1],
        pad_token=words[-1],
        unk_token=words[-1],
        model_max_length=LENGTH,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def piece_file(path, **options):
    """A small SentencePiece model with T5's ids: padding 0, end 1, unknown 2."""
    sentences = [" ".join(np.random.default_rng(i).permutation(WORDS)[:6]) for i in range(200)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=VOCAB - 4,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        **options,
    )
    path.write_bytes(model.getvalue())


def bert_files(folder):
    """BERT's kind of vocabulary."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *"abcdefghijklmnopqrst",
        "##s",
        "##ed",
    ][:VOCAB]
    model = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    model.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    model.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = library("transformers").PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_max_length=LENGTH,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
