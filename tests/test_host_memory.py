"""Freed memory is kept: a second use of as much meets no new page."""

import importlib.metadata
import importlib.util
import json
import platform
import subprocess
import sys

import pytest

from perturbdiff_jax import cli, host_memory, main

PAGES = 30_000

# Threads allocate as XLA's do; a page is met when it is first written.
TWICE = f"""
import json, resource, sys, threading
if sys.argv[1] == "kept":
    from perturbdiff_jax.host_memory import keep_freed
    assert keep_freed()
import numpy as np

def use():
    np.empty(4096 * {PAGES}, np.uint8)[::4096] = 1

def met():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(json.dumps([met(), met()]))
"""


def pages_met(how: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", TWICE, how], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_what_is_freed_is_used_again():
    first, second = pages_met("kept")
    assert first > 20 * second
    first, second = pages_met("returned")
    assert second > first / 2


@pytest.mark.parametrize(
    ("chosen", "installed", "told"),
    [
        ("cpu", ["jax_plugins"], True),
        ("cuda", [], False),
        ("cuda,cpu", [], False),
        ("", [], True),
        ("", ["jax_plugins"], False),
        ("", ["libtpu"], False),
    ],
)
def test_accelerators_are_looked_for_without_starting_jax(monkeypatch, chosen, installed, told):
    monkeypatch.setenv("JAX_PLATFORMS", chosen)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: ())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)
    assert host_memory.only_cpus() is told
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: ["a plugin"])
    assert not host_memory.only_cpus()


@pytest.mark.parametrize("door", [main.run, cli.run])
def test_only_a_process_of_its_own_is_prepared(monkeypatch, door):
    """A caller that hands over arguments keeps its own ways with memory."""
    words, told = ["train", "--help"] if door is cli.run else ["--help"], []
    monkeypatch.setattr(host_memory, "only_cpus", lambda: True)
    monkeypatch.setattr(host_memory, "keep_freed", lambda: told.append(True))
    door(words)
    assert not told
    monkeypatch.setattr(sys, "argv", ["perturbdiff", *words])
    door()
    assert told == [True]
