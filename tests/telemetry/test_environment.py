"""Where a run took place: as the system itself tells, no secrets, the state of the code and of no other."""

import importlib.metadata
import json
import os
import subprocess
import sys

import jax
import pytest

from perturbdiff_jax.telemetry import environment as place


def git(folder, *words):
    told = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    told |= {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True, env=told)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A repository that tracks a package of one file."""
    package = tmp_path / "repository/package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(package.parent, "init", "-q")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "first")
    return package


def test_facts_are_those_of_this_process(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "do not write this down")
    monkeypatch.setattr(sys, "argv", ["train", "--config.data.input=a file.h5ad"])
    facts = place.environment()
    assert facts["devices"] == f"{len(jax.devices())} x cpu" and facts["processes"] == 1
    assert facts["versions"]["jax"] == jax.__version__
    assert facts["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["versions"]["tensorstore"] == importlib.metadata.version("tensorstore")
    assert "ruff" not in facts["versions"]  # extras are no part of a run
    assert facts["command"] == "train '--config.data.input=a file.h5ad'"
    assert facts["variables"]["XLA_FLAGS"] == os.environ["XLA_FLAGS"]
    assert 1 <= facts["cores"] <= os.cpu_count()
    assert "do not write" not in json.dumps(facts)


def test_a_checkout_is_named_and_a_change_in_the_package_makes_it_dirty(checkout):
    commit = git(checkout, "rev-parse", "HEAD")
    assert place.git_state(checkout) == {"commit": commit, "dirty": False}
    (checkout.parent / "notes").write_text("not a part of the package")
    assert not place.git_state(checkout)["dirty"]
    (checkout / "new.py").write_text("")
    assert place.git_state(checkout) == {"commit": commit, "dirty": True}
    (checkout / "new.py").unlink()
    (checkout / "__init__.py").write_text("1")
    assert place.git_state(checkout)["dirty"]


def test_a_package_installed_inside_some_other_checkout_has_no_commit(checkout):
    installed = checkout.parent / "venv/site-packages/package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert place.git_state(installed) is None


def test_variables_of_git_do_not_lead_to_another_repository(checkout, monkeypatch, tmp_path):
    git(tmp_path, "init", "-q", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other/.git"))
    assert place.git_state(checkout)["commit"] == git(checkout, "rev-parse", "HEAD")


@pytest.mark.parametrize("broken", ["no git", "no repository", "no commit"])
def test_what_cannot_be_found_out_is_absent(broken, monkeypatch, tmp_path):
    (tmp_path / "__init__.py").write_text("")
    if broken == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif broken == "no commit":
        git(tmp_path, "init", "-q")
        git(tmp_path, "add", ".")
    monkeypatch.setattr(place, "PACKAGE", tmp_path)
    monkeypatch.setattr(place.importlib.metadata, "requires", _not_installed)
    facts = place.environment()
    assert "git" not in facts and facts["versions"]["python"]


def _not_installed(name):
    raise importlib.metadata.PackageNotFoundError(name)
