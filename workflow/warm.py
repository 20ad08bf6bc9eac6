"""Run a command whose Jupyter kernels have their slow imports behind them.

    python workflow/warm.py python -m snakemake ...

Importing PyTorch, Matplotlib and the package takes a kernel longer than most pages run. Here one
process does it, when the command wants its first kernel, and every kernel is a fork of it. Jupyter
need not know: JUPYTER_PATH leads it to a kernel named `python3`, whose command is this file too.
"""

import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

KERNEL = "--kernel"


def preload():
    """Import what kernels import, but start nothing: threads do not survive a fork."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # kernels run side by side
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    os.environ["JPY_PARENT_PID"] = str(os.getpid())  # without this process, no kernel
    try:
        for name in ("ipykernel.kernelapp", "matplotlib.pyplot"):
            importlib.import_module(name)
        for module in pkgutil.walk_packages(importlib.import_module("rconv").__path__, "rconv."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    except Exception:
        pass  # a kernel that imports the same shows the error in its cell


def become_kernel(connection, request, streams):
    """In the fork: the caller's folder, environment and streams, then what ipykernel does."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    del sys.path[0]  # this file's folder
    sys.argv = ["ipykernel_launcher.py", *request["arguments"]]
    # It ends when its caller does: then the other end of the connection closes.
    threading.Thread(target=lambda: connection.recv(1) or os._exit(1), daemon=True).start()
    importlib.import_module("ipykernel.kernelapp").launch_new_instance()


def fork(connection):
    """A kernel for one caller; returns its process id."""
    message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    kernel = os.fork()
    if kernel == 0:
        try:
            become_kernel(connection, json.loads(message), streams)
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    for stream in streams:
        os.close(stream)
    return kernel


def serve(listener, command):
    """Fork a kernel for every caller, until the command has ended."""
    listener.settimeout(0.05)  # seconds between two looks at the command
    kernels = []
    while command.poll() is None:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        if not kernels:
            preload()
        with connection:
            kernels.append(fork(connection))
    for kernel in kernels:
        os.waitpid(kernel, 0)


def ask(address, arguments):
    """In a kernel's place: have one forked, and wait for its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Jupyter's, before it asks the kernel to stop
    request = {"folder": os.getcwd(), "environment": dict(os.environ), "arguments": arguments}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        connection.recv(1)


def main(command):
    """Run the command, with the way to warm kernels in its environment."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        address = f"{folder}/socket"
        listener.bind(address)
        listener.listen()
        kernel = Path(folder, "kernels", "python3", "kernel.json")
        kernel.parent.mkdir(parents=True)
        argv = [sys.executable, __file__, KERNEL, address, "-f", "{connection_file}"]
        spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
        kernel.write_text(json.dumps(spec))
        paths = filter(None, [folder, os.environ.get("JUPYTER_PATH")])
        environment = {**os.environ, "JUPYTER_PATH": os.pathsep.join(paths)}
        with subprocess.Popen(command, env=environment) as started:
            serve(listener, started)
    sys.exit(started.returncode)


if __name__ == "__main__":
    ask(sys.argv[2], sys.argv[3:]) if sys.argv[1] == KERNEL else main(sys.argv[1:])
