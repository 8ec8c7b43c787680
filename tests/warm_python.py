"""An interpreter that has imported the apps already: whatever is started by it is a fork of one warm process.

`warm_python(folder)` gives a program that is called as python is (`PROGRAM script.py ...`, `PROGRAM -m module ...`), by
launchers too. The fork has the arguments, environment, directory, output and namespaces of the one that calls, which
waits for it, hands signals on and leaves with its code; if that one is killed, so is the fork.
"""

import array
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from select import select

NAMESPACES = ("mnt", "net", "pid_for_children")


def call(server: str, args: list[str]) -> int:
    """Have `args` run by the server. The code that it ended with."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.connect(server)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda number, frame: line.send(bytes([number])))
        asked = json.dumps([args, dict(os.environ), str(Path.cwd())]).encode()
        line.sendmsg(
            [len(asked).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [1, 2]))]
        )
        line.sendall(asked)
        told = line.recv(1)
        return told[0] if told else 137


def serve(path: str) -> tuple[list[str], dict[str, str], str]:
    """Listen at `path`. In the server it never returns; in a fork, with what it is to run."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(path)
    listening.listen(16)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        line, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return answer(line)
        line.close()


def answer(line: socket.socket) -> tuple[list[str], dict[str, str], str]:
    """Fork once more, in the namespaces of the one that calls, and tell it of the end of that fork; there, return."""
    caller = int.from_bytes(line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), sys.byteorder)
    size, fds, *_ = socket.recv_fds(line, 4, 2)
    asked = line.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
    enter(caller)
    child = os.fork()
    if child == 0:
        line.close()
        for number, fd in enumerate(fds, 1):
            os.dup2(fd, number)
            os.close(fd)
        return tuple(json.loads(asked))
    hand_on(line, child)
    os._exit(0)


def enter(caller: int) -> None:
    """Enter the namespaces of the process `caller`, where they are others. Effect: on this process."""
    from ctypes import CDLL

    def is_other(name: str) -> bool:
        return Path(f"/proc/{caller}/ns/{name}").readlink() != Path(f"/proc/self/ns/{name}").readlink()

    others = [os.open(f"/proc/{caller}/ns/{name}", os.O_RDONLY) for name in NAMESPACES if is_other(name)]
    for fd in others:
        assert CDLL(None, use_errno=True).setns(fd, 0) == 0, "a namespace is not to be entered"
        os.close(fd)


def hand_on(line: socket.socket, child: int) -> None:
    """Hand on what comes by `line` as signals, until `child` has ended; then tell how. If nobody is left who would hear
    it, the child ends."""
    # Without a thread: none can be made by who has entered a namespace of processes for its children.
    ended, told = os.pidfd_open(child), b"?"
    while told and ended not in select([line, ended], [], [])[0]:
        told = line.recv(1)
        os.kill(child, told[0] if told else signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(OSError):
        line.send(bytes([code if code >= 0 else 128 - code]))


def run(args: list[str], env: dict[str, str], folder: str) -> None:
    """What an interpreter does with `args`."""
    import runpy

    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    args = args[args[0] == "-u" :]
    if args[0] == "-m":
        sys.argv = args[1:]
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = args
        sys.path.insert(0, str(Path(args[0]).parent.absolute()))
        runpy.run_path(args[0], run_name="__main__")


if __name__ == "__main__":
    path, *args = sys.argv[1:]
    if args:
        sys.exit(call(path, args))
    sys.path.insert(0, str(Path(__file__).parent.parent / "apps"))
    for module in ("pretrain", "torch.distributed.launcher.api"):
        import_module(module)
    print("warm", flush=True)
    run(*serve(path))
