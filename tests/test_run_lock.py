"""One run, one work directory."""

import os
import socket
import subprocess
import sys

import pytest
from tiny_run import QUICKSTART, ROOT, flags, said

from perturbdiff_jax import main
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.run_lock import RunLock

HOLDER = """
import pathlib, sys
from perturbdiff_jax.run_lock import RunLock
with RunLock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path / "run"."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_and_told_of_the_first(holder, tmp_path):
    before = sorted((tmp_path / "run").iterdir())
    command = [f"--config={QUICKSTART}", f"--workdir={tmp_path / 'run'}", *flags()]
    code, out, err = said(main.run, *command)
    assert code == 2 and out == "" and len(err.splitlines()) == 2
    assert f"{tmp_path / 'run'}: another run is writing it (process {holder.pid} on " in err
    assert socket.gethostname() in err
    assert sorted((tmp_path / "run").iterdir()) == before


def test_the_lock_goes_with_a_process_that_is_killed(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert f"process {holder.pid}" in (tmp_path / "run/.lock").read_text()  # a stale file is in nobody's way
    with RunLock(tmp_path / "run"):
        assert f"process {os.getpid()} on {socket.gethostname()}" in (tmp_path / "run/.lock").read_text()
        with pytest.raises(RequestError, match=f"process {os.getpid()} on"), RunLock(tmp_path / "run"):
            pass
    with RunLock(tmp_path / "run"):
        pass


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path, message in ((tmp_path / "file", "is a file"), (tmp_path / "file/below", "cannot be written")):
        with pytest.raises(RequestError, match=message), RunLock(path):
            pass


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, capsys):
    import errno
    import fcntl

    def unknown(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unknown)
    with RunLock(tmp_path):
        pass
    assert capsys.readouterr().err == f"warning: {tmp_path} cannot be locked (No locks available).\n"
