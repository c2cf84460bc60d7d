"""What each target would submit: by the engine's own schemas, and run with stand-ins for its tools."""

import json
import os
import subprocess
import sys

import launched
import pytest
import yaml
from launched import PRINTER, WORDS, bash, dry
from targets._base import job_name
from targets._tpu import tpu_slice

from jaxvl.command import STOPPED, WRONG

# --------------------------------------------------------------------------------------------------

TPU = ("--tpu=v5e:4x8", "--slices=2", "--image=gcr.io/p/jaxvl", "--queue=q", "--spot")
GPU = ("--gpu=nvidia-h100-80gb", "--nodes=4", "--image=gcr.io/p/jaxvl", "--env=A=b c")


@pytest.mark.parametrize("options", [TPU, GPU], ids=["tpu", "gpu"])
def test_a_jobset_is_one_by_its_own_schema(options):
    models = pytest.importorskip("kubeflow_trainer_api.models")
    manifest = yaml.safe_load(dry("gke", *options))
    known = models.JobsetV1alpha2JobSet.from_dict(manifest).to_dict()
    assert known == manifest, "keys that are not in the schema are left out of it"


@pytest.mark.parametrize("options", [TPU, GPU], ids=["tpu", "gpu"])
def test_its_jobs_are_jobs_by_kubernetes_own_schema(options):
    validate = pytest.importorskip("kubernetes_validate")
    manifest = yaml.safe_load(dry("gke", *options))
    (group,) = manifest["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **group["template"]}
    validate.validate(job, "1.31", strict=True)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    container["imagee"] = container.pop("image")
    with pytest.raises(validate.ValidationError):
        validate.validate(job, "1.31", strict=True)


def test_slices_are_jobs_and_hosts_are_pods():
    manifest = yaml.safe_load(dry("gke", *TPU))
    (group,) = manifest["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    assert (group["replicas"], job["parallelism"], job["completions"]) == (2, 8, 8)
    (container,) = job["template"]["spec"]["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert job["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
        "cloud.google.com/gke-spot": "true",
    }
    rules = job["podFailurePolicy"]["rules"]
    acts = {value: rule["action"] for rule in rules for value in rule["onExitCodes"]["values"]}
    assert acts == {WRONG: "FailJob", 3: "FailJob", STOPPED: "Ignore"}


def test_a_pod_runs_the_words_as_they_were_given(tools):
    manifest = yaml.safe_load(dry("gke", *GPU, "--python=printer"))
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert {"name": "A", "value": "b c"} in container["env"]
    assert container["command"][:2] == ["bash", "-c"]
    (words,) = bash(container["command"][2], {**tools(), "JOB_COMPLETION_INDEX": "3"})
    together = ["--coordinator=run-workers-0-0.run:8476", "--processes=4", "--process=3"]
    assert words == ["-m", "jaxvl.train", *WORDS, *together]


SKY = ("--accelerators=H100:8", "--nodes=2", "--spot", "--infra=gcp", "--mount=/data=gs://bucket")


def test_a_task_is_one_by_skypilots_own_schema():
    sky = pytest.importorskip("sky")
    node = yaml.safe_load(dry("skypilot", *SKY))
    node.pop("file_mounts")  # it would ask the cloud for the bucket
    task = sky.Task.from_yaml_config(node)
    (resources,) = task.resources
    assert task.num_nodes == 2 and resources.use_spot
    assert resources.accelerators == {"H100": 8}
    assert resources.job_recovery["recover_on_exit_codes"] == [STOPPED]


def test_a_node_runs_the_words_as_they_were_given(tools):
    task = yaml.safe_load(dry("skypilot", *SKY, "--python=printer"))
    told = {
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NUM_NODES": "2",
    }
    (words,) = bash(task["run"], {**tools(), **told})
    together = ["--coordinator=10.0.0.1:8476", "--processes=2", "--process=1"]
    assert words == ["-m", "jaxvl.train", *WORDS, *together]


# Runs what it is given as a task of a step.
SRUN = '#!/bin/bash\nwhile [[ "$1" == --* ]]; do shift; done\n"$@"\nexit $(cat "$HOME/status")\n'
SCONTROL = '#!/bin/bash\necho "$@" >>"$HOME/scontrol"\nexit 1\n'


@pytest.mark.parametrize(
    "status, again", [(0, False), (2, False), (3, False), (STOPPED, True), (1, True), (137, True)]
)
def test_a_slurm_script_goes_back_into_the_queue_where_that_helps(tools, tmp_path, status, again):
    environment = tools(srun=SRUN, scontrol=SCONTROL)
    (tmp_path / "status").write_text(str(status))
    told = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "run", "SLURM_SUBMIT_DIR": str(tmp_path)}
    script = dry("slurm", "--python=printer", "--restarts=1", "--env=A=b c")
    done = [
        subprocess.run(
            ["bash", "-c", script], env={**environment, **told}, capture_output=True, text=True
        )
        for _ in range(2)
    ]
    assert json.loads(done[0].stdout.splitlines()[0]) == ["-m", "jaxvl.train", *WORDS]
    asked = tmp_path / "scontrol"
    times = asked.read_text().splitlines().count("requeue 7") if asked.exists() else 0
    if not again:
        assert times == 0 and [one.returncode for one in done] == [status, status]
    elif status == STOPPED:
        assert times == 2, "counts no restart"
    else:
        assert times == 1 and done[1].returncode == status
        assert "launch: gives up after 1 restarts" in done[1].stdout


def test_what_slurm_is_told():
    script = dry("slurm", "--nodes=2", "--gpus-per-node=8", "--time=24:00:00", "--grace=90")
    told = [line.split(" ", 1)[1] for line in script.splitlines() if line.startswith("#SBATCH")]
    for option in (
        "--nodes=2",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--signal=TERM@90",
        "--requeue",
        "--open-mode=append",
    ):
        assert option in told
    one = dry("slurm", "--gpus-per-node=4", "--tasks-per-node=1")
    assert "export JAX_LOCAL_DEVICE_IDS=0,1,2,3" in one


@pytest.mark.parametrize("left, used", [(8, 8), (7, 4), (4, 4), (3, 2), (2, 2)])
def test_a_slurm_job_goes_on_with_a_part_of_its_nodes(tools, tmp_path, left, used):
    (tmp_path / "status").write_text("0")
    asked = '#!/bin/bash\necho "$@" >"$HOME/srun"\n'
    script = dry("slurm", "--nodes=8", "--min-nodes=2", "--gpus-per-node=4")
    assert "#SBATCH --nodes=2-8" in script and "--config.resume.devices=32" in script
    told = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "run", "SLURM_JOB_NUM_NODES": str(left)}
    subprocess.run(["bash", "-c", script], env={**tools(srun=asked), **told}, check=True)
    given = (tmp_path / "srun").read_text().split()
    assert given[:2] == [f"--nodes={used}", f"--ntasks={used * 4}"]


