from jaxvl.config import load_file
from jaxvl.paths import as_path


def get_config():
    c = load_file(str(as_path(__file__).with_name("base.py")))
    c.plugins = ("../soft_targets.py",)
    c.tasks.pairs.objectives = dict(soft_targets=dict(weight=1.0))
    return c
