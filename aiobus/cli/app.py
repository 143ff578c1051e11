"""The command `aiobus`: all of its commands, and how each of them ends.

Owns the exit codes of errors. Must not know what a command does.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.exceptions import TyperException

import aiobus
from aiobus.cli import (
    Story,
    bench,
    demo,
    doctor,
    files,
    keys,
    peers,
    publish,
    record,
    replay,
    tail,
)
from aiobus.cli.arguments import WrongArgument
from aiobus.cli.terminal import complain, drop_output, say
from aiobus.errors import BusError

__all__ = ["STORIES", "main"]

STORIES: tuple[Story, ...] = (
    tail.STORY,
    publish.STORY,
    peers.STORY,
    record.STORY,
    files.LOG,
    files.EXPLAIN,
    replay.REPLAY,
    replay.VERIFY,
    files.EXPORT,
    doctor.STORY,
    *keys.STORIES,
    bench.STORY,
    demo.STORY,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    command = typer.main.get_command(made())
    try:
        code = command.main(args=arguments, prog_name="aiobus", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a help has ended before it
        drop_output()
        return 0
    except TyperException as error:  # an argument that is missing or unknown
        error.show()  # type: ignore[attr-defined]
        return int(getattr(error, "exit_code", 2))
    return int(code or 0)


def made() -> typer.Typer:
    """The application."""
    app = typer.Typer(
        help="See what a desk does, and what is in its files. Each command has examples in its"
        " --help.",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(_nothing)
    for story in STORIES:
        if story in keys.STORIES:  # their arguments are read without typer
            app.command(
                story.name,
                short_help=story.summary,
                add_help_option=False,
                context_settings={"ignore_unknown_options": True, "help_option_names": []},
            )(_passing(story.run))
            continue
        cls = _using(story.usage) if story.usage else None
        app.command(story.name, cls=cls, short_help=story.summary, epilog=story.epilog)(
            ending(story.run)
        )
    return app


def _using(usage: str) -> type[TyperCommand]:
    """A command whose help begins with these arguments: of an optional one before others, typer
    knows nothing.
    """

    class Command(TyperCommand):
        def collect_usage_pieces(self, ctx: Any) -> list[str]:
            return ["[OPTIONS]", usage]

    return Command


def _passing(run: Callable[..., int | None]) -> Callable[..., int]:
    def passed(words: Annotated[list[str] | None, typer.Argument()] = None) -> int:
        return run(words or []) or 0

    return passed


def _tell(is_asked: bool) -> None:
    if is_asked:
        say(f"aiobus {aiobus.__version__}\n".encode())
        raise typer.Exit


def _nothing(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_tell, is_eager=True)
    ] = False,
) -> None:
    """See what a desk does, and what is in its files. Each command has examples in its --help."""


def ending(run: Callable[..., int | None]) -> Callable[..., int]:
    """`run`, with what it raises as an exit code and a sentence."""

    @functools.wraps(run)
    def ended(*given: object, **options: object) -> int:
        try:
            code = run(*given, **options)
            sys.stdout.flush()
        except BrokenPipeError:  # such as `| head`
            drop_output()
            return 0
        except KeyboardInterrupt:
            return 130
        except WrongArgument as error:
            complain(str(error))
            return 2
        except (BusError, ValueError, OSError) as error:
            complain(str(error))
            return 1
        return code or 0

    return ended
