from jaxvl.config import load_file
from jaxvl.paths import as_path


def get_config():
    c = load_file(str(as_path(__file__).with_name("base.py")))
    c.plugins = ("../mean_colour.py",)
    c.model.heads = dict(guess=dict(name="projection", reads="image", dim=3, normalize=False))
    c.tasks.pairs.data.fields.colour = dict(name="mean_colour")
    c.tasks.pairs.objectives.mean_colour = 1.0
    return c
