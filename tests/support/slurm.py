"""A real Slurm of the distribution's packages: munge, controller and nodes in a machine of their own."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support import distribution, namespaces
from tests.support.namespaces import Inside, wait_until

PACKAGES = (
    "slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge", "libmunge2", "libhwloc15",
    "liblua5.1-0",
)  # fmt: skip
CONTROLLER = "10.198.0.1"
CONF = """
ClusterName=test
SlurmctldHost={host}({controller})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
PluginDir={plugins}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
KillWait=30
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeAddr={address} CPUs=2 Sockets=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=4000"


@dataclass(frozen=True, slots=True)
class Slurm:
    """The cluster, and a folder that its nodes see."""

    machine: Inside
    folder: Path

    def sbatch(
        self, script: Path, *arguments: str, options: tuple[str, ...] = (), submitted_in: Path | None = None
    ) -> int:
        """Queue a job, from the cluster's folder if no other is given; its number. Its output goes to out-NUMBER."""
        said = self.machine.run(
            "sbatch",
            "--parsable",
            f"--output={self.folder}/out-%j",
            *options,
            script,
            *arguments,
            cwd=submitted_in or self.folder,
        )
        assert said.returncode == 0, said.stdout
        return int(said.stdout.split()[-1])

    def output(self, job: int) -> str:
        path = self.folder / f"out-{job}"
        return path.read_text() if path.exists() else ""

    def job(self, job: int) -> dict[str, str]:
        """What scontrol knows of it, as in {"JobState": "RUNNING"}."""
        said = self.machine.run("scontrol", "--oneliner", "show", "job", str(job)).stdout
        return dict(re.findall(r"(\S+?)=(\S*)", said))

    def wait_until(self, what: str, job: int, holds: Callable[[], bool], seconds: float) -> None:
        """Wait while the job says something, and ``seconds`` after it."""
        wait_until(what, holds, seconds, lambda: self.output(job))

    def wait_for(self, job: int, states: set[str], seconds: float) -> dict[str, str]:
        """What scontrol knows of the job when it is in one of the states; ``seconds`` as in ``wait_until``."""
        try:
            self.wait_until(f"job {job} in {states}", job, lambda: self.job(job).get("JobState") in states, seconds)
        except AssertionError:
            raise AssertionError(f"{self.job(job)}\n{self.output(job)[-4000:]}") from None
        return self.job(job)


@contextlib.contextmanager
def slurm(folder: Path, nodes: Mapping[str, str], environment: Mapping[str, str]) -> Iterator[Slurm | str]:
    """Nodes by name -> an address beside the controller's, until the end of the context; the reason when there can be
    none.

    ``folder`` has a short path: Unix sockets lie in it. ``environment`` is added to that of jobs.
    """
    root = namespaces.missing() or distribution.unpacked(PACKAGES, folder / "packages")
    if isinstance(root, str):
        yield root
        return
    libraries = next(root.glob("usr/lib/*/slurm-wlm"))
    for name in ("munge", "state", "tmp"):
        (folder / name).mkdir(mode=0o700)
    lines = [NODE.format(name=name, address=address) for name, address in nodes.items()]
    conf = folder / "slurm.conf"
    conf.write_text(
        CONF.format(
            folder=folder, host=socket.gethostname(), controller=CONTROLLER, plugins=libraries, nodes="\n".join(lines)
        )
    )
    hosts = folder / "hosts"
    known = {"localhost": "127.0.0.1", socket.gethostname(): CONTROLLER, **nodes}
    hosts.write_text("".join(f"{address} {name}\n" for name, address in known.items()))
    bins = [root / "usr" / "bin", root / "usr" / "sbin"]
    for program in bins[0].glob("*-wlm"), bins[1].glob("*-wlm"):
        for found in program:
            found.with_name(found.name.removesuffix("-wlm")).symlink_to(found.name)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_", "LPO_RAY_"))}
    settings = {
        **kept, "PATH": os.pathsep.join([*map(str, bins), kept["PATH"]]), "SLURM_CONF": str(conf),
        "LD_LIBRARY_PATH": f"{libraries}:{libraries.parent}", "TMPDIR": str(folder / "tmp"), **environment,
    }  # fmt: skip
    (folder / ".venv").symlink_to(sys.prefix)
    with namespaces.inside(settings, {hosts: "/etc/hosts"}, CONTROLLER) as machine:
        _start(machine, folder, nodes)
        yield Slurm(machine, folder)


def _start(machine: Inside, folder: Path, nodes: Mapping[str, str]) -> None:
    munge, key = folder / "munge", folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    files = [f"--{name}={munge}/{name}" for name in ("socket", "pid-file", "seed-file", "log-file")]
    machine.start(munge / "out", "munged", "--foreground", "--force", f"--key-file={key}", *files)
    wait_until("munge", (munge / "socket").exists, 20)
    machine.start(folder / "slurmctld.out", "slurmctld", "-D")
    stepd = next((folder / "packages" / "root" / "usr" / "sbin").glob("slurmstepd*"))
    for name in nodes:
        slurmd = ["slurmd", "-D", "-N", name, "-d", stepd]
        machine.start(folder / f"slurmd-{name}.out", *namespaces.host(name, nodes[name]), *slurmd)

    def idle() -> bool:
        return machine.run("sinfo", "--noheader", "--Node", "--format=%T").stdout.split() == ["idle"] * len(nodes)

    try:
        wait_until("Slurm's nodes", idle, 60)
    except AssertionError as error:
        logs = "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in folder.glob("slurm*.[lo][ou][gt]"))
        raise AssertionError(f"{error}\n{logs}") from None
