"""`streaming-vb`: the verbs, and one line for every mistake.

Exit codes: 0 done; 1 bug; 2 usage or configuration; 3 source or data; 4 cluster; 5 integrity; 75 stopped, resumable.
"""

import os
import sys
import tempfile
import traceback

import typer
from typer.exceptions import TyperException

from streaming_vb import __version__
from streaming_vb.cli.demo import demo
from streaming_vb.cli.diff import diff
from streaming_vb.cli.evaluate import evaluate
from streaming_vb.cli.fit import fit
from streaming_vb.cli.inspect import inspect
from streaming_vb.cli.merge import merge
from streaming_vb.cli.reproduce import reproduce
from streaming_vb.cli.sample import sample
from streaming_vb.cli.score import score
from streaming_vb.cli.status import status
from streaming_vb.cli.stop import stop
from streaming_vb.cli.unlearn import unlearn
from streaming_vb.cli.verify import verify
from streaming_vb.errors import StreamingVBError
from streaming_vb.streaming.journal import JournalBroken

app = typer.Typer(
    help="Streaming variational Bayes: a posterior over every weight, always current, each record counted once.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
VERBS = (demo, fit, status, stop, evaluate, score, sample, inspect, verify, diff, merge, unlearn, reproduce)
for verb in VERBS:
    app.command()(verb)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"streaming-vb {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version"),
) -> None:
    """Streaming variational Bayes: a posterior over every weight, always current, each record counted once."""
    del version


def main() -> None:
    """Runs a verb; turns an error into one line and the exit code of its class."""
    try:
        code = typer.main.get_command(app)(standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except TyperException as error:
        code = _one_line(f"{error.format_message()} Type streaming-vb --help", error.exit_code)
    except StreamingVBError as error:
        code = _one_line(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _one_line("stopped before anything was streamed", 75)
    except BrokenPipeError:  # the reader of stdout went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except JournalBroken as error:
        code = _one_line(
            f"{error.strerror or error}. What was told is on the disk; the same command goes on once it works", 2
        )
    except OSError as error:  # no space, no permission, a file where a folder should be
        code = _one_line(f"{error.filename}: {error.strerror}. Free space, or give a path that can be written", 2)
    except Exception:
        code = _one_line(f"a bug in streaming-vb; please report it with {_write_traceback()}", 1)
    sys.exit(code)


def program() -> None:
    """`main` as a process of its own. Where Ray was in it, the process ends without its destructors: once in a while
    they deadlock after the work is done and saved, on a lock that is gone."""
    try:
        main()
    except SystemExit as stop:
        if "ray" not in sys.modules:
            raise
        sys.modules["ray"].shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(stop.code or 0))


def _one_line(text: str, code: int) -> int:
    print(f"streaming-vb: {' '.join(text.split())}", file=sys.stderr)
    return code


def _write_traceback() -> str:
    with tempfile.NamedTemporaryFile("w", prefix="streaming-vb-", suffix=".log", delete=False) as file:
        traceback.print_exc(file=file)
    return file.name


if __name__ == "__main__":
    program()
