"""Processes that run the cells of a sweep, and what runs inside of one."""

from __future__ import annotations

import ctypes
import io
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from lit_align.interrupts import SIGNAL_NAMES

LOG = "log.txt"
"""File in a cell's folder with all that its processes print."""
HEADING = "── "
"""What the line begins with that opens the output of a process."""
_LATE_IMPORTS = ("lit_align.cli.run", "pyarrow.compute", "torch.utils.tensorboard")
"""Modules that a run imports only when it needs them."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Task:
    """What a process is to do.

    Args:
        name: of the cell, or of what is prepared.
        folder: of the run.
        arguments: of ``fit``.
        identity: what the result depends on; empty for a process that only prepares caches.
        anew: start anew, although there is a checkpoint.
        group: of tasks that have the same data and reference.
    """

    name: str
    folder: Path
    arguments: Sequence[str]
    identity: Mapping[str, Any] = field(default_factory=dict)
    anew: bool = False
    group: str = ""


def start_process(task: Task, threads: int | None, device: str | None) -> BaseProcess:
    """Start a process for a task: a fork of this one, which has imported everything, or a new one.

    Args:
        task: for the process.
        threads: that it computes with; None for as many as a run alone.
        device: value of ``CUDA_VISIBLE_DEVICES``; None leaves that as it is.
    """
    context: Any = multiprocessing.get_context("fork" if can_fork() else "spawn")
    process: BaseProcess = context.Process(target=run_task, args=(task, threads, device, os.getpid()))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNAL_NAMES)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def can_fork() -> bool:
    """Return whether a fork of this process is as good as a new one; the libraries of macOS do not allow it."""
    torch = sys.modules.get("torch")
    has_cuda = torch is not None and torch.cuda.is_initialized()
    return hasattr(os, "fork") and sys.platform != "darwin" and not has_cuda


def import_for_runs() -> None:
    """Import what a run needs, so that forked processes have it; nothing is computed here, as threads do not fork."""
    if can_fork():
        for module in _LATE_IMPORTS:
            import_module(module)


def run_task(task: Task, threads: int | None, device: str | None, parent: int) -> None:
    """Run a task in its process, which ends by the exit code of ``fit``.

    Args:
        task: to run.
        threads: see ``start_process``.
        device: see ``start_process``.
        parent: id of the process that waits for this one; this one stops in order when that ends.
    """
    leave_parents_signals()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    task.folder.mkdir(parents=True, exist_ok=True)
    _write_to(task.folder / LOG)
    _detach(parent)
    import torch

    from lit_align.interrupts import handle_signals

    handle_signals()
    if threads is not None:
        torch.set_num_threads(threads)
    sys.argv[1:] = ["fit", *task.arguments]  # what Lightning starts further processes of the same run with
    print(f"{HEADING}{time.strftime('%Y-%m-%d %H:%M:%S')} {task.name}", flush=True)
    _run_cell(task) if task.identity else _prepare(task)


def leave_parents_signals() -> None:
    """Replace the parent's handlers, which are not for this process, and let signals through that came meanwhile."""
    for number in SIGNAL_NAMES:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNAL_NAMES)


def _write_to(log: Path) -> None:
    """Let the process's output, that of libraries included, go to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)


def _detach(parent: int) -> None:
    """Leave the terminal's signals to the parent, and end with it."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(128 + signal.SIGTERM)


def _run_cell(task: Task) -> None:
    from filelock import FileLock

    from lit_align.cli.run import main
    from lit_align.sweep.state import begin_cell, finish_cell, state_of

    with FileLock(task.folder / ".lock"):  # of a sweep that is ending, or of another one
        state = state_of(task.folder, task.identity)
        if state.kind == "finished":
            print("finished by another process")
            return
        resumes = state.kind == "resume" and not task.anew
        begin_cell(task.folder, task.identity, moves_aside=state.kind == "anew" or task.anew)
        began = time.monotonic()
        main(["fit", *task.arguments, *(("--ckpt_path", "last") if resumes else ())])
        finish_cell(task.folder, task.identity, time.monotonic() - began)


def _prepare(task: Task) -> None:
    from lit_align.sweep.prepare import fill_caches

    fill_caches(task.arguments)
