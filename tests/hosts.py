"""Two hosts in namespaces of Linux: networks, processes and /proc of their own, and a link between them."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

AGE_S = 600
"""After which hosts and all that runs on them end by themselves, whatever became of the test."""


@dataclass(frozen=True)
class Host:
    """One of them."""

    name: str
    address: str
    pid: int
    """Of its first process. When that ends the kernel ends all others, and takes network and link away."""

    def inside(self, *command: str) -> list[str]:
        """What runs `command` on it."""
        return ["nsenter", "--net", "--pid", "--mount", "--uts", "--target", str(self.pid), *command]

    def run(self, command: str) -> None:
        """Run `command` on it. Effect: waits for its end."""
        subprocess.run(self.inside(*command.split()), check=True, capture_output=True, text=True)


def why_not() -> str | None:
    """Why no hosts can be made here, if so. Effect: tries."""
    if missing := [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]:
        return f"there is no {missing[0]}"
    made = subprocess.run(
        ["unshare", *NEW, "ip", "link", "add", "link0", "type", "veth", "peer", "name", "link1"],
        check=False,
        capture_output=True,
        text=True,
    )
    return f"no namespaces may be made: {made.stderr.strip()}" if made.returncode else None


NEW = ("--net", "--pid", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc")


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts, each with an interface `link0` to the other. Effect: processes, which end with it."""
    holders = [subprocess.Popen(["unshare", *NEW, "sleep", str(AGE_S)], stderr=subprocess.DEVNULL) for _ in "ab"]
    try:
        first, second = (
            Host(f"host-{name}", f"10.77.0.{number}", first_of(holder))
            for number, (name, holder) in enumerate(zip("ab", holders, strict=True), 1)
        )
        link = f"ip link add link0 netns {first.pid} type veth peer name link0 netns {second.pid}"
        subprocess.run(link.split(), check=True, capture_output=True, text=True)
        for host in (first, second):
            host.run(f"hostname {host.name}")
            host.run("ip link set lo up")
            host.run(f"ip address add {host.address}/24 dev link0")
            host.run("ip link set link0 up")
        yield first, second
    finally:
        for holder in holders:
            # Who made a namespace waits for its first process, and then everything in it has ended.
            for pid in children_of(holder) or [holder.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            holder.wait()


def first_of(holder: subprocess.Popen[bytes]) -> int:
    """The process that `unshare` started, once it is in namespaces of its own."""
    while True:
        children = children_of(holder)
        if children and Path(f"/proc/{children[0]}/comm").read_text() == "sleep\n":
            return children[0]
        assert holder.poll() is None
        time.sleep(0.01)


def children_of(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that it started, and has not waited for. None if it has ended."""
    if process.poll() is not None:
        return []
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
