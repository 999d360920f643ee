"""Freed memory is kept: a second use of as much meets no new page."""

import json
import platform
import subprocess
import sys

import pytest

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
