"""launch/: what the scripts would run, and what local.sh does with processes that end, fail or get a signal."""

import os
import pathlib
import signal
import subprocess
import time

import pytest
import yaml

LAUNCH = pathlib.Path(__file__).resolve().parents[1] / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))
FREE = (
    "CONFIG",
    "WORKDIR",
    "PYTHON",
    "NAME",
    "TPU",
    "ZONE",
    "SLURM",
    "XLA_FLAGS",
    "BUCKET",
    "HOSTS",
    "TOPOLOGY",
)


def bash(*words, **variables):
    known = {name: value for name, value in os.environ.items() if not name.startswith(FREE)}
    known["TMPDIR"] = variables.pop("TMPDIR", known.get("TMPDIR", "/tmp"))
    return subprocess.run(
        ["bash", *map(str, words)], env=known | variables, capture_output=True, text=True, timeout=60
    )


def local(*words, **variables):
    return bash(LAUNCH / "local.sh", *words, **variables)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_bash_and_short(name):
    assert bash("-n", LAUNCH / name).stderr == ""
    assert len((LAUNCH / name).read_text().splitlines()) <= 80


def test_local_says_what_it_would_start():
    done = local("--processes", "2", "--devices", "4", "--dry-run", "--", "python", "train.py", "a b")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    for number, line in enumerate((first, second)):
        assert line.startswith("env JAX_COORDINATOR_ADDRESS=127.0.0.1:")
        assert f" JAX_NUM_PROCESSES=2 JAX_PROCESS_ID={number} JAX_PLATFORMS=cpu " in line
        assert "--xla_force_host_platform_device_count=4 python train.py a\\ b" in line
    assert first.split()[1] == second.split()[1]  # one coordinator


@pytest.mark.parametrize(
    "words, message",
    [
        (["--processes", "0", "--", "true"], "'0': must be a whole number, at least 1"),
        (["--devices"], "--devices: needs a value"),
        (["--nodes", "2", "--", "true"], "--nodes: not an option"),
        (["--processes", "2"], "no command"),
    ],
)
def test_local_refuses(words, message):
    done = local(*words)
    assert (done.returncode, done.stdout) == (2, "") and message in done.stderr


def test_local_keeps_what_the_others_say(tmp_path):
    say = 'echo "I am $JAX_PROCESS_ID of $JAX_NUM_PROCESSES"'
    done = local("--processes", 3, "--devices", 1, "--logs", tmp_path / "logs", "--", "bash", "-c", say)
    assert (done.returncode, done.stdout, done.stderr) == (0, "I am 0 of 3\n", "")
    logs = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert logs == {"process-1.log": "I am 1 of 3\n", "process-2.log": "I am 2 of 3\n"}


