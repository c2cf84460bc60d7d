#!/usr/bin/env bash
# Runs the tests, always on 8 simulated CPU devices: launch/test.sh [PYTEST ARGUMENTS…]; the long ones: launch/test.sh -m slow
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
install demo,dev,interop "torch==2.13.0"

cd "$root"
"$venv/bin/python" -m ruff check .
"$venv/bin/python" -m ruff format --check .
export NPROC=32 # keeps 8 simulated devices from starving each other on few cores
exec "$venv/bin/python" -m pytest "$@"
