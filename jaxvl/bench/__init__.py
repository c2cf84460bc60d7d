"""`python -m jaxvl.bench.X`: measurements as tables and JSON."""
