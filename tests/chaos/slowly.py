"""For runs that faults befall: steps take long enough to be met by one."""

import time

from jaxvl.data.feed import Feed

SLOWLY = 0.04  # seconds before each batch is taken
take = Feed.take


def slowly(self, **options):
    time.sleep(SLOWLY)
    return take(self, **options)


if Feed.take.__name__ != "slowly":
    Feed.take = slowly
