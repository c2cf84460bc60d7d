"""Cleaning of image-text pairs as an Apache Beam pipeline: `python -m jaxvl.data.prepare`.

    options    PrepareConfig and Rules: what is read, which rules hold, what is written
    rows       a record as the rules see it: checksum, size and perceptual hash of its picture, its
               texts; never pixels
    gathering  small PCollections as one value
    losses     what a rule takes away, and joining that with the rows
    rules      the rules, in their order
    words      normalised texts, words, uni- and bigrams
    rare       texts with words that are seldom anywhere
    near       pictures that look like one of a list
    subsets    DataComp's subset files
    scoring    scores of pairs by a model; `SCORERS`
    numbering  places of the rows that are left in shards of equal size
    shards     tar and ArrayRecord shards with their statistics
    pipeline   all of it as one Beam pipeline
    report     what each rule took away, with examples
    run        one run: the folder that it works in, restarts, the finished folder

Apache Beam is an extra and imported where it is used, so that this package can be imported without
it.
"""

from jaxvl.config import Registry

SCORERS = Registry("scorer")  # registered by plugins, and by the module that knows models