def test_local_ends_all_when_one_fails(tmp_path):
    job = f"[ $JAX_PROCESS_ID = 1 ] && exit 7; trap '' TERM; echo $$ >> {tmp_path}/alive; sleep 50"
    began = time.monotonic()
    done = local("--processes", 3, "--devices", 1, "--", "bash", "-c", job, TMPDIR=str(tmp_path), GRACE="1")
    assert done.returncode == 7 and "A process ended with code 7" in done.stderr
    assert time.monotonic() - began < 30
    for pid in (tmp_path / "alive").read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_hands_signals_on(number, tmp_path):
    name = number.name.removeprefix("SIG")
    job = f"trap 'sleep 0.5; touch $JAX_PROCESS_ID.ended; exit 0' {name}; touch $JAX_PROCESS_ID.ready"
    command = ["bash", "-c", f"{job}; for i in $(seq 300); do sleep 0.1; done; exit 9"]
    words = ["bash", LAUNCH / "local.sh", "--processes", "2", "--devices", "1", "--", *command]
    started = subprocess.Popen(words, cwd=tmp_path, env=os.environ | {"TMPDIR": str(tmp_path)})
    try:
        until = time.monotonic() + 30
        while len(list(tmp_path.glob("*.ready"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        started.send_signal(number)
        assert started.wait(timeout=30) == 0
    finally:
        started.kill()
    assert {path.name for path in tmp_path.glob("*.ended")} == {"0.ended", "1.ended"}


def test_slurm_says_what_the_job_would_run():
    script = LAUNCH / "slurm.sbatch"
    done = bash(
        script, "--dry-run", "--config.seed=3", CONFIG="c.py", WORKDIR="/shared/run", SLURM_JOB_NUM_NODES="3"
    )
    assert done.returncode == 0, done.stderr
    run, again = done.stdout.splitlines()
    assert run.startswith("srun --nodes=3 --ntasks=12 --ntasks-per-node=4 --kill-on-bad-exit=1 python -u -m ")
    assert run.split()[-3:] == ["--config=c.py", "--workdir=/shared/run", "--config.seed=3"]
    assert again.startswith("scontrol requeue JOBID ")
    wishes = [line.split()[1] for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--signal=TERM@120", "--requeue", "--gpus-per-node=4", "--ntasks-per-node=4"} <= set(wishes)


@pytest.mark.parametrize("code, report, queued", [(0, False, True), (0, True, False), (2, False, False)])
def test_slurm_queues_what_was_interrupted(code, report, queued, tmp_path):
    for name, text in (("srun", f"exit {code}"), ("scontrol", 'echo "queued $*"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    if report:
        (tmp_path / "report.html").touch()
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = bash(LAUNCH / "slurm.sbatch", PATH=path, WORKDIR=str(tmp_path), SLURM_JOB_ID="41")
    assert done.returncode == code, done.stderr
    assert done.stdout == ("queued requeue 41\n" if queued else "")


def pod(**variables):
    """(the JobSet, its pod) as launch/gke.sh fills them in."""
    done = bash(LAUNCH / "gke.sh", "--dry-run", **variables)
    assert done.returncode == 0, done.stderr
    assert "${" not in done.stdout
    job_set = yaml.safe_load(done.stdout)
    return job_set, job_set["spec"]["replicatedJobs"][0]["template"]["spec"]


def test_the_job_set_is_what_was_asked_for():
    asked = {"NAME": "mine", "HOSTS": "16", "TOPOLOGY": "8x8", "BUCKET": "cells", "IMAGE": "registry/image:1"}
    job_set, job = pod(**asked, CONFIG="c.py", WORKDIR="runs/1")
    assert (job_set["kind"], job_set["metadata"]["name"]) == ("JobSet", "mine")
    assert job_set["spec"]["failurePolicy"]["maxRestarts"] == 20
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (16, 16, "Indexed")
    assert job["backoffLimit"] == 0
    inside = job["template"]["spec"]
    assert inside["restartPolicy"] == "Never" and inside["terminationGracePeriodSeconds"] == 300
    assert inside["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "8x8"
    (container,) = inside["containers"]
    assert container["image"] == "registry/image:1"
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"google.com/tpu": 4}
    assert "--config=c.py --workdir=/bucket/runs/1 " in container["args"][0]
    assert inside["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "cells"
    # A wrong request ends the set; anything else starts it again.
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    assert job_set["spec"]["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]


@pytest.mark.parametrize(
    "ends, report, code",
    [
        ("exit 0", True, 0),
        ("exit 0", False, 1),
        ("exit 2", False, 2),
        ("exit 1", True, 1),
        ("TERM", False, 1),
    ],
)
def test_a_pod_is_done_when_the_report_is_there(ends, report, code, tmp_path):
    """The shell of the container, with a python of ours: it hands SIGTERM on and tells stopped from done."""
    if report:
        (tmp_path / "report.html").touch()
    wait = f"trap 'touch {tmp_path}/heard; exit 0' TERM; touch {tmp_path}/ready; while sleep 0.1; do :; done"
    (tmp_path / "python").write_text(f"#!/bin/bash\n{wait if ends == 'TERM' else ends}\n")
    (tmp_path / "python").chmod(0o755)
    _, job = pod(WORKDIR="run")
    (container,) = job["template"]["spec"]["containers"]
    script = container["args"][0].replace("/bucket/run", str(tmp_path))
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    started = subprocess.Popen([*container["command"], script], env=environ)
    try:
        until = time.monotonic() + 30
        while ends == "TERM" and not (tmp_path / "ready").exists() and time.monotonic() < until:
            time.sleep(0.05)
        if ends == "TERM":
            started.terminate()
        assert started.wait(timeout=30) == code
    finally:
        started.kill()
    assert (tmp_path / "heard").exists() == (ends == "TERM")


@pytest.mark.parametrize(
    "words, lines",
    [
        (["install"], ["git -C ", "gcloud compute tpus tpu-vm scp ", "gcloud compute tpus tpu-vm ssh pod "]),
        (["start", "--config.seed=3"], ["gcloud compute tpus tpu-vm ssh pod --zone=z --worker=all "]),
        (["watch"], ["gcloud compute tpus tpu-vm ssh pod --zone=z --worker=0 "]),
        (["stop"], ["gcloud compute tpus tpu-vm ssh pod --zone=z --worker=all "]),
    ],
)
def test_a_pod_of_tpus_says_what_it_would_run(words, lines):
    done = bash(
        LAUNCH / "tpu_pod.sh", "--dry-run", *words, TPU="pod", ZONE="z", CONFIG="c.py", WORKDIR="/mnt/run"
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == len(lines) and all(line.startswith(part) for line, part in zip(said, lines))
    if words[0] == "start":
        assert "-u -m perturbdiff_jax.main --config=c.py --workdir=/mnt/run --config.seed=3 > " in said[0]


def test_a_pod_of_tpus_refuses_other_words():
    done = bash(LAUNCH / "tpu_pod.sh", "--dry-run", "delete")
    assert (done.returncode, done.stdout) == (
        2,
        "",
    ) and "allowed are install, start, watch, stop" in done.stderr
