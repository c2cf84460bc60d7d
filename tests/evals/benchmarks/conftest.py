"""Helpers of the folders above are found here too."""

import pathlib
import sys

HERE = pathlib.Path(__file__).parent
for folder in (HERE, HERE.parent, HERE.parent.parent / "training"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
