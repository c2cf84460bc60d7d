"""Starts a miniature run as several processes of this machine, and plays what may befall one of them.

As a script: `processes.py ADDRESS PROCESSES PROCESS WORKDIR FAULT`. A fault befalls the last process after some steps: `none`; `data`, its
feed raises; `exception`, its loop raises; `kill`, it kills itself; `preempted`, it gets SIGTERM.
"""

import os
import pathlib
import signal
import socket
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
DEVICES = 8
GOOD = 4  # steps before the fault


def start(address, processes, process, workdir, fault="none"):
    path = os.pathsep.join([str(HERE), str(HERE.parent.parent)])
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES // processes}"  # the last one counts
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    command = [sys.executable, __file__, address, str(processes), str(process), str(workdir), fault]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def befall(fault):
    """Has `fault` come over this process."""
    from jaxvl.data import feed
    from jaxvl.data.loader import Batches
    from jaxvl.data.records import DataError

    read, take, taken = Batches.__getitem__, feed.Feed.take, []

    def get(self, i):
        if fault == "data" and i == GOOD:
            raise DataError("the disk is gone")
        return read(self, i)

    def after(self, **options):
        if len(taken) == GOOD:
            print("FAULT", flush=True, file=sys.stderr)
            if fault == "exception":
                raise ZeroDivisionError("a bug in the loop")
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "preempted":
                os.kill(os.getpid(), signal.SIGTERM)
        taken.append(1)
        return take(self, **options)

    Batches.__getitem__, feed.Feed.take = get, after


def main(argv):
    address, processes, process, workdir, fault = argv
    import jax

    from jaxvl.sharding import hosts

    if processes != "1":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if int(process) == int(processes) - 1:
        befall(fault)
    (pathlib.Path(workdir).parent / "config.py").write_text(CONFIG)
    options = [f"--coordinator={address}", f"--processes={processes}", f"--process={process}"] if processes != "1" else []
    from jaxvl import train

    return hosts.run_command(train.main, [f"--config={pathlib.Path(workdir).parent / 'config.py'}", f"--workdir={workdir}", *options])


CONFIG = """
import tiny


def get_config():
    return tiny.config(steps=8, checkpoint=dict(every=100))
"""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
