"""The command line: `vecdb`, one file for each group of commands.

    files.py          ingest, import, export
    collections.py    create, list, info, stats, drop
    points.py         search, explain, get, scroll, delete, embed
    upkeep.py         verify, vacuum, backup, restore, rebuild, calibrate
    machine.py        doctor, warmup, bench
    picture.py        map
    server.py         serve; keys create, list, revoke

Commands stand on `vecdb.open` and the API and never on what is beneath. What they print goes through `output.py`: tables for
people, `--json` for scripts. Nothing heavy is imported before a command runs.

Exit codes: 0 all is well; 1 something is not as it should be (verify found damage, a point is not there); 2 the command line is
wrong; 3 not found; 4 wrong input; 5 locked, closed or read-only; 6 corruption; 7 storage or disk full; 8 not supported, or an
extra is missing; 9 exists already; 10 an encoder or server
refused or failed; 70 an error that nobody expected; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import traceback
from typing import Any

_CODES = (
    ("NotFound", 3), ("AlreadyExists", 9), ("Locked", 5), ("Closed", 5), ("ReadOnly", 5), ("InvalidInput", 4),
    ("Corruption", 6), ("NewerFormat", 6), ("StorageError", 7), ("Unsupported", 8),
    ("DeadlineExceeded", 7), ("Unauthenticated", 10), ("EncoderFailed", 10), ("Overloaded", 10),
    ("PermissionDenied", 10), ("Unavailable", 10), ("CursorExpired", 10), ("Cancelled", 7),
)  # fmt: skip

_STOPPED = "stopped; what was acknowledged stays"


def app() -> Any:
    """The Typer application."""
    import typer

    from . import collections, files, machine, picture, points, server, upkeep

    made = typer.Typer(
        name="vecdb",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # its formatter takes twice as long to import as all else here
        context_settings={"help_option_names": ["-h", "--help"]},
        help="A vector database. Commands take --db PATH or --db grpc://host:port, or the environment's VECDB_DB; "
        "searches also exported codes, --db https://….",
    )

    @made.callback()
    def common(
        debug: bool = typer.Option(False, "--debug", help="Show the whole trace of an error."),
        version: bool = typer.Option(
            False, "--version", help="Say the version and stop.", is_eager=True, callback=_say_version
        ),
    ) -> None:
        if debug:
            os.environ["VECDB_DEBUG"] = "1"

    for group in (files, collections, points, upkeep, machine, picture, server):
        group.register(made)
    return made


def _keep_only(made: Any, word: str | None) -> None:
    """Leaves the command or group `word`, if there is one: Typer prepares all it is given, a twentieth of a second of them."""
    commands = [each for each in made.registered_commands if (each.name or each.callback.__name__) == word]
    groups = [each for each in made.registered_groups if each.name == word]
    if commands or groups:
        made.registered_commands, made.registered_groups = commands, groups


def _say_version(asked: bool) -> None:
    if asked:
        import typer

        from .. import __version__

        print(f"vecdb {__version__}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """The console script. Errors are one line on stderr, and an exit code that says what kind they are of."""
    # A command loads a few hundred thousand objects that stay: a fifth of its second would go into looking through them, once
    # on the way and once at the end.
    gc.set_threshold(500_000, 100, 100)
    atexit.register(gc.freeze)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # Typer's; they are looked for in every package there is
    import typer

    refused: Any = typer.BadParameter.__mro__[2]  # click's ClickException, wherever Typer has it from
    code: Any = 0
    try:
        made = app()
        words = sys.argv[1:] if arguments is None else arguments
        _keep_only(made, next((word for word in words if not word.startswith("-")), None))
        code = made(arguments, standalone_mode=False)
        sys.stdout.flush()
    except typer.Abort as stop:
        _end(
            _STOPPED
            if isinstance(stop.__cause__, KeyboardInterrupt)
            else "stopped; nothing was done (where nobody can be asked, say --yes)",
            130,
        )
    except typer.Exit as stop:
        code = stop.exit_code
    except refused as error:
        error.show()
        code = error.exit_code
    except KeyboardInterrupt:
        _end(_STOPPED, 130)
    except SystemExit as stop:
        # Typer ends so when stdout was closed, as by `vecdb scroll | head`, which is no failure.
        code = 0 if type(sys.stdout).__name__ == "PacifyFlushWrapper" else stop.code
    except BrokenPipeError:  # `vecdb scroll | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if os.environ.get("VECDB_DEBUG"):
            traceback.print_exc()
        _end(*_said(error))
    if code == 130:  # so Typer says that it was Ctrl-C
        _end(_STOPPED, 130)
    sys.exit(code if isinstance(code, int) else 0)


def _said(error: Exception) -> tuple[str, int]:
    from ..errors import VecdbError

    text = " ".join(str(error).split())
    if isinstance(error, VecdbError):
        names = {each.__name__ for each in type(error).__mro__}
        return text, next((code for name, code in _CODES if name in names), 1)
    if isinstance(error, OSError):
        return text, 7
    return f"{type(error).__name__}: {text} (this should not happen; --debug shows where)", 70


def _end(text: str, code: int) -> None:
    print(f"vecdb: {text}", file=sys.stderr)
    sys.exit(code)
