"""Heads: parameters that a config adds to a model; one file each, chosen by name.

    c.model.views = dict(image_2="image")
    c.model.heads = dict(
        projector=dict(name="projection", reads=("image", "image_2"), layers=3, norm="batch"),
        predictor=dict(name="predictor", reads=("projector/image", "projector/image_2")),
        identity=dict(name="classifier", reads="image", classes=11_003, margin=0.5),
    )

A head reads encoded inputs of the model: its own inputs (`image`, `text`), its views, which are
further batch entries that go through an encoder (`image_2`), and outputs of other heads
(`projector/image`). It runs inside the model's call, so tokens never leave a microbatch.

Outputs are named after the label: `identity`; or, with several of them, `projector/image` and
`projector/image_2`. Objectives and evaluators read them like the model's own. Parameters lie under
`heads/LABEL/…`, where `optim.freeze` and `optim.lr_scale` find them. Every parameter names its
logical axes, so heads shard like the rest.

A head of your own is a registered frozen dataclass and a module:

    @HEADS.register("token_mean")
    @dataclasses.dataclass(frozen=True)
    class TokenMeanConfig(HeadConfig):
        dim: Width = 256

        def widths(self, inputs):                      # outputs that other heads may read
            return {name: self.dim for name in self.names.values()}

        def build(self, inputs, rngs, dtype=jnp.float32):  # inputs: width of each that it reads
            return TokenMean(self, inputs, rngs=rngs, dtype=dtype)

    class TokenMean(Head):
        def __init__(self, config, inputs, *, rngs, dtype):
            width = one_width(inputs)
            self.linear = Linear(width, config.dim, axes=("embed", "joint"), rngs=rngs, dtype=dtype)
            self.names = config.names

        def __call__(self, encoded, batch, *, train, key, progress):
            return {self.names[n]: self.linear(e.tokens.mean(1)) for n, e in encoded.items()}

`names` says what an output is called for each input: "" (the output `LABEL` itself) where `reads`
is one name, else the input's name without the label of the head that it is of.

Rows are independent of each other: a step may run the model on parts of the batch (microbatches)
and gives the same result. A head whose rows are not, such as one with batch normalisation, says so
in its docstring; it then sees the rows of one part. Arrays [B, …] pass as rows, scalars [] must be
the same in every part; so a parameter that an objective reads is repeated for each row.
"""

from jaxvl.config import Registry
from jaxvl.models.heads.base import Head as Head
from jaxvl.models.heads.base import HeadConfig as HeadConfig
from jaxvl.models.heads.base import Heads as Heads

HEADS = Registry("head", __name__)
