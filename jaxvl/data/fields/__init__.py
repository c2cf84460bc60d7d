"""Fields by name: what a row of a batch holds.

`fields = dict(image=dict(name="picture", size=224), text=dict(name="caption", columns="text"))`:
  each key is an entry of the batch.
A file of this package registers a field with `@FIELDS.register("NAME")`.
"""

from jaxvl.config import Registry

FIELDS = Registry("field", __name__)
