#!/usr/bin/env bash
# The tests that take minutes, and those that compile for CUDA without a GPU: launch/nightly.sh [PYTEST ARGUMENTS…]
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
install demo,dev,interop "torch==2.13.0"

# The CUDA plugin of this jax and its compiler, beside the packages (250 MB; nothing that only running needs).
cuda="$venv/cuda"
version="$("$venv/bin/python" -c 'import jax; print(jax.__version__)')"
if [ "$(cat "$cuda/.request" 2>/dev/null || true)" != "$version" ]; then
  rm -rf "$cuda"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$cuda" \
    "jax-cuda13-plugin==$version" "jax-cuda13-pjrt==$version" nvidia-cuda-nvcc nvidia-nvvm
  printf '%s' "$version" >"$cuda/.request"
fi

# Apache Beam needs an older protobuf than transformers' tokenizers: its tests run in an environment of their own.
(
  venv="$venv-beam"
  install demo,dev,prepare "torch==2.13.0"
  # A runner on Spark for which no jars are fetched from Maven. It pins an old Beam, hence --no-deps. Its test needs Java.
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    beam-pyspark-runner==0.0.3 pyspark==3.5.1 py4j==0.10.9.7
  cd "$root"
  "$venv/bin/python" -m pytest -p no:xdist -m "slow or not slow" tests/data/preparing
)

# Ray, SkyPilot and the schemas of Kubernetes, for the launchers. SLURM's daemons are the system's (apt-get install slurm-wlm
# munge): where they are not there, the drill with them says so and is skipped.
(
  venv="$venv-clusters"
  install demo "ray[train]>=2.60" kubernetes-validate kubeflow-trainer-api pytest pytest-timeout
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check skypilot
  cd "$root"
  "$venv/bin/python" -m pytest -p no:xdist -m "slow or not slow" tests/launching
)

export PYTHONPATH="$cuda${PYTHONPATH:+:$PYTHONPATH}"
exec bash "$root/launch/test.sh" -m slow "$@"
