# Sourced by the other scripts: makes or reuses a virtual environment and installs what they name, and nothing else.
#   JAXVL_VENV    where it lies (default: .venv in the project)
#   PYTHON        the interpreter to make it with (default: python3.12 or python3.11, whichever is there)
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${JAXVL_VENV:-$root/.venv}"

pick_python() {
  for candidate in ${PYTHON:-} python3 python3.12 python3.11 python3.13; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "jaxvl needs Python 3.11 or newer; none found. Set PYTHON to its path." >&2
  exit 1
}

# install EXTRAS [PIP ARGUMENTS…]: quick when pyproject.toml and the request are as at the last time.
install() {
  local extras="$1"
  shift
  [ -x "$venv/bin/python" ] || "$(pick_python)" -m venv "$venv"
  local stamp="$venv/.jaxvl-$extras"
  local want
  want="$(cat "$root/pyproject.toml" && echo "$root $extras $*")"
  if [ "$(cat "$stamp" 2>/dev/null || true)" != "$want" ]; then
    echo "installing jaxvl[$extras] into $venv" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" --editable "$root[$extras]"
    printf '%s' "$want" >"$stamp"
  fi
}
