"""The parts of `jaxvl.bench.accelerator`, one a file."""
