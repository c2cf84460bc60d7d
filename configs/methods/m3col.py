"""Contrast of mixtures, then of soft targets (M3CoL, 2024), on the generated corpus.

launch/local.sh configs/methods/m3col.py
"""

from jaxvl.config import load_file
from jaxvl.paths import as_path


def get_config():
    c = load_file(str(as_path(__file__).with_name("gap.py")))
    c.tasks.pairs.objectives = dict(m3col=1.0)
    return c
