"""`python -m perturbdiff_jax.main --config=FILE --workdir=DIR [--config.x.y=v ...]`: flags and dispatch only."""

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from perturbdiff_jax.errors import RequestError

USAGE = "usage: python -m perturbdiff_jax.main --config=FILE --workdir=DIR [--config.section.key=value ...]"


def parse(arguments: Sequence[str]):
    """Reads the flags.

    A config file is the user's own Python and is run as such; data and checkpoints never are.

    Returns:
      (ConfigDict, workdir).

    Raises:
      RequestError: a missing or unknown flag, a missing file, a key that no config has, a bad value.
    """
    from perturbdiff_jax.settings import check_key

    arguments = _joined(arguments)
    for word in arguments:
        if word.startswith("--config."):
            check_key(word.removeprefix("--config.").partition("=")[0])
    argv = ["perturbdiff_jax.main", *arguments]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "config file", flag_values=values, sys_argv=argv)
    flags.DEFINE_string("workdir", None, "directory of the run", flag_values=values)
    try:
        rest = values(argv)[1:]
        config = values.config
    except flags.Error as error:
        raise RequestError(f"{str(error).splitlines()[0]}\n{USAGE}") from None
    except OSError:
        files = [word.partition("=")[2] for word in arguments if word.startswith("--config=")]
        missing = next((f"--config={f}: no such file." for f in files if not Path(f).is_file()), None)
        if missing is None:
            raise
        raise RequestError(missing) from None
    except (AttributeError, KeyError, TypeError) as error:
        # What a config file answers when it sets something that cannot be set.
        raise RequestError(f"--config: {' '.join(str(error).split())}") from error
    if rest:
        raise RequestError(f"unexpected argument {rest[0]!r}.\n{USAGE}")
    if config is None or values.workdir is None:
        raise RequestError(f"--config and --workdir are both needed.\n{USAGE}")
    return config, values.workdir


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
    """Runs the job; exit code 0 done, 2 wrong request or input, 1 a fault of ours."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "--helpfull"):
        print(f"{__doc__}\n\n{USAGE}")
        return 0 if arguments else 2
    return guarded(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> None:
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
    except KeyboardInterrupt:
        print("interrupted; give the same command again to go on", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
