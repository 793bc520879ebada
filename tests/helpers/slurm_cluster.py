"""A real SLURM on this one machine, with its accounting database, for tests: all Debian's packages.

Two slurmd play two nodes; slurmdbd keeps accounts and jobs in a MariaDB. Everything lives in one
folder (configuration, keys, database, sockets, logs) on ports of its own, so that a SLURM or a
MariaDB that the machine already has is not touched. By hand:

    python tests/helpers/slurm_cluster.py FOLDER       # until Ctrl-C or SIGTERM; prints SLURM_CONF
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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

PROGRAMS = (
    "munged",
    "my_print_defaults",  # called by the next
    "mariadb-install-db",
    "mariadbd",
    "slurmdbd",
    "slurmctld",
    "slurmd",
    "sbatch",
    "sinfo",
    "sacct",
    "sacctmgr",
)
NODES = ("one", "two")
NODE_MEMORY_MB = 20000
# For jobs that ask for them; SLURM refuses accounts and qualities of service that it does not know.
ACCOUNT = "materials"
QOS = "flowllm"
ACCOUNTS = (
    ("cluster", "flowllm"),
    ("qos", QOS),
    ("account", ACCOUNT),
    ("user", "root", f"account={ACCOUNT}", f"qos={QOS}"),
)

# Root of this machine is the database's root without a password, by the socket. A small log of
# changes, since pytest keeps the folders of three sessions.
MARIADB_CONF = """\
[mariadbd]
user=root
datadir={folder}/database
socket={folder}/mariadb.socket
pid-file={folder}/mariadbd.pid
skip-networking
innodb_log_file_size=8M
"""

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdPort={dbd_port}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
"""

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
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={dbd_port}
AccountingStoragePass={folder}/munge.socket
AccountingStorageEnforce=limits,qos
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
RealMemory={memory} Gres=gpu:a100:1 Feature=a100 State=UNKNOWN
"""

# A count without a file leaves the node invalid; any device file serves, nothing opens it.
GRES_CONF = "AutoDetect=off\nNodeName={nodes} Name=gpu Type=a100 File=/dev/null\n"


def missing_programs() -> list[str]:
    """Programs that are not installed; empty where the cluster can start."""
    path = f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


def make_refusing_sbatch(folder: Path, option: str) -> Path:
    """Return a folder for the search path whose `sbatch` adds an option to what is submitted.

    `--test-only` is as it was: the site has changed since the checks at the start.
    """
    folder.mkdir(parents=True)
    script = folder / "sbatch"
    script.write_text(
        f'#!/bin/sh\ncase " $* " in *" --test-only "*) added= ;; *) added={option} ;; esac\n'
        f'exec {shutil.which("sbatch")} "$@" $added\n'
    )
    script.chmod(0o755)
    return folder


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Path]:
    """Start the daemons in `folder`, give the path of slurm.conf, stop them at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    conf = _write_configuration(folder)
    # slurmdbd's own configuration has no entry for the database's socket.
    database = {"MYSQL_UNIX_PORT": f"{folder}/mariadb.socket"}
    environment = {**os.environ, **database, "SLURM_CONF": str(conf)}
    with ExitStack() as daemons:
        try:
            _start(folder, environment, daemons)
        except (subprocess.CalledProcessError, TimeoutError) as error:
            raise RuntimeError(f"SLURM did not start: {error}\n{_logs(folder)}") from error
        yield conf


def _start(folder: Path, environment: dict[str, str], daemons: ExitStack) -> None:
    new = not (folder / "database").exists()
    if new:
        _run(["mariadb-install-db", f"--defaults-file={folder}/mariadb.conf"], environment, folder)
    for command in _accounting_daemons(folder):
        daemons.enter_context(_daemon(command, environment, folder))
    sacctmgr = ["sacctmgr", "--noheader", "--immediate"]
    _wait_for([*sacctmgr, "show", "user", "format=user"], ["root"], environment)
    if new:
        for words in ACCOUNTS:
            _run([*sacctmgr, "add", *words], environment, folder)
    for command in _scheduling_daemons():
        daemons.enter_context(_daemon(command, environment, folder))
    nodes = ["sinfo", "--noheader", "--Node", "--partition=cpu", "--format=%T"]
    _wait_for(nodes, ["idle"] * len(NODES), environment)


def _write_configuration(folder: Path) -> Path:
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    folder.chmod(0o755)
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(exist_ok=True)
    host = socket.gethostname().split(".")[0]
    conf = folder / "slurm.conf"
    dbd_port = _free_port()
    text = SLURM_CONF.format(host=host, folder=folder, port=_free_port(), dbd_port=dbd_port)
    hardware = {"cpus": os.cpu_count(), "memory": NODE_MEMORY_MB}
    for node in NODES:
        text += NODE_CONF.format(node=node, host=host, port=_free_port(), **hardware)
    conf.write_text(text)
    (folder / "gres.conf").write_text(GRES_CONF.format(nodes=",".join(NODES)))
    (folder / "mariadb.conf").write_text(MARIADB_CONF.format(folder=folder))
    slurmdbd_conf = folder / "slurmdbd.conf"
    slurmdbd_conf.write_text(SLURMDBD_CONF.format(folder=folder, dbd_port=dbd_port))
    slurmdbd_conf.chmod(0o600)  # slurmdbd refuses to start otherwise
    return conf


def _accounting_daemons(folder: Path) -> list[list[str]]:
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
        ["/usr/sbin/mariadbd", f"--defaults-file={folder}/mariadb.conf"],
        ["/usr/sbin/slurmdbd", "-D"],
    ]


def _scheduling_daemons() -> list[list[str]]:
    return [
        ["/usr/sbin/slurmctld", "-D", "-i"],
        *(["/usr/sbin/slurmd", "-D", "-N", node] for node in NODES),
    ]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def _daemon(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[None]:
    """Run a daemon; wait for its end, since it may still need those that started before it."""
    with _output(command, folder) as output:
        daemon = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        time.sleep(1)
        yield
    finally:
        daemon.terminate()
        daemon.wait(timeout=60)


def _run(command: list[str], environment: dict[str, str], folder: Path) -> None:
    with _output(command, folder) as output:
        subprocess.run(command, env=environment, stdout=output, stderr=output, check=True)


def _output(command: list[str], folder: Path) -> BinaryIO:
    return (folder / f"{Path(command[0]).name}.out").open("ab")


def _wait_for(
    command: list[str], answer: list[str], environment: dict[str, str], seconds: float = 120
) -> None:
    """Repeat a command until it prints the words of an answer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.stdout.split() == answer:
            return
        time.sleep(1)
    raise TimeoutError(f"{' '.join(command)}: {done.stdout}{done.stderr}")


def _logs(folder: Path) -> str:
    paths = sorted([*folder.glob("*.log"), *folder.glob("*.out")])
    return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in paths)


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
