from jaxvl.config import load_file
from jaxvl.paths import as_path


def get_config():
    c = load_file(str(as_path(__file__).with_name("base.py")))
    c.plugins = ("../pair_matching.py",)
    c.model.heads = dict(match=dict(name="pair_matching"))
    c.tasks.pairs.before = dict(
        embed=dict(name="teach", teacher=None),
        drawn=dict(name="hard_negatives", embeddings=("embed/image", "embed/text")),
    )
    c.tasks.pairs.objectives = dict(clip=1.0, pair_matching=1.0)
    return c
