"""open_clip's side of `step_by_step.py`, in torch: a small model, its loss, its optimiser and its
schedule."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
import tokenizers

from jaxvl.aliases import Foreign, Json
from jaxvl.config import choose
from jaxvl.data.sources import SOURCES
from jaxvl.data.text_sample import sample_texts
from jaxvl.data.tokenizer import Tokenizer
from jaxvl.interop import open_clip
from jaxvl.interop.files import read_json
from jaxvl.interop.peers import peer
from jaxvl.interop.tokens import write_tokenizer

PAD, START, END = range(3)  # ids of the special tokens
MEAN = (0.6, 0.6, 0.6)
STD = (0.35, 0.35, 0.35)
SCALE_LIMIT = math.log(100)  # open_clip holds the log-scale in [0, log 100] after every step


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of model, data and run; the defaults are those of the figures in docs/measured.md.

    Attributes:
      init_scale: of CLIP's and CoCa's cosine; None: 1 / 0.07, as both libraries have it.
      clamp: how jaxvl keeps the limit of the scale (`optim.clamp`).
      microbatches: of the second run of jaxvl; 1: there is none.
    """

    width: int = 96
    image_layers: int = 4
    text_layers: int = 2
    heads: int = 4
    patch: int = 12
    image_size: int = 48
    length: int = 12
    vocabulary: int = 2000
    batch: int = 128
    steps: int = 300
    lr: float = 1e-3
    weight_decay: float = 0.2
    microbatches: int = 4
    init_scale: float | None = None
    clamp: str = "update"
    source: Mapping[str, Json] = dataclasses.field(
        default_factory=lambda: dict(name="emoji", split="train_a")
    )

    @property
    def warmup(self) -> int:
        return self.steps // 6


@dataclasses.dataclass(frozen=True)
class System:
    """What is trained.

    Attributes:
      objectives: of the task, name -> weight.
      losses: open_clip's name of a loss -> the objective that is compared with it.
      top, vision, text: what its `model_cfg` has beside the sizes.
    """

    objectives: Mapping[str, float]
    losses: Mapping[str, str]
    top: Mapping[str, Json] = dataclasses.field(default_factory=dict)
    vision: Mapping[str, Json] = dataclasses.field(default_factory=dict)
    text: Mapping[str, Json] = dataclasses.field(default_factory=dict)

    @property
    def captions(self) -> bool:
        return "caption_loss" in self.losses


SYSTEMS = {
    "clip": System(
        objectives={"clip": 1.0},
        losses={"contrastive_loss": "clip"},
        top=dict(custom_text=True),
        text=dict(pool_type="eos", eos_id=END),
    ),
    "siglip": System(
        objectives={"siglip": 1.0},
        losses={"contrastive_loss": "siglip"},
        top=dict(custom_text=True, init_logit_scale=math.log(10), init_logit_bias=-10),
        text=dict(no_causal_mask=True, pool_type="last"),
    ),
    "coca": System(
        objectives={"clip": 1.0, "captioning": 2.0},
        losses={"contrastive_loss": "clip", "caption_loss": "captioning"},
        top=dict(custom_text=True),
        vision=dict(
            attentional_pool=True, attn_pooler_queries=8, attn_pooler_heads=4, output_tokens=True
        ),
        text=dict(embed_cls=True, output_tokens=True),
    ),
}


def model_cfg(system: System, sizes: Sizes) -> dict[str, Json]:
    """open_clip's configuration of the model."""
    head = sizes.width // sizes.heads
    text = dict(context_length=sizes.length, vocab_size=sizes.vocabulary, heads=sizes.heads)
    text |= dict(width=sizes.width, layers=sizes.text_layers)
    vision = dict(image_size=sizes.image_size, patch_size=sizes.patch, head_width=head)
    vision |= dict(width=sizes.width, layers=sizes.image_layers)
    config = dict(
        embed_dim=sizes.width,
        vision_cfg={**vision, **system.vision},
        text_cfg={**text, "pad_id": PAD, "hf_tokenizer_name": "local", **system.text},
        **system.top,
    )
    if system.captions:
        config["multimodal_cfg"] = text
    if sizes.init_scale is not None:
        config["init_logit_scale"] = math.log(sizes.init_scale)
    return config


def make_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte pairs trained on `texts`, with a token before and one after a text, as CLIP has it."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    model.normalizer = tokenizers.normalizers.Lowercase()
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<start>", "<end>"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    content = model.to_str().encode()
    return Tokenizer("json", content, pad_id=PAD, eos_id=END, cls_id=START)


def build_peer(config: Mapping[str, Json]) -> Foreign:
    """open_clip's model with the random weights that it begins with; always the same ones."""
    torch = peer("torch")
    library = peer("open_clip")
    torch.manual_seed(0)
    options = {key: value for key, value in config.items() if key != "custom_text"}
    if "multimodal_cfg" in config:
        return library.CoCa(**options)
    return library.CustomTextCLIP(**options, output_dict=True)


