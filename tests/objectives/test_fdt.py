"""The contrast of finite discrete tokens is CLIP's, on the head's outputs."""

import numpy as np
from objective_checks import compare, embeddings, nce, same_on_a_mesh

from jaxvl.objectives.fdt import DiscreteTokenContrast


def example(b=8, d=5):
    image, text = embeddings((b, d), (b, d))
    return {"codebook/image": image, "codebook/text": text, "log_scale": np.float64(1.2)}


def test_values_and_gradients():
    oracle = lambda o: nce(o["codebook/image"], o["codebook/text"], np.exp(o["log_scale"]))
    compare(DiscreteTokenContrast(), example(), {}, oracle)


def test_devices():
    same_on_a_mesh(DiscreteTokenContrast(), example(b=16), {})
