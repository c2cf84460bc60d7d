#!/usr/bin/env bash
# The tests that take minutes, and those that need more than `launch/test.sh` installs:
#   launch/nightly.sh                            all parts
#   launch/nightly.sh PART [PYTEST ARGUMENTS…]   one of them:
#     prepare    Apache Beam, and Beam on Spark (needs Java)
#     clusters   Ray, SkyPilot, schemas of Kubernetes; SLURM's daemons (apt-get install slurm-wlm munge; as root).
#                An engine that is not there is a failure.
#     slow       everything else marked `slow`, with the compilers of TPUs and of CUDA (250 MB)
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

# Apache Beam needs an older protobuf than transformers' tokenizers: its tests run in an environment of their own.
prepare() (
  venv="$venv-beam"
  install demo,dev,prepare "torch==2.13.0"
  # A runner on Spark for which no jars are fetched from Maven. It pins an old Beam, hence --no-deps.
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    beam-pyspark-runner==0.0.3 pyspark==3.5.1 py4j==0.10.9.7
  cd "$root"
  "$venv/bin/python" -m pytest -p no:xdist -m "slow or not slow" tests/data/preparing "$@"
)

clusters() (
  venv="$venv-clusters"
  install demo "ray[train]>=2.60" kubernetes-validate kubeflow-trainer-api pytest pytest-timeout
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check skypilot
  cd "$root"
  JAXVL_ENGINES=required "$venv/bin/python" -m pytest -p no:xdist -m "slow or not slow" tests/launching "$@"
)

slow() (
  install demo,dev,interop "torch==2.13.0"
  # The CUDA plugin of this jax and its compiler, beside the packages, as nothing that only running needs.
  local cuda="$venv/cuda"
  local version
  version="$("$venv/bin/python" -c 'import jax; print(jax.__version__)')"
  if [ "$(cat "$cuda/.request" 2>/dev/null || true)" != "$version" ]; then
    rm -rf "$cuda"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$cuda" \
      "jax-cuda13-plugin==$version" "jax-cuda13-pjrt==$version" nvidia-cuda-nvcc nvidia-nvvm
    printf '%s' "$version" >"$cuda/.request"
  fi
  export PYTHONPATH="$cuda${PYTHONPATH:+:$PYTHONPATH}"
  bash "$root/launch/test.sh" -m slow --ignore=tests/launching --ignore=tests/data/preparing "$@"
)

part="${1:-all}"
shift || true
case "$part" in
  prepare | clusters | slow)
    "$part" "$@"
    ;;
  all) # each part runs, whatever became of those before
    failed=""
    for each in prepare clusters slow; do
      bash "${BASH_SOURCE[0]}" "$each" || failed="$failed $each"
    done
    [ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
    ;;
  *)
    echo "$part is no part: prepare, clusters or slow" >&2
    exit 2
    ;;
esac
