"""Two hosts on one machine: namespaces of their own for network, mounts, names, IPC and processes, one
virtual link between them and, unless it is not wanted, an sshd each.

No route leads out of them, and nothing of the machine is changed: what differs inside (names, ssh's
configuration, /run, /dev/shm) is mounted over.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

LINK, SPACES = "eth0", ["--net", "--mount", "--uts", "--ipc", "--pid"]
ADDRESSES = {"host0": "10.77.13.1", "host1": "10.77.13.2"}
PROGRAMS = {"ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux", "setpriv": "util-linux"}
"""Programs and the Debian packages that have them."""
SSH_PROGRAMS = {"sshd": "openssh-server", "ssh": "openssh-client"}

SFTP_SERVER = "/usr/lib/openssh/sftp-server"

SSH_CONFIG = """
Host *
  IdentityFile {folder}/user_key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""
SSHD_CONFIG = """
ListenAddress 0.0.0.0
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
"""
FIRST_PROCESS = """
set -eu
hostname {name}
mount --make-rprivate /
mount --bind {folder}/hosts /etc/hosts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
ip link set lo up
"""
WITH_SSH = """
mount --bind {folder}/ssh_config /etc/ssh/ssh_config
mkdir /run/sshd
exec "$(command -v sshd)" -D -e -f {folder}/sshd_config
"""
WITHOUT_SSH = "exec sleep infinity"


def missing(*programs: str, ssh: bool = True) -> str | None:
    """Returns why there can be no hosts here, with or without ssh, or no `programs` (name=package), or
    None.
    """
    wanted = PROGRAMS | (SSH_PROGRAMS if ssh else {}) | dict(program.split("=") for program in programs)
    absent = sorted({package for program, package in wanted.items() if shutil.which(program) is None})
    if absent:
        return f"not installed (Debian): {' '.join(absent)}"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    made = subprocess.run(
        ["unshare", *SPACES, "--fork", "--mount-proc", "mount", "-t", "tmpfs", "tmpfs", "/run"],
        capture_output=True,
        text=True,
    )
    return f"namespaces are not allowed here: {made.stderr.strip()}" if made.returncode else None


@dataclass(frozen=True)
class Host:
    """A running host; `pid` is its first process as this machine sees it."""

    name: str
    pid: int

    def command(self, *words: str, folder: Path | None = None) -> list[str]:
        """Returns the command that runs `words` on the host, in `folder` or the same working directory."""
        # --wd= is this machine's folder of that name, not what the host has mounted there
        there = ["env", f"--chdir={folder or os.getcwd()}"]
        return ["nsenter", "--all", "--target", str(self.pid), *there, *words]

    def run(self, *words: str, folder: Path | None = None, **options) -> subprocess.CompletedProcess:
        """Runs a command on the host to its end."""
        return subprocess.run(self.command(*words, folder=folder), capture_output=True, text=True, **options)

    def bytes_sent(self) -> int:
        """Returns how many bytes have left through the link."""
        (link,) = json.loads(self.run("ip", "-json", "-statistics", "link", "show", LINK, check=True).stdout)
        return link["stats64"]["tx"]["bytes"]


@contextmanager
def two_hosts(folder: Path, *, ssh: bool = True) -> Iterator[list[Host]]:
    """Starts host0 and host1, which reach each other, with `ssh` also over ssh without a password; their
    processes end with the context, or with this process.
    """
    names = "".join(f"{address} {name}\n" for name, address in ADDRESSES.items())
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + names)
    if ssh:
        for key in ("user_key", "host_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True
            )
        (folder / "ssh_config").write_text(SSH_CONFIG.format(folder=folder))
        (folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=folder))
    with ExitStack() as stack:
        hosts = [stack.enter_context(_host(name, folder, ssh)) for name in ADDRESSES]
        ends = [["name", LINK, "netns", str(host.pid)] for host in hosts]
        subprocess.run(["ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1]], check=True)
        for host in hosts:
            host.run("ip", "address", "add", f"{ADDRESSES[host.name]}/24", "dev", LINK, check=True)
            host.run("ip", "link", "set", LINK, "up", check=True)
        for name in ADDRESSES if ssh else ():
            _wait_until(
                lambda name=name: hosts[0].run("ssh", name, "hostname").stdout.strip() == name,
                f"{name} does not answer to ssh",
                folder,
            )
        yield hosts


@contextmanager
def _host(name: str, folder: Path, ssh: bool) -> Iterator[Host]:
    """Starts one host's first process, which becomes its sshd or sleeps; with it the kernel ends everything
    that runs on the host.
    """
    script = (FIRST_PROCESS + (WITH_SSH if ssh else WITHOUT_SSH)).format(name=name, folder=folder)
    isolated = ["unshare", *SPACES, "--fork", "--mount-proc", "--kill-child=SIGKILL", "bash", "-c", script]
    with (folder / f"{name}.log").open("w") as log:
        outer = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *isolated], stdout=log, stderr=log, start_new_session=True
        )
    try:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        _wait_until(lambda: bool(children.read_text().split()), f"{name} did not start", folder)
        host = Host(name, int(children.read_text().split()[0]))
        _wait_until(
            lambda: Path(f"/proc/{host.pid}/comm").read_text().strip() == ("sshd" if ssh else "sleep"),
            f"{name}'s first process did not start",
            folder,
        )
        yield host
    finally:
        outer.kill()
        outer.wait()


def _wait_until(condition, complaint: str, folder: Path, seconds: float = 30.0) -> None:
    """Waits for a condition.

    Raises: TimeoutError with what the hosts wrote.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text() for path in folder.glob("*.log"))
            raise TimeoutError(f"{complaint}\n{logs}")
        time.sleep(0.05)


def shared_by_sshfs(hosts: list[Host], server: Path, folder: Path, late_s: int) -> None:
    """Gives the hosts `server`, a folder of the first one, as their `folder`. What a host has once seen of
    it, it sees unchanged for `late_s` seconds, unless it makes a change there itself; files that it opens are
    as they are (as with NFS, whose caches of folders live up to a minute).
    """
    options = f"dcache_timeout={late_s},dcache_clean_interval=1,sftp_server={SFTP_SERVER}"
    for host in hosts:
        host.run("sshfs", f"{hosts[0].name}:{server}", str(folder), "-o", options, check=True)