@pytest.mark.parametrize(
    "runtime, expected",
    [
        ("pyxis", ["--container-image=a.sqsh", "--container-mounts=/p:/p,/d:/d"]),
        ("apptainer", ["apptainer exec --nv", "--bind=/p:/p,/d:/d"]),
    ],
)
def test_a_container_on_slurm(runtime, expected):
    options = ("--image=a.sqsh", "--root=/p", "--mount=/d:/d", "--gpus-per-node=1")
    script = dry("slurm", f"--runtime={runtime}", *options)
    for words in expected:
        assert words in script
    assert "\n  python -m jaxvl.train " in script


def test_xpk_and_ray_have_the_words_as_they_were_given(tools):
    words = bash(
        dry("xpk", "--cluster=c", "--tpu=v6e:4x4", "--image=i", "--python=printer"),
        tools(xpk=PRINTER.format(python=sys.executable)),
    )[0]
    assert words[:2] == ["workload", "create"] and "--tpu-type=v6e-16" in words
    command = words[-1].removeprefix("--command=")
    (inner,) = bash(command, tools())
    assert inner == ["-m", "jaxvl.train", *WORDS, "--coordinator=auto"]
    told = dry("ray", "--address=http://head:8265", "--workers=4")
    (words,) = bash(told, tools(ray=PRINTER.format(python=sys.executable)))
    assert words[:2] == ["job", "submit"] and words[-len(WORDS) :] == list(WORDS)
    assert '--scaling={"num_workers": 4}' in words


