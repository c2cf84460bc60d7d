"""Evaluators: encode functions and a data set in, figures and pictures out; in the training loop and offline.

An evaluator is a registered frozen dataclass with `corpus`, `split`, `every` (steps between two runs in the loop; 0:
only after the last step) and `run(encoders) -> EvalResult`. It runs in every process of a multi-host run, and all get
the same result.
"""

from jaxvl.config import Registry
from jaxvl.evals.result import EvalResult as EvalResult
from jaxvl.evals.result import GalleryRow as GalleryRow
from jaxvl.evals.result import Item as Item

EVALUATORS = Registry("evaluator", __name__)
