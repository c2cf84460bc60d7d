"""For runs that faults befall: steps take long enough to be met by one, and where no faketime is
installed the clock jumps, by `JAXVL_CHAOS_CLOCK` seconds after some steps."""

import itertools
import os
import time

from jaxvl.data.feed import Feed

SLOWLY = 0.04  # seconds before each batch is taken
take = Feed.take
now = time.time
taken = itertools.count()


def slowly(self, **options):
    time.sleep(SLOWLY)
    if next(taken) == 4 and os.environ.get("JAXVL_CHAOS_CLOCK"):
        time.time = lambda: now() + float(os.environ["JAXVL_CHAOS_CLOCK"])
    return take(self, **options)


if Feed.take.__name__ != "slowly":
    Feed.take = slowly
