from jaxvl.config import load_file
from jaxvl.paths import as_path


def get_config():
    c = load_file(str(as_path(__file__).with_name("base.py")))
    c.plugins = ("../negative_free.py",)
    views = ("image", "image_2")
    c.model.views = dict(image_2="image")
    c.model.heads = dict(
        projector=dict(name="projection", reads=views, dim=16),
        predictor=dict(name="predictor", reads=("projector/image", "projector/image_2"), hidden=16),
    )
    c.tasks.pairs.data.fields.image_2 = dict(name="picture", size=16, augment=dict(rotate=20.0))
    c.tasks.pairs.objectives = dict(clip=1.0, negative_free=0.5)
    return c
