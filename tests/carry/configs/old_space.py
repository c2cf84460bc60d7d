from jaxvl.config import load_file
from jaxvl.paths import as_path

OLD = "heads/old/perceptron/linears/0/"


def get_config():
    c = load_file(str(as_path(__file__).with_name("base.py")))
    c.plugins = ("../old_space.py",)
    projection = dict(take="^image/projection/", cut="image/projection/", put=OLD)
    new = dict(
        name="new",
        model=dict(heads=dict(old=dict(name="projection", reads="image", dim=16))),
        start=(dict(source="{stages.old}"), dict(source="{stages.old}", **projection)),
        optim=dict(freeze="^heads/old/"),
        tasks=dict(pairs=dict(objectives=dict(old_space=1.0))),
    )
    c.stages = (dict(name="old"), new)
    return c
