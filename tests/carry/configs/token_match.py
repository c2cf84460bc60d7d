from jaxvl.config import load_file
from jaxvl.paths import as_path


def get_config():
    c = load_file(str(as_path(__file__).with_name("base.py")))
    c.plugins = ("../token_match.py",)
    c.model.heads = dict(tokens=dict(name="token_map", reads=("image", "text")))
    c.tasks.pairs.objectives = dict(token_match=1.0)
    return c
