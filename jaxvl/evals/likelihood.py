"""How likely the captions of a source are under the model: token accuracy and perplexity."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxvl.data.records import DataError
from jaxvl.evals import EVALUATORS, EvalResult, GalleryRow, Item
from jaxvl.evals.columns import Columns, all_texts, check_texts, listed
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.source_options import (
    SourceOptions,
    check_template,
    check_tokenizer,
    sample,
    skipped_figures,
)
from jaxvl.evals.thumbnails import Thumbnails


@EVALUATORS.register("likelihood")
@dataclasses.dataclass(frozen=True)
class Likelihood(SourceOptions):
    """Reads every caption of a source under its image, each token given those before it (teacher
    forcing).

    With s(c) the log-probability of caption c, EOS included, and n(c) its tokens, over all captions
    of all images: `token_acc` (tokens that are the likeliest at their place), `nats_per_token` =
    -sum s / sum n, `perplexity` = exp of it; `caption_acc` (captions of which every token is the
    likeliest), `nats_per_caption` = mean -s, `caption_perplexity` = exp of the mean of -s / n, to
    which every caption contributes the same whatever its length; `tokens`, `captions`, `images`,
    `skipped/CAUSE`. Perplexities of models with different vocabularies cannot be compared;
    `nats_per_caption` can, where neither cuts a caption.

    Attributes:
      text: a column of texts, or several; each distinct text of a record is one caption.
      template: what is made of a caption `{}` before it is read.
    """

    text: Columns = "text"
    template: str = "{}"

    def __post_init__(self):
        super().__post_init__()
        check_template(self.template, "caption")

    @property
    def figures(self) -> tuple[str, ...]:
        of_tokens = ("token_acc", "nats_per_token", "perplexity", "tokens")
        of_captions = ("caption_acc", "nats_per_caption", "caption_perplexity", "captions")
        return (*of_tokens, *of_captions, "images", "skipped/*")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        source = self.open()
        self.check_images(source)
        encoders.check_scores()
        check_tokenizer(encoders)
        check_texts(source, self.text, "text")

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises DataError where no record has both an image and a caption, ConfigError for a model
        that cannot tell."""
        source = self.open()
        texts = [
            [self.template.replace("{}", t) for t in of]
            for of in all_texts(source, listed(self.text))
        ]
        encoded = encoders.scores(source, pad_tokens(encoders, texts), column=self.image)
        self.within_budget(encoded.skipped, source)
        there = encoded.rows[..., 1] > 0 if len(encoded.index) else np.zeros((0, 1), bool)
        if not there.any():
            raise DataError(
                f"{source.name} has no image with a caption ({', '.join(listed(self.text))})"
            )
        log_p, tokens, right = encoded.rows[there].astype(np.float64).T
        per_token = -log_p.sum() / tokens.sum()
        metrics = {
            "token_acc": right.sum() / tokens.sum(),
            "nats_per_token": per_token,
            "perplexity": np.exp(per_token),
            "caption_acc": (right == tokens).mean(),
            "nats_per_caption": -log_p.mean(),
            "caption_perplexity": np.exp(-(log_p / tokens).mean()),
            "tokens": tokens.sum(),
            "captions": len(tokens),
            "images": there.any(1).sum(),
        }
        missing = {"no caption": int((~there.any(1)).sum())}
        metrics = {k: float(v) for k, v in metrics.items()} | skipped_figures(
            encoded.skipped, missing
        )
        thumbnail = Thumbnails(source, encoders.preprocess, self.image)
        shown = np.flatnonzero(there.any(1))

        def row(q: int) -> GalleryRow:
            i = encoded.index[q]
            scores = encoded.rows[q]
            order = sorted(np.flatnonzero(there[q]), key=lambda k: -scores[k, 0] / scores[k, 1])
            items = tuple(
                Item(
                    texts[i][k],
                    float(np.exp(scores[k, 0] / scores[k, 1])),
                    bool(scores[k, 1] == scores[k, 2]),
                )
                for k in order
            )
            return GalleryRow(
                "Probability of a token, by caption", texts[i][0], thumbnail(i), items[:5]
            )

        return EvalResult(metrics, [row(int(shown[q])) for q in sample(len(shown), self.gallery)])


def pad_tokens(encoders: Encoders, texts: list[list[str]]) -> np.ndarray:
    """Token ids int32 [n, K, T] of up to K texts a record; padding alone where a record has
    fewer."""
    tokenizer = encoders.tokenizer
    most = max((len(of) for of in texts), default=1) or 1
    out = np.full((len(texts), most, encoders.text_length), tokenizer.pad_id, np.int32)
    flat = [t for of in texts for t in of]
    if flat:
        out[
            [i for i, of in enumerate(texts) for _ in of],
            [k for of in texts for k in range(len(of))],
        ] = tokenizer.encode(flat, encoders.text_length)
    return out
