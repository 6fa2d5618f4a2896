"""Hosts that a test makes itself: network namespaces with addresses, links, processes and an sshd
of their own, which share the file system as a cluster shares its own, but for a home on each.

A "head" namespace holds the switch and is where commands are given, as on a login node. Nothing is
changed outside the namespaces; keys, known hosts and homes are in the test's folder, not the
user's.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

SUBNET = "10.77.0"
HEAD = f"{SUBNET}.254"
SSHD = """
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
StrictModes no
UsePAM no
PermitRootLogin yes
PidFile none
SetEnv HOME={home} TORCH_EXTENSIONS_DIR={extensions}
"""
SSH = """
Host *
    IdentityFile {folder}/key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    StrictHostKeyChecking accept-new
    LogLevel ERROR
"""
# What DeepSpeed compiles at its first start; each home would have it compiled again.
EXTENSIONS = Path(os.environ.get("TORCH_EXTENSIONS_DIR", "~/.cache/torch_extensions")).expanduser()


def refused() -> str:
    """Why this machine cannot make such hosts; "" where it can."""
    for program in ("ip", "sshd", "ssh", "ssh-keygen", "pdsh", "unshare"):
        if subprocess.run(
            ["/bin/sh", "-c", f"command -v {program}"], capture_output=True
        ).returncode:
            return f"{program} is not installed: apt-get install iproute2 openssh-server pdsh"
    name = f"probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"the kernel forbids network namespaces here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


class Network:
    """`count` hosts with addresses 10.77.0.1, .2, ..., up while the `with` block lasts."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.addresses = [f"{SUBNET}.{index + 1}" for index in range(count)]
        self._names = [f"host{index}-{os.getpid()}" for index in range(count)]
        self._head = f"head-{os.getpid()}"
        self._hosts: dict[str, subprocess.Popen] = {}
        self._started: list[subprocess.Popen] = []

    def __enter__(self) -> "Network":
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _open(self) -> None:
        folder = self.folder
        for key in ("key", "host_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
        (folder / "ssh_config").write_text(SSH.format(folder=folder))
        # pdsh, DeepSpeed and we ourselves all take the first ssh on the path
        (folder / "bin").mkdir()
        ssh = folder / "bin" / "ssh"
        ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {folder}/ssh_config "$@"\n')
        ssh.chmod(0o755)
        Path("/run/sshd").mkdir(exist_ok=True)
        run("ip", "netns", "add", self._head)
        self._in_head("link", "set", "lo", "up")
        self._in_head("link", "add", "switch", "type", "bridge")
        self._in_head("addr", "add", f"{HEAD}/24", "dev", "switch")
        self._in_head("link", "set", "switch", "up")
        for index, (name, address) in enumerate(zip(self._names, self.addresses, strict=True)):
            run("ip", "netns", "add", name)
            port = f"port{index}"
            self._in_head(
                "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name
            )
            self._in_head("link", "set", port, "master", "switch", "up")
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                run("ip", "-n", name, "link", "set", link, "up")
        for address in self.addresses:
            self.start_host(address)

    def __exit__(self, *error: object) -> None:
        for process in self._started:  # and what it started: --kill-child
            process.kill()
            process.wait()
        for address in list(self._hosts):
            self.kill_host(address)
        for name in (*self._names, self._head):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def start_host(self, address: str, apart: Path | None = None) -> None:
        """Turns a host on. Its processes are in a namespace of their own: what is killed there by
        name, as DeepSpeed does, is killed nowhere else. What is in the folder `apart` is not what
        the other hosts have there."""
        command = ["ip", "netns", "exec", self._name(address), "unshare", "--pid", "--fork"]
        command += ["--mount-proc", "--kill-child"]
        if apart is not None:
            mounting = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
            command += ["/bin/sh", "-c", mounting, str(apart)]
        self.home(address).mkdir(exist_ok=True)
        config = self.folder / f"sshd_config-{address}"
        config.write_text(
            SSHD.format(folder=self.folder, home=self.home(address), extensions=EXTENSIONS)
        )
        with (self.folder / f"sshd-{address}.log").open("a") as log:
            self._hosts[address] = subprocess.Popen(
                [*command, "/usr/sbin/sshd", "-D", "-e", "-f", str(config)], stderr=log, stdout=log
            )
        self._wait_for(address)

    def home(self, address: str) -> Path:
        """The home folder of everybody who comes to a host over ssh."""
        return self.folder / f"home-{address}"

    def kill_host(self, address: str) -> None:
        """Turns a host off: SIGKILL for everything that runs there, connections closed."""
        host = self._hosts.pop(address)
        host.kill()
        host.wait()

    def set_link(self, address: str, state: str) -> None:
        """Plugs a host's cable in ("up") or out ("down"); its processes go on."""
        run("ip", "-n", self._name(address), "link", "set", "eth0", state)

    def start(self, *command: str, cwd: Path, **environment: str) -> subprocess.Popen:
        """A command on the head, in a session of its own, stderr in its stdout."""
        path = f"{self.folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
        prefix = ["ip", "netns", "exec", self._head, "unshare", "--pid", "--fork", "--mount-proc"]
        process = subprocess.Popen(
            [*prefix, "--kill-child", *command],
            cwd=cwd,
            env=os.environ | {"PATH": path} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def hostfile(self, slots: int) -> Path:
        """A file of all hosts."""
        file = self.folder / "hosts"
        file.write_text("".join(f"{address} slots={slots}\n" for address in self.addresses))
        return file

    def _name(self, address: str) -> str:
        return self._names[self.addresses.index(address)]

    def _in_head(self, *words: str) -> None:
        run("ip", "-n", self._head, *words)

    def _wait_for(self, address: str) -> None:
        deadline = time.monotonic() + 60
        while True:
            asked = self.start("ssh", "-o", "ConnectTimeout=2", address, "true", cwd=self.folder)
            said, _ = asked.communicate(timeout=30)
            if asked.returncode == 0:
                return
            assert time.monotonic() < deadline, f"{address} does not answer: {said}"
            time.sleep(0.2)


def run(*command: str) -> None:
    """A command that must work; AssertionError with what it said."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
