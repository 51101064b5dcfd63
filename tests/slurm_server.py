"""Slurm on this machine, for tests: munged, slurmctld and slurmd of two nodes, with their own configuration."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ('munged', 'slurmctld', 'slurmd')
NEEDED = (*DAEMONS, 'sbatch', 'srun', 'scontrol')
# The seconds that a requeued job waits for credentials of its last start to expire (Slurm's default: 120).
EXPIRE_SECONDS = 5
# Jobs share the cores of this machine: Slurm believes in as many as they ask for.
CONFIG = """\
ClusterName=tests
SlurmctldHost={controller}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={expire}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
ReturnToService=2
KillWait={kill_wait}
SchedulerParameters=batch_sched_delay=1,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=DEFAULT CPUs={cpus} RealMemory=1000 Gres=gpu:{gpus} State=UNKNOWN
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Return the programs of Slurm that are not installed."""
    return [name for name in NEEDED if shutil.which(name, path=_path()) is None]


def _path() -> str:
    """Return the path of programs with that of daemons, which some users don't have."""
    return f'{os.environ.get("PATH", "")}:/usr/sbin:/sbin'


@dataclass(frozen=True)
class Slurm:
    """A running Slurm."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: object) -> str:
        """Run one of Slurm's commands; return its output."""
        done = subprocess.run(
            list(map(str, command)), env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f'{command}: {done.stdout}{done.stderr}'
        return done.stdout

    def idle_nodes(self) -> list[str]:
        """Return the names of the nodes that wait for jobs; none before Slurm has started."""
        command = ('sinfo', '--noheader', '--Node', '--states', 'idle', '--format', '%N')
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300, check=False)
        return done.stdout.split()

    def submit(self, script: Path, *options: object, cwd: Path, arguments: Sequence[object] = ()) -> int:
        """Queue `sbatch options script arguments`, to run in `cwd`; return the job's id."""
        output = self.run('sbatch', '--parsable', '--chdir', cwd, *options, script, *arguments)
        return int(output.partition(';')[0])

    def job(self, number: int) -> dict[str, str]:
        """Return the fields of a job in `scontrol show job`, by name."""
        words = self.run('scontrol', 'show', 'job', number).split()
        return dict(word.split('=', 1) for word in words if '=' in word)

    def wait(self, number: int, done: Callable[[dict[str, str]], bool], seconds: float = 120) -> dict[str, str]:
        """Return the job's values once `done` holds for them."""
        end = time.monotonic() + seconds
        while not done(job := self.job(number)):
            assert time.monotonic() < end, f'{job}\n{self.logs()}'
            time.sleep(0.2)
        return job

    def logs(self) -> str:
        """Return the last lines of all daemons."""
        return ''.join(f'{log.name}\n{log.read_text()[-4000:]}\n' for log in sorted(self.folder.glob('*.log')))


@contextmanager
def slurm_server(folder: Path, *, cpus: int = 64, gpus: int = 8, kill_wait: int = 30) -> Iterator[Slurm]:
    """Start Slurm with its files in `folder`, whose path must be short enough for a socket; end it with all its jobs.

    The first of its two nodes has the name of this machine, so that jobs find it by name.

    Args:
        cpus, gpus: what Slurm believes that each node has; no device file belongs to a GPU.
        kill_wait: seconds from the SIGTERM at the end of a job's time to SIGKILL.
    """
    key, config = folder / 'munge.key', folder / 'slurm.conf'
    nodes = [socket.gethostname(), f'{socket.gethostname()}-second']
    (folder / 'state').mkdir(parents=True)
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    port, *ports = _free_ports(1 + len(nodes))
    lines = [f'NodeName={name} NodeAddr=127.0.0.1 Port={port}' for name, port in zip(nodes, ports, strict=True)]
    config.write_text(
        CONFIG.format(
            controller=nodes[0], port=port, nodes='\n'.join(lines), user=_user(), folder=folder,
            expire=EXPIRE_SECONDS, cpus=cpus, gpus=gpus, kill_wait=kill_wait,
        )
    )  # fmt: skip
    for number in range(gpus):
        (folder / f'gpu{number}').touch()
    (folder / 'gres.conf').write_text(f'Name=gpu File={folder}/gpu[0-{gpus - 1}]\n')
    slurm = Slurm(folder, os.environ | {'PATH': _path(), 'SLURM_CONF': str(config)})
    files = {'key-file': 'key', 'socket': 'socket', 'pid-file': 'pid', 'seed-file': 'seed', 'log-file': 'text'}
    with ExitStack() as started:
        options = [f'--{option}={folder}/munge.{ending}' for option, ending in files.items()]
        started.enter_context(_daemon(slurm, 'munged', '--foreground', '--force', *options))
        _wait_for((folder / 'munge.socket').exists, slurm)
        started.enter_context(_daemon(slurm, 'slurmctld', '-D'))
        for name in nodes:
            started.enter_context(_daemon(slurm, 'slurmd', '-D', '-N', name))
        _wait_for(lambda: sorted(slurm.idle_nodes()) == sorted(nodes), slurm)
        started.callback(_cancel_jobs, slurm)
        yield slurm


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(('127.0.0.1', 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def _daemon(slurm: Slurm, name: str, *options: str) -> Iterator[None]:
    command = [shutil.which(name, path=_path()) or name, *options]
    with open(slurm.folder / f'{name}.log', 'a') as log:
        process = subprocess.Popen(
            command, env=slurm.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _cancel_jobs(slurm: Slurm) -> None:
    """End all jobs, and wait until none of their processes is left."""
    for options in ((), ('--full', '--signal=KILL')):
        subprocess.run(['scancel', '--user', _user(), *options], env=slurm.environment, timeout=300, check=False)
    _wait_for(lambda: not slurm.run('squeue', '--noheader').strip(), slurm)


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _wait_for(done: Callable[[], bool], slurm: Slurm, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, slurm.logs()
        time.sleep(0.1)
