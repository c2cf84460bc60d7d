import pathlib
import sys

sys.path.insert(
    0, str(pathlib.Path(__file__).parent)
)  # data_samples.py, for the tests of the folders below