@pytest.mark.parametrize(
    "options, workers, devices",
    [
        (("--workers=4", "--gpus-per-worker=8", "--min-workers=2"), [2, 4], 32),
        (("--tpu=v6e:4x4", "--slices=2", "--min-workers=4"), [4, 8], 32),
    ],
)
def test_ray_goes_on_with_fewer(tools, options, workers, devices):
    told = dry("ray", "--address=http://head:8265", *options)
    (words,) = bash(told, tools(ray=PRINTER.format(python=sys.executable)))
    (scaling,) = (word for word in words if word.startswith("--scaling="))
    assert json.loads(scaling.partition("=")[2])["num_workers"] == workers
    assert words[-1] == f"--config.resume.devices={devices}"


@pytest.mark.parametrize(
    "options, reason",
    [
        (("--workers=4", "--min-workers=2"), "needs --tpu, --gpus-per-worker or --config.resume"),
        (("--workers=4", "--min-workers=5"), "5 must be at most the 4 workers"),
        (("--tpu=v6e:4x4", "--slices=2", "--min-workers=2"), "a multiple of the 4 hosts"),
        (("--tpu=v6e:4x4", "--slices=4", "--min-workers=4"), "3 slices go on"),
    ],
)
def test_what_ray_cannot_go_on_with(options, reason):
    done = launched.submit("ray", "--dry-run", *options, after=WORDS)
    assert done.returncode == 2 and reason in done.stderr, done


# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, hosts, per_host, type",
    [
        ("v5e:2x4", 1, 8, "v5litepod-8"),
        ("v5e:16x16", 64, 4, "v5litepod-256"),
        ("v4:8x8x4", 64, 4, "v4-512"),
        ("v5p:2x2x1", 1, 4, "v5p-8"),
        ("v6e:4x4", 4, 4, "v6e-16"),
        ("v5e:1x1", 1, 1, "v5litepod-1"),
        ("v5p:16x16x24", 1536, 4, "v5p-12288"),
    ],
)
def test_slices(name, hosts, per_host, type):
    """As Google's tables of machine types and topologies have them."""
    made = tpu_slice(name)
    assert (made.hosts, made.chips_per_host, made.type) == (hosts, per_host, type)


@pytest.mark.parametrize(
    "name, topology",
    [("v4:8x8x4", "4x8x8"), ("v4:2x2x1", "2x2x1"), ("v5p:12x8x8", "8x8x12"), ("v5e:4x8", "4x8")],
)
def test_topologies_are_written_as_google_writes_them(name, topology):
    """The label of Kubernetes is compared as a text."""
    assert tpu_slice(name).topology == topology


@pytest.mark.parametrize(
    "words, name",
    [
        (("--workdir=gs://b/My_Run.7/",), "my-run-7"),
        (("--config=configs/align_emoji.py:x", "--workdir=/"), "align-emoji"),
        (("--workdir=runs/7",), "run-7"),
        (("--config=a.py", "--workdir", "runs/b"), "b"),
        ((), "jaxvl"),
    ],
)
def test_names_of_jobs(words, name):
    assert job_name(words) == name


