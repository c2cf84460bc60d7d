"""Parity: a folder's model built by its own library against ours, on the same inputs."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxvl.aliases import HostArrays
from jaxvl.interop.bundle import Bundle, Section
from jaxvl.interop.files import read_json
from jaxvl.interop.hf_dual import with_one_eos
from jaxvl.interop.mapping import ConversionError
from jaxvl.interop.peers import peer

LIMIT = 1e-4
TEXTS = ("a photo of a cat", "Two dogs, one ball &amp; a very_long shadow!", "日本の切手 1950", "")


@dataclasses.dataclass(frozen=True)
class Difference:
    """Largest absolute difference of one output.

    Attributes:
      output: its name. shape: of ours. largest: difference in the output's own unit; infinity where
        the shapes differ.
    """

    output: str
    shape: tuple[int, ...]
    largest: float


def inputs_of(bundle: Bundle, batch: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """(image float32 [B, S, S, 3], text int32 [B, T]): normal noise; texts of falling length that
    start, end and are padded as the tokenizer has it."""
    spec = bundle.inputs
    tokenizer = bundle.tokenizer
    rng = np.random.default_rng(0)
    image = rng.normal(size=(batch, spec.image_size, spec.image_size, spec.channels)).astype(
        np.float32
    )
    start = bundle.model.capabilities(spec).start_id if tokenizer is None else tokenizer.cls_id
    eos = spec.vocab_size - 1 if spec.eos_id is None else spec.eos_id
    special = {spec.pad_id, eos, start}
    words = np.array([i for i in range(min(spec.vocab_size, 30_000)) if i not in special])
    text = np.full((batch, spec.text_length), spec.pad_id, np.int32)
    for row in range(batch):
        n = max(2, spec.text_length - 1 - row * (spec.text_length // batch))
        text[row, :n] = rng.choice(words, n)
        text[row, n] = eos
    if start is not None:
        text[:, 0] = start
    return image, text


def ours(bundle: Bundle, image: np.ndarray, text: np.ndarray) -> HostArrays:
    """image, text: unit rows [B, D]; scale, bias where there is one; logits [B, B]; captions [B,
    T', V] of a model that writes."""
    model = bundle.functional()
    params, model_state = (
        {p: jnp.asarray(bundle.arrays[p]) for p in part}
        for part in (model.params, model.model_state)
    )
    out, _ = jax.jit(model.apply)(params, model_state, {"image": image, "text": text})
    captions = {}
    if bundle.model.capabilities(bundle.inputs).generates:
        captions["captions"] = model.apply(
            params, model_state, image, text, method="caption_logits"
        )[0][:, :-1]
    return (
        _outputs(out["image"], out["text"], np.exp(out["log_scale"]), out.get("logit_bias"))
        | captions
    )


def _outputs(image, text, scale, bias) -> dict[str, np.ndarray]:
    image, text = (np.asarray(x, np.float32) for x in (image, text))
    image, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    scale = np.asarray(scale, np.float32).reshape(())
    out = {
        "image embedding": image,
        "text embedding": text,
        "scale": scale,
        "logits": scale * image @ text.T,
    }
    if bias is not None:
        bias = np.asarray(bias, np.float32).reshape(())
        out |= {"bias": bias, "logits": out["logits"] + bias}
    return out


def compare(mine: HostArrays, theirs: HostArrays) -> list[Difference]:
    """One row per output that either has."""
    rows = []
    for name in dict.fromkeys((*mine, *theirs)):
        a, b = (np.asarray(x.get(name, np.zeros(0)), np.float64) for x in (mine, theirs))
        same = a.shape == b.shape and np.isfinite(a).all() and np.isfinite(b).all()
        rows.append(
            Difference(
                name, a.shape, float(np.abs(a - b).max(initial=0.0)) if same else float("inf")
            )
        )
    return rows


@contextlib.contextmanager
def _running(library: str, path: pathlib.Path) -> Iterator[None]:
    """Turns what a library raises over a folder into a ConversionError: we read some files that it
    does not."""
    try:
        yield
    except ConversionError:
        raise
    except Exception as error:  # libraries raise whatever they meet
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConversionError(
            f"{path}: {library} itself cannot run it, so that there is nothing to compare "
            f"with ({reason})"
        ) from None


def check_hf(bundle: Bundle, path: pathlib.Path) -> list[Difference]:
    """Against the transformers model of a folder.

    Raises:
      ConversionError: it lacks weights that the folder should have, or cannot run the folder.
    """
    with _running("transformers", path):
        return _check_hf(bundle, path)


def _check_hf(bundle: Bundle, path: pathlib.Path) -> list[Difference]:
    torch = peer("torch")
    transformers = peer("transformers")
    values = with_one_eos(Section(read_json(path / "config.json")), bundle.inputs.eos_id).values
    kind = values["model_type"]
    name = {"clip": "CLIP", "siglip": "Siglip", "siglip2": "Siglip2", "align": "Align"}[kind]
    cls = f"{name}Model"
    config = getattr(transformers, f"{name}Config").from_dict(dict(values))
    model, info = getattr(transformers, cls).from_pretrained(
        path, config=config, output_loading_info=True, dtype=torch.float32, local_files_only=True
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(n) for n in info.get(what, ()) if not str(n).endswith("position_ids"))
        if names:
            raise ConversionError(f"{path}: {cls} has {what.replace('_', ' ')} {names[0]}")
    image, text = inputs_of(bundle)
    pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    ids = dict(input_ids=torch.from_numpy(text).long())
    if kind == "align":
        ids["attention_mask"] = ids["input_ids"] != bundle.inputs.pad_id
    if kind == "siglip2":
        p = bundle.model.image.patch
        side = bundle.inputs.image_size // bundle.model.image.patch
        patches = (
            image.reshape(len(image), side, p, side, p, 3)
            .transpose(0, 1, 3, 2, 4, 5)
            .reshape(len(image), side * side, -1)
        )
        ids |= dict(
            pixel_attention_mask=torch.ones(patches.shape[:2]),
            spatial_shapes=torch.full((len(image), 2), side),
        )
        pixels = torch.from_numpy(patches)
    with torch.no_grad():
        out = model.eval()(pixel_values=pixels, **ids)
    state = {
        name: value.detach().numpy()
        for name, value in model.named_parameters()
        if name in ("logit_scale", "logit_bias", "temperature")
    }
    scale = 1 / state["temperature"] if kind == "align" else np.exp(state["logit_scale"])
    theirs = _outputs(
        out.image_embeds.numpy(), out.text_embeds.numpy(), scale, state.get("logit_bias")
    )
    theirs["logits"] = out.logits_per_image.numpy()
    rows = compare(ours(bundle, image, text), theirs)
    tokenize = lambda texts: transformers.AutoTokenizer.from_pretrained(path)(
        texts, padding="max_length", truncation=True, max_length=bundle.inputs.text_length).input_ids  # fmt: skip
    return rows + _tokens(bundle, tokenize, (path / "tokenizer_config.json").is_file())


def check_open_clip(bundle: Bundle, path: pathlib.Path) -> list[Difference]:
    """Against open_clip's model of a folder, which it loads strictly. Raises ConversionError where
    it cannot."""
    with _running("open_clip", path):
        return _check_open_clip(bundle, path)


def _check_open_clip(bundle: Bundle, path: pathlib.Path) -> list[Difference]:
    torch = peer("torch")
    open_clip = peer("open_clip")
    name = f"local-dir:{path}"
    model = open_clip.create_model(name, output_dict=True).eval()
    image, text = inputs_of(bundle)
    with torch.no_grad():
        out = model(
            torch.from_numpy(image.transpose(0, 3, 1, 2).copy()), torch.from_numpy(text).long()
        )
    bias = None if out.get("logit_bias") is None else out["logit_bias"].numpy()
    theirs = _outputs(
        out["image_features"].numpy(),
        out["text_features"].numpy(),
        out["logit_scale"].numpy(),
        bias,
    )
    if "logits" in out:
        theirs["captions"] = out["logits"].numpy()
    rows = compare(ours(bundle, image, text), theirs)
    return rows + _tokens(bundle, lambda texts: open_clip.get_tokenizer(name)(texts).numpy(), True)


def _tokens(bundle: Bundle, theirs: Callable[[list[str]], object], there: bool) -> list[Difference]:
    """Token ids of a few texts, where a tokenizer travels."""
    if bundle.tokenizer is None or not there:
        return []
    texts = list(TEXTS)
    length = bundle.inputs.text_length
    return compare(
        {"token ids": bundle.tokenizer.encode(texts, length)},
        {"token ids": np.asarray(theirs(texts))},
    )


def check_arrays(bundle: Bundle, again: Bundle) -> list[Difference]:
    """Of what was written and read again: the largest difference of any array."""
    if set(bundle.arrays) != set(again.arrays):
        return [Difference("arrays", (), float("inf"))]
    rows = [
        compare({"arrays": bundle.arrays[path]}, {"arrays": again.arrays[path]})[0].largest
        for path in bundle.arrays
    ]
    return [Difference("arrays, read again", (len(rows),), max(rows))]
