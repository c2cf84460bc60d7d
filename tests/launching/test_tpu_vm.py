"""The script for TPU VMs, run with stand-ins for gcloud, tmux and git that say what they are asked."""

import json
import os

import launched
import pytest
from launched import WORDS

# A request has the states in `states`, one each time it is looked at, the last one from then on. A
# host is a shell of its own, which reads its standard input to the end as ssh does.
GCLOUD = """#!/bin/bash
if [ "$3" = queued-resources ]; then
  echo "$4 $5 ${*:6}" >>"$HOME/calls"
  [ "$4" = describe ] || exit 0
  state="$(head -n1 "$HOME/states")"
  [ "$(wc -l <"$HOME/states")" -eq 1 ] || sed -i 1d "$HOME/states"
  case "$state" in
    NONE) echo "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: no $5" >&2; exit 1 ;;
    DENIED) echo "ERROR: (gcloud.compute.tpus.queued-resources.describe) PERMISSION_DENIED" >&2; exit 1 ;;
  esac
  echo "WARNING: of no matter" >&2
  echo "$state"
  exit 0
fi
echo "$4 $5" >>"$HOME/calls"
cat >/dev/null
for word in "$@"; do
  case "$word" in --command=*) bash -c "${word#--command=}" ;; esac
done
"""
TMUX = """#!/bin/bash
case "$1" in
  has-session) [ -e "$HOME/session" ] ;;
  new-session) bash -c "${@: -1}" ;;
esac
"""
GIT = """#!/bin/bash
echo "git $1" >>"$HOME/calls"
[ "$1" = clone ] && mkdir -p "$HOME/jaxvl/.venv/bin"
cp "$HOME/bin/printer" "$HOME/jaxvl/.venv/bin/python"
cp /bin/true "$HOME/jaxvl/.venv/bin/pip"
"""
SLEEP = '#!/bin/bash\necho "sleep $1" >>"$HOME/calls"\n'
OPTIONS = ("--tpu=v5p:2x2x4", "--zone=z", "--repository=https://host/x.git")
RUN = ["launch/submit.py", "local", "--restarts=10", "--module=jaxvl.train", "--", *WORDS]
START = [*RUN, "--coordinator=auto"]


@pytest.fixture
def submitted(tools, tmp_path):
    """Submits with a request that has these states: how it ended, what was asked of gcloud, and
    the words of what was started."""
    environment = tools(gcloud=GCLOUD, tmux=TMUX, git=GIT, sleep=SLEEP)

    def submit(states, *more):
        (tmp_path / "states").write_text("".join(f"{state}\n" for state in states.split()))
        (tmp_path / "calls").write_text("")
        done = launched.submit("tpu_vm", *OPTIONS, *more, after=WORDS, env=environment, timeout=60)
        calls = (tmp_path / "calls").read_text().splitlines()
        started = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        return done, calls, started

    return submit


def asked(calls):
    """What was asked for besides the state, by its verb."""
    verbs = [call.split()[0] for call in calls]
    return " ".join(verb for verb in verbs if verb not in ("describe", "ssh", "git"))


@pytest.mark.parametrize(
    "states, expected",
    [
        ("NONE WAITING_FOR_RESOURCES PROVISIONING ACTIVE", "create sleep sleep"),
        ("ACTIVE", ""),
        ("WAITING_FOR_RESOURCES ACTIVE", "sleep"),
        ("SUSPENDED NONE ACTIVE", "delete create"),
        ("FAILED NONE PROVISIONING ACTIVE", "delete create sleep"),
        ("SUSPENDING SUSPENDED DELETING NONE ACTIVE", "sleep delete sleep create"),
    ],
)
def test_a_slice_is_asked_for_where_there_is_none(submitted, states, expected):
    done, calls, started = submitted(states)
    assert done.returncode == 0, done.stderr
    assert asked(calls) == expected
    assert started == [START]
    for call in calls:
        if call.startswith("create"):
            assert call == (
                "create run --zone=z --accelerator-type=v5p-32 --runtime-version=v2-alpha-tpuv5 "
                "--node-id=run"
            )
        if call.startswith("delete"):
            assert call == "delete run --zone=z --quiet --force"


@pytest.mark.parametrize(
    "states, expected, said",
    [
        ("NONE FAILED", "create", "run is FAILED"),
        ("SUSPENDED NONE FAILED", "delete create", "run is FAILED"),
        ("NONE PROVISIONING SUSPENDED", "create sleep", "run is SUSPENDED"),
        ("NONE NONE", "create", "run is gone"),
        ("DENIED", "", "PERMISSION_DENIED"),
    ],
)
def test_what_it_cannot_mend_ends_it(submitted, states, expected, said):
    done, calls, started = submitted(states)
    assert done.returncode == 1 and said in done.stderr
    assert asked(calls) == expected
    assert started == [] and "ssh run" not in calls


def test_a_run_that_goes_on_is_left_alone(submitted, tmp_path):
    (tmp_path / "session").touch()
    done, calls, started = submitted("ACTIVE")
    assert done.returncode == 0, done.stderr
    assert started == [] and calls.count("ssh run") == 2
    assert not any(call.startswith("git") for call in calls), "changed beneath it"
    (tmp_path / "session").unlink()
    done, _, started = submitted("ACTIVE")
    assert done.returncode == 0 and started == [START]


def test_every_slice_is_set_up_and_started(submitted):
    done, calls, started = submitted("NONE ACTIVE", "--slices=2", "--spot")
    assert done.returncode == 0, done.stderr
    (create,) = (call for call in calls if call.startswith("create"))
    assert create.endswith("--node-count=2 --node-prefix=run --spot")
    assert started == [START] * 2
    assert [call for call in calls if call.startswith("ssh")] == ["ssh run-0"] * 2 + [
        "ssh run-1"
    ] * 2


def test_an_existing_slice_is_not_asked_for(submitted):
    done, calls, started = submitted("NONE", "--existing")
    assert done.returncode == 0 and started == [START], done.stderr
    assert not any(call.startswith(("create", "describe")) for call in calls)


def test_the_workdir_may_be_a_word_of_its_own():
    after = (*WORDS[:1], "--workdir", "gs://bucket/run")
    assert "queued-resources create run " in launched.dry("tpu_vm", *OPTIONS, after=after)


@pytest.mark.parametrize(
    "options, said",
    [
        (
            ("--existing", "--spot"),
            "argument --spot: is of a slice that is made, not of --existing",
        ),
        (("--existing", "--runtime=x"), "argument --runtime: is of a slice that is made"),
        (("--python=x",), "argument --python: is ~/jaxvl and the interpreter in it on a host"),
        (("--root=/x",), "argument --root: is ~/jaxvl and the interpreter in it on a host"),
    ],
)
def test_options_without_effect_are_refused(options, said):
    done = launched.submit("tpu_vm", "--dry-run", *OPTIONS, *options, after=WORDS, env=os.environ)
    assert done.returncode == 2 and done.stderr.startswith(f"submit.py tpu_vm: {said}"), done.stderr
