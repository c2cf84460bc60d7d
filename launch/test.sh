#!/usr/bin/env bash
# Runs the tests, always on 8 simulated CPU devices: launch/test.sh [PYTEST ARGUMENTS…]; the long ones: launch/test.sh -m slow
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
install demo,dev,interop "torch==2.13.0"

cd "$root"
"$venv/bin/python" -m ruff check .
"$venv/bin/python" -m ruff format --check .
export NPROC=32 # keeps 8 simulated devices from starving each other on few cores
# The TPU's compiler, of the version that jax asks for, beside the packages and not among them: jax must not look for a TPU here.
libtpu="$("$venv/bin/python" -c 'import importlib.metadata as m; print(next(r.split(";")[0] for r in m.requires("jax") if r.startswith("libtpu")))')"
export TPU_LIBRARY_PATH="$venv/compilers/libtpu/libtpu.so"
if [ "$(cat "$venv/compilers/.request" 2>/dev/null || true)" != "$libtpu" ]; then
  rm -rf "$venv/compilers"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$venv/compilers" "$libtpu"
  printf '%s' "$libtpu" >"$venv/compilers/.request"
fi
# One process per core, of at most 8 (each takes up to 6 GB); a file stays in one process, which shares what it compiles.
# Files run in their order: those of few tests are the longest here, and would all come last.
exec "$venv/bin/python" -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder "$@"
