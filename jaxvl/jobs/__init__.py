"""Jobs by name: what is computed over a whole source after a run, or every so many steps of it.

A job's config is a frozen dataclass with `run(encoders, source) -> columns`, one row for each
record. They become a table (`data/tables.py`), which samplers and fields of this run or of a later
stage read. A file of this package registers one with `@JOBS.register("NAME")`;
`c.after = dict(TABLE=dict(name="NAME", …))` runs it.

    base        what every job is
    embedding   the rows that jobs work on
    clustering  k-means on the whole mesh
"""

from jaxvl.config import Registry

JOBS = Registry("job", __name__)
