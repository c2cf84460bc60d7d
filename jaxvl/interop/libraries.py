"""Libraries whose folders are read and written, by name."""

from jaxvl.interop import big_vision, hf, open_clip

LIBRARIES = {"hf": hf, "open_clip": open_clip, "big_vision": big_vision}
