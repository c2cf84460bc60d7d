"""Launchers are run as a user runs them."""

import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent
for folder in (FOLDER.parent / "training", FOLDER.parent.parent / "launch"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
