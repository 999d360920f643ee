"""`python -m perturbdiff_jax.main --config=FILE --workdir=DIR [--config.x.y=v ...]`: flags and dispatch only."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from perturbdiff_jax import host_memory, process_environment, processes
from perturbdiff_jax.errors import RequestError, RunError, Stopped

USAGE = "usage: python -m perturbdiff_jax.main --config=FILE --workdir=DIR [--config.section.key=value ...]"
HELP = f"""{USAGE}

Trains, predicts what was held out, evaluates and reports; `perturbdiff train` does the same.
  --config=FILE               a config, such as configs/quickstart.py
  --workdir=DIR               gets the results; given again, the run goes on where it was broken off
  --config.section.key=value  changes one setting; the sections and keys are those of perturbdiff_jax/settings.py"""


def parse(arguments: Sequence[str]):
    """Reads the flags.

    A config file is the user's own Python and is run as such; data and checkpoints never are.

    Returns:
      (ConfigDict, workdir).

    Raises:
      RequestError: a missing or unknown flag, a missing file, a key that no config has, a bad value.
    """
    from perturbdiff_jax.settings import key_kinds

    arguments, cleared = _joined(arguments), []
    for word in [word for word in arguments if word.startswith("--config.")]:
        name, _, value = word.removeprefix("--config.").partition("=")
        if type(None) in key_kinds(name) and value.lower() == "none":
            # The flag parser of a whole number knows no spelling of "none".
            arguments.remove(word)
            cleared.append(name)
    files = [word.partition("=")[2] for word in arguments if word.startswith("--config=")]
    for file in files:
        if not Path(file.split(":")[0]).is_file():
            raise RequestError(f"--config={file}: no such file.")
    argv = ["perturbdiff_jax.main", *arguments]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "config file", flag_values=values, sys_argv=argv)
    flags.DEFINE_string("workdir", None, "directory of the run", flag_values=values)
    try:
        rest = values(argv)[1:]
        config = values.config
        if config is not None:
            config.keys()  # a file that could not be loaded says so at the first look into it
    except Exception as error:
        raise _refusal(error, files) or error from None
    if rest:
        raise RequestError(f"unexpected argument {rest[0]!r}.\n{USAGE}")
    if config is None or not values.workdir:
        raise RequestError(f"--config and --workdir are both needed.\n{USAGE}")
    for name in cleared:
        section, _, key = name.rpartition(".")
        (config[section] if section else config)[key] = None
    return config, values.workdir


def _refusal(error: Exception, files: Sequence[str]) -> RequestError | None:
    """What is wrong with the flags or in the user's config file, None when the fault is elsewhere."""
    first: BaseException = error
    while first.__cause__ or first.__context__:
        first = first.__cause__ or first.__context__
    for file in files:
        path = str(Path(file.split(":")[0]).resolve())
        lines = [
            frame.lineno for frame in traceback.extract_tb(first.__traceback__) if _is(frame.filename, path)
        ]
        if isinstance(first, SyntaxError) and _is(first.filename or "", path):
            lines = [first.lineno]
        text = f"{type(first).__name__}: {' '.join(str(first).split())}"
        if "Traceback" in str(error):  # the parser folds some errors of a config file into its message
            inside = re.findall(r'File "(.+)", line (\d+)', str(error))
            lines, text = [n for name, n in inside if _is(name, path)], str(error).strip().splitlines()[-1]
        if lines and isinstance(first, RequestError):
            return first
        if lines:
            return RequestError(f"--config={file}, line {lines[-1]}: {text}")
        if ":" in file and "get_config() takes 0" in text:
            return RequestError(f"--config={file}: {file.split(':')[0]} takes nothing behind a colon.")
        if isinstance(error, OSError):
            return RequestError(
                f"--config={file}: cannot be loaded ({str(error).strip().splitlines()[-1].strip()})."
            )
    if isinstance(error, flags.Error):
        return RequestError(f"{' '.join(str(error).split())}\n{USAGE}")
    if isinstance(error, KeyError) and files:
        return RequestError(f"--config={files[-1]}: its config has no key {error}.")
    if isinstance(error, AttributeError | TypeError):  # a file without get_config, or with one that is none
        return RequestError(f"--config={files[-1]}: {' '.join(str(error).split())}") if files else None
    return None


def _is(filename: str, path: str) -> bool:
    return str(Path(filename).resolve()) == path


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--name value` as `--name=value`: overrides are looked for in that form only."""
    joined: list[str] = []
    for word in arguments:
        if joined and joined[-1].startswith("--") and "=" not in joined[-1] and not word.startswith("--"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the job; exit code 0 done or stopped by SIGTERM, 2 wrong request or input, 1 a fault of ours.

    Without arguments it is the whole process, with those of the command line.
    """
    if arguments is None:
        arguments = sys.argv[1:]
        prepare_process()
    if {"-h", "--help", "--helpfull"} & set(arguments):
        print(HELP)
        return 0
    return processes.finish(guarded(lambda: _main(arguments)))


def prepare_process() -> None:
    """What a process that trains and does nothing else does first."""
    process_environment.enough_threads()
    if host_memory.only_cpus():
        host_memory.keep_freed()


def _main(arguments: Sequence[str]) -> None:
    processes.start()
    config, workdir = parse(arguments)
    from perturbdiff_jax.train import train_and_evaluate

    train_and_evaluate(config, workdir)


def guarded(job: Callable[[], object]) -> int:
    """Runs `job` and turns its errors into messages and exit codes."""
    try:
        job()
    except RequestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(stopped)
    except processes.LeadFailed as error:
        print(error, file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("interrupted; give the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has gone (`... | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
