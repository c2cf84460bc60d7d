import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # data_samples.py
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "sources"))  # twelve_records.py
