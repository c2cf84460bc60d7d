from jaxvl.config import load_file
from jaxvl.paths import as_path


def get_config():
    c = load_file(str(as_path(__file__).with_name("base.py")))
    c.plugins = ("../prototypes.py",)
    c.tasks.pairs.objectives = dict(clip=1.0, prototypes=dict(weight=0.5, classes=8))
    return c