@pytest.mark.parametrize(
    "words, said",
    [
        (["lcal", "--", *WORDS], "submit.py TARGET: 'lcal' is none; must be one of gke, local, "),
        (
            ["local", "--processes=0", "--", *WORDS],
            "submit.py local: argument --processes: '0' must",
        ),
        (["local", "--process=2", "--", *WORDS], "submit.py local: unrecognized arguments: --proc"),
        (
            ["local", "--proceses=3", "--", *WORDS],
            "submit.py local: unrecognized arguments: --proceses=3; did you mean --processes?\n",
        ),
        (
            ["gke", "--image=i", "--tpu=v5e:4x4", "--slice", "2", "--", *WORDS],
            "submit.py gke: unrecognized arguments: --slice 2; did you mean --slices?\n",
        ),
        (
            ["local", "configs/x.py", "--workdir=x"],
            "submit.py local: unrecognized arguments: configs/x.py --workdir=x; words of the run "
            "come after --: -- --config=FILE --workdir=FOLDER\n",
        ),
        (
            ["local", "--processes=2", "--config=configs/x.py", "--workdir=x"],
            "submit.py local: unrecognized arguments: --config=configs/x.py --workdir=x; words of "
            "the run come after --",
        ),
        (
            ["xpk", "--cluster=c", "--tpu=v5e:4x4", "--image=i", "--config.optim.lr=1"],
            "submit.py xpk: unrecognized arguments: --config.optim.lr=1; words of the run come",
        ),
        (["local"], "submit.py needs the words of the run after --"),
        (["local", "--", "--config", "--workdir=x"], "submit.py needs --config=… after --"),
        (["local", "--", "--config=x"], "submit.py needs --workdir=… after --"),
        (
            ["local", "--", *WORDS, "--process=0"],
            "submit.py --process after -- is given by the lau",
        ),
        (
            ["local", "--processes=3", "--cpu-devices=4", "--", *WORDS],
            "submit.py local: argument --cpu-devices: 4 must be a multiple of --processes=3",
        ),
        (
            ["local", "--elastic=1", "--processes=2", "--", *WORDS],
            "submit.py local: argument --elastic: needs --gpus-per-process, --cpu-devices or --c",
        ),
        (
            ["local", "--elastic=4", "--processes=2", "--cpu-devices=8", "--", *WORDS],
            "submit.py local: argument --elastic: 4 must be at most 1, the next smaller number of",
        ),
        (
            ["local", "--elastic=2", "--processes=2", "--cpu-devices=8", "--", *WORDS],
            "submit.py local: argument --elastic: 2 must be at most 1, ",
        ),
        (
            ["local", "--elastic=3", "--processes=4", "--cpu-devices=8", "--", *WORDS],
            "submit.py local: argument --elastic: 3 must be at most 2, the next smaller number of"
            " processes that divides --processes=4",
        ),
        (
            ["local", "--elastic=1", "--cpu-devices=8", "--", *WORDS],
            "submit.py local: argument --elastic: needs --processes of 2 at least",
        ),
        (
            ["slurm", "--nodes=2", "--min-nodes=3", "--", *WORDS],
            "submit.py slurm: argument --min-nodes: 3 must be at most --nodes=2",
        ),
        (
            ["slurm", "--time=1h", "--", *WORDS],
            "submit.py slurm: argument --time: '1h' must be MIN",
        ),
        (
            ["slurm", "--gpus-per-node=8", "--tasks-per-node=3", "--", *WORDS],
            "submit.py slurm: argument --tasks-per-node: 3 must be 1 or --gpus-per-node=8",
        ),
        (
            ["gke", "--image=i", "--tpu=v5:4x4", "--", *WORDS],
            "submit.py gke: argument --tpu: 'v5:4x4' must be KIND:TOPOLOGY with a KIND of v4, v5e",
        ),
        (
            ["gke", "--image=i", "--tpu=v4:4x4", "--", *WORDS],
            "submit.py gke: argument --tpu: 'v4:4x4' must be v4:NxNxN",
        ),
        (
            ["gke", "--image=i", "--tpu=v5e:3x4", "--", *WORDS],
            "submit.py gke: argument --tpu: 'v5e:3x4' must be v5e:NxN, as v5e:4x4: 1x1, 2x2, 2x4,",
        ),
        (
            ["gke", "--image=i", "--tpu=v5e:100x100", "--", *WORDS],
            "submit.py gke: argument --tpu: 'v5e:100x100' must be v5e:NxN, as v5e:4x4: 1x1, 2x2, ",
        ),
        (
            ["gke", "--image=i", "--gpu=x", "--slices=4", "--", *WORDS],
            "submit.py gke: argument --slices: needs --tpu",
        ),
        (
            ["gke", "--image=i", "--tpu=v5e:4x4", "--nodes=16", "--", *WORDS],
            "submit.py gke: argument --nodes: needs --gpu",
        ),
        (
            ["gke", "--image=i", "--tpu=v5e:4x4", "--gpus-per-node=2", "--", *WORDS],
            "submit.py gke: argument --gpus-per-node: needs --gpu",
        ),
        (
            ["ray", "--slices=2", "--", *WORDS],
            "submit.py ray: argument --slices: needs --tpu",
        ),
        (
            ["slurm", "--mount=/d:/d", "--", *WORDS],
            "submit.py slurm: argument --mount: needs --image",
        ),
        (
            ["slurm", "--runtime=pyxis", "--", *WORDS],
            "submit.py slurm: argument --runtime: needs --image",
        ),
        (
            ["xpk", "--cluster=c", "--image=i", "--tpu=v5e:4x4", "--root=/x", "--", *WORDS],
            "submit.py xpk: argument --root: is the folder of the image",
        ),
        (
            ["gke", "--image=i", "--", *WORDS],
            "submit.py gke: one of the arguments --tpu --gpu is r",
        ),
        (
            ["skypilot", "--accelerators=A:1", "--mount=x", "--", *WORDS],
            "submit.py skypilot: argument --mount: 'x' must be /FOLDER=ADDRESS",
        ),
        (
            [
                "tpu_vm",
                "--tpu=v4:2x2x2",
                "--zone=z",
                "--repository=r",
                "--",
                *WORDS[:1],
                "--workdir=x",
            ],
            "submit.py tpu_vm: --workdir=… must be on storage that all hosts see: gs://…",
        ),
    ],
)
def test_errors_are_a_line_each(words, said):
    target, *options = words
    done = subprocess.run(
        [sys.executable, str(launched.SUBMIT), target, "--dry-run", *options],
        capture_output=True,
        text=True,
    )
    assert done.returncode == WRONG
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1, done.stderr


