"""Continuously weighted contrast (Srinivasan et al. 2023), on the generated corpus.

The paper's image tower is frozen and was trained before: start from its weights and freeze them
(`optim.freeze`). Here both towers learn, and the image tower of the moment says what is alike.

launch/local.sh configs/methods/cwcl.py
"""

from jaxvl.config import load_file
from jaxvl.paths import as_path


def get_config():
    c = load_file(str(as_path(__file__).with_name("gap.py")))
    c.tasks.pairs.objectives = dict(cwcl=1.0)
    return c
