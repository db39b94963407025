"""The ten stages as programs: each writes its report to any stdout, and ends in an orderly way."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

if os.name != "posix":
    pytest.skip("closes stdout, opens a terminal, sends signals", allow_module_level=True)
import pty

STAGES = sorted(ROOT.glob("stage*.py"))
FULL_DISK = "/dev/full"  # Linux has it


def start(*command, stdout=subprocess.PIPE, before=None, **variables):
    """A Python that runs the command; `before` is called in the new process, before Python."""
    variables = {"PYTHONUNBUFFERED": "", "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        preexec_fn=before,
        env={**os.environ, **variables},
    )


def ending(process):
    """(exit status, stdout, stderr) once it has ended."""
    out, err = process.communicate(timeout=120)
    return process.returncode, (out or b"").decode("cp1252"), err.decode()


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.stem)
def test_a_program_takes_any_stdout(path):
    reader, closed_pipe = os.pipe()
    os.close(reader)
    full_disk = os.open(FULL_DISK if os.path.exists(FULL_DISK) else os.devnull, os.O_WRONLY)
    running = {  # all at once: each waits for the next core that is free
        "narrow": start("-OO", path, "--fast", PYTHONIOENCODING="cp1252"),
        "no stdout": start(path, "--fast", stdout=None, before=lambda: os.close(1)),
        "closed pipe": start(path, "--fast", stdout=closed_pipe),
        "full disk": start(path, "--fast", stdout=full_disk),
        "help": start("-OO", path, "--help"),
        "bad flag": start(path, "--nonsense"),
    }
    os.close(closed_pipe)
    os.close(full_disk)
    ends = {name: ending(process) for name, process in running.items()}

    status, report, error = ends["narrow"]
    assert (status, error) == (0, "") and len(report.splitlines()) > 10
    assert ends["no stdout"] == (0, "", "")
    assert ends["closed pipe"] == (0, "", "")
    status, usage, error = ends["help"]
    assert (status, error) == (0, "") and "--fast" in usage and "--seed" in usage
    for name in ["bad flag", "full disk"] if os.path.exists(FULL_DISK) else ["bad flag"]:
        status, report, error = ends[name]
        assert (status, report, error.count("\n")) == (2, "", 1), (name, error)
        assert error.startswith(path.name + ": ") and error.endswith("\n")


def obey_ctrl_c():
    """pytest in the background may ignore Ctrl-C, and what it starts would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.stem)
def test_ctrl_c_ends_a_program_without_a_traceback(path):
    screen, terminal = pty.openpty()
    process = start(path, stdout=terminal, before=obey_ctrl_c)
    os.close(terminal)
    assert os.read(screen, 1)  # the report has begun
    process.send_signal(signal.SIGINT)
    assert ending(process) == (130, "", "\n")
    os.close(screen)