def test_a_command_that_is_not_there_is_named(tmp_path):
    done = launched.submit("slurm", after=WORDS, env={**os.environ, "PATH": str(tmp_path)})
    assert done.returncode == WRONG
    assert done.stderr.startswith("submit.py needs the command 'sbatch', which is not on this mach")


DEVICES = "--config.resume.devices"
ELASTIC = {
    "local": ("--processes=4", "--cpu-devices=8", "--elastic=2"),
    "slurm": ("--nodes=4", "--gpus-per-node=2", "--min-nodes=2"),
    "ray": ("--workers=4", "--gpus-per-worker=2", "--min-workers=2"),
}


@pytest.mark.parametrize("target", ELASTIC)
@pytest.mark.parametrize("own", [(f"{DEVICES}=32",), (DEVICES, "32")], ids=["sign", "word"])
def test_the_number_of_devices_may_be_given(target, own):
    assert f"{DEVICES}=8" in dry(target, *ELASTIC[target])
    text = dry(target, *ELASTIC[target], after=(*WORDS, *own))
    places = text.count(" ".join(own))
    assert places == (4 if target == "local" else 1)
    assert text.count(DEVICES) == places, "another one comes behind it"


def test_values_may_be_words_of_their_own():
    after = ("--config", "configs/siglip.py", "--workdir", "gs://bucket/My_Run")
    manifest = yaml.safe_load(dry("gke", *TPU, after=after))
    assert manifest["metadata"]["name"] == "my-run"
    assert dry("local", after=after).count(" ".join(after)) == 1


def test_options_that_a_target_has_are_used():
    manifest = yaml.safe_load(dry("gke", *GPU, "--root=/project"))
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert container["workingDir"] == "/project"
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    assert dry("ray", "--python=/v/python").startswith("/v/python ")
    assert " /v/python launch/ray_driver.py " in dry("ray", "--python=/v/python", "--address=a")


def test_statuses_are_those_of_the_commands():
    from targets import _base

    from jaxvl import command

    assert (_base.WRONG, _base.STOPPED) == (command.WRONG, command.STOPPED)
    assert _base.FINAL == (0, 2, 3)


def modules(folder, *words):
    """What a launcher says, and the packages that it has imported, by their files."""
    code = f"""import json, runpy, sys
sys.argv = ["submit.py", *{list(words)!r}]
try:
    runpy.run_path({str(launched.SUBMIT)!r}, run_name="__main__")
except SystemExit as end:
    assert end.code == 0
files = {{name: getattr(module, "__file__", None) for name, module in sys.modules.items()}}
print(json.dumps(files), file=sys.stderr)"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(launched.SUBMIT.parent)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(done.stderr)


def test_the_launcher_needs_no_jax(tmp_path):
    _, files = modules(tmp_path, "gke", "--dry-run", *TPU, "--", *WORDS)
    assert files["jaxvl"] == str(launched.SUBMIT.parent.parent / "jaxvl" / "__init__.py")
    assert not {"jax", "numpy", "etils", "ml_collections"} & files.keys()


def test_help_names_every_target_and_needs_no_jax(tmp_path):
    text, files = modules(tmp_path, "--help")
    assert "jax" not in files
    for name in ("gke", "local", "ray", "skypilot", "slurm", "tpu_vm", "xpk"):
        assert f"\n  {name} " in text
