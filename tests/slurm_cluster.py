"""A real SLURM on this one machine, for tests: munge, slurmctld and slurmd from Debian's packages.

Two slurmd play two nodes. Everything lives in one folder (configuration, keys, sockets, logs) on
ports of its own, so that a SLURM that the machine already has is not touched. By hand:

    python tests/slurm_cluster.py FOLDER       # until Ctrl-C or SIGTERM; prints SLURM_CONF
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo")
NODES = ("one", "two")
NODE_MEMORY_MB = 20000

SLURM_CONF = """\
ClusterName=flowllm
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=10
MinJobAge=3600
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=ALL MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""

NODE_CONF = """\
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} \
RealMemory={memory} Gres=gpu:1 Feature=a100 State=UNKNOWN
"""

# A count without a file leaves the node invalid; any device file serves, nothing opens it.
GRES_CONF = "AutoDetect=off\nNodeName={nodes} Name=gpu File=/dev/null\n"


def missing_programs() -> list[str]:
    """Programs that are not installed; empty where the cluster can start."""
    path = f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Path]:
    """Start the daemons in `folder`, give the path of slurm.conf, stop them at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    conf = _write_configuration(folder)
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    daemons = []
    try:
        for command in _daemons(folder, conf):
            log = (folder / f"{Path(command[0]).name}.out").open("a")
            daemons.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
            time.sleep(1)
        _wait_until_idle(environment, folder)
        yield conf
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            daemon.wait(timeout=30)


def _write_configuration(folder: Path) -> Path:
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    folder.chmod(0o755)
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(exist_ok=True)
    host = socket.gethostname().split(".")[0]
    conf = folder / "slurm.conf"
    text = SLURM_CONF.format(host=host, folder=folder, port=_free_port())
    hardware = {"cpus": os.cpu_count(), "memory": NODE_MEMORY_MB}
    for node in NODES:
        text += NODE_CONF.format(node=node, host=host, port=_free_port(), **hardware)
    conf.write_text(text)
    (folder / "gres.conf").write_text(GRES_CONF.format(nodes=",".join(NODES)))
    return conf


def _daemons(folder: Path, conf: Path) -> list[list[str]]:
    munged = [
        "/usr/sbin/munged",
        "--foreground",
        "--force",  # it may run as root, and the key may lie in a folder others can enter
        f"--key-file={folder}/munge.key",
        f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munged.pid",
        f"--log-file={folder}/munged.log",
        f"--seed-file={folder}/munged.seed",
    ]
    return [
        munged,
        ["/usr/sbin/slurmctld", "-D", "-i", "-f", str(conf)],
        *(["/usr/sbin/slurmd", "-D", "-N", node, "-f", str(conf)] for node in NODES),
    ]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _wait_until_idle(environment: dict[str, str], folder: Path, seconds: float = 60) -> None:
    """Wait until the nodes take jobs; the daemons' logs are in the error otherwise."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        state = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--partition=cpu", "--format=%T"],
            env=environment,
            capture_output=True,
            text=True,
        )
        if state.stdout.split() == ["idle"] * len(NODES):
            return
        time.sleep(1)
    logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("*.log")))
    raise RuntimeError(f"SLURM did not start: {state.stdout}{state.stderr}\n{logs}")


def main() -> None:
    """Run a cluster until interrupted or terminated."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with slurm_cluster(Path(sys.argv[1]).resolve()) as conf:
        print(f"export SLURM_CONF={conf}", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