def write_peer(folder: pathlib.Path, system: System, sizes: Sizes) -> list[str]:
    """Writes a folder of open_clip with random weights and a tokenizer; returns texts of the source
    to try the latter with."""
    source = choose(SOURCES, sizes.source, "source").open(log=lambda message: None)
    texts = list(sample_texts(source, ("name/en",), 100_000, 0))
    folder.mkdir(parents=True)
    write_tokenizer(make_tokenizer(texts, sizes.vocabulary), folder, sizes.length)
    config = model_cfg(system, sizes)
    pictures = dict(mean=MEAN, std=STD, interpolation="bicubic", resize_mode="shortest")
    (folder / open_clip.CONFIG).write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": pictures})
    )
    peer("torch").save(build_peer(config).state_dict(), folder / "open_clip_pytorch_model.bin")
    return texts


@dataclasses.dataclass(frozen=True)
class Rules:
    """How open_clip's side trains. The defaults are its own rules for ViT; others are to show that
    a comparison sees them.

    Attributes:
      double: in float64.
      decay_all: whether gains and biases decay too.
      b2, eps: of AdamW.
      late: steps by which the schedule lags.
    """

    double: bool = False
    decay_all: bool = False
    b2: float = 0.98
    eps: float = 1e-6
    late: int = 0


class Peer:
    """A model of open_clip in training.

    Args:
      folder: see `write_peer`.

    Attributes:
      decayed: names of the parameters that decay.
    """

    def __init__(self, folder: pathlib.Path, system: System, sizes: Sizes, rules: Rules = Rules()):
        self._torch = peer("torch")
        from open_clip_train.scheduler import cosine_lr

        self.model = build_peer(read_json(folder / open_clip.CONFIG)["model_cfg"])
        self._dtype = self._torch.float64 if rules.double else self._torch.float32
        self.model.to(self._dtype).train()
        self._loss = _loss_of(system)
        self._late = rules.late
        parameters = dict(self.model.named_parameters())
        self.decayed = {
            n for n, p in parameters.items() if rules.decay_all or not is_gain_or_bias(n, p)
        }
        groups = [
            {"params": [p for n, p in parameters.items() if n not in self.decayed]},
            {"params": [p for n, p in parameters.items() if n in self.decayed]},
        ]
        for group, decay in zip(groups, (0.0, sizes.weight_decay)):
            group["weight_decay"] = decay
        self._optimiser = self._torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=sizes.lr,
            betas=(0.9, rules.b2),
            eps=rules.eps,
        )
        self._schedule = cosine_lr(self._optimiser, sizes.lr, sizes.warmup, sizes.steps)

    def step(self, number: int, image: np.ndarray, text: np.ndarray) -> dict[str, float]:
        """Losses of a step by open_clip's names, their sum `loss`, the learning rate `lr`, and the
        log-scale after it, `log_scale`.

        Args:
          image: uint8 [B, S, S, 4]; text: int [B, T].
        """
        torch = self._torch
        rate = self._schedule(max(number - self._late, 0))
        pictures = torch.from_numpy(image).to(self._dtype) / 255
        alpha = pictures[..., 3:]
        pictures = pictures[..., :3] * alpha + (1 - alpha)  # on white
        mean, std = (torch.tensor(values, dtype=self._dtype) for values in (MEAN, STD))
        pictures = ((pictures - mean) / std).permute(0, 3, 1, 2).contiguous()
        self._optimiser.zero_grad()
        outputs = self.model(pictures, torch.from_numpy(text).long())
        losses = self._loss(**outputs, output_dict=True)
        total = sum(losses.values())
        total.backward()
        self._optimiser.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, SCALE_LIMIT)
        figures = {**losses, "loss": total, "log_scale": self.model.logit_scale}
        return {"lr": rate} | {name: value.item() for name, value in figures.items()}

    def state(self) -> dict[str, np.ndarray]:
        """The weights, float64, by open_clip's names."""
        return {name: p.detach().double().numpy() for name, p in self.model.named_parameters()}


def _loss_of(system: System) -> Foreign:
    losses = peer("open_clip").loss
    if system.captions:
        return losses.CoCaLoss(system.objectives["captioning"], 1.0, pad_id=PAD)
    return losses.SigLipLoss() if "siglip" in system.objectives else losses.ClipLoss()


def is_gain_or_bias(name: str, parameter: Foreign) -> bool:
    """Whether open_clip's training leaves a parameter out of the decay."""
    words = ("bn", "ln", "bias", "logit_scale")
    return parameter.ndim < 2 or any(word in name for word in words)
