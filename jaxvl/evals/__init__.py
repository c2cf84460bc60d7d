"""Evaluators: encode functions and a data set in, figures and pictures out.

`contract.Evaluator` says what an evaluator is: a registered frozen dataclass that names its
figures, checks model and data before anything is compiled, and runs in every process of a
multi-host run, with the same result in all.
"""

from jaxvl.config import Registry
from jaxvl.evals.result import EvalResult as EvalResult
from jaxvl.evals.result import GalleryRow as GalleryRow
from jaxvl.evals.result import Item as Item

EVALUATORS = Registry("evaluator", __name__)
