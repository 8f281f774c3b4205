"""The command line: one click group, built anew for each Kit, so that plugins can add commands."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from lorakit import launched
from lorakit.cli.quiet import shown, tracing
from lorakit.errors import LorakitError, ProcessError
from lorakit.kit import Kit
from lorakit.version import __version__

STOPPED = 130


def main() -> NoReturn:
    """Run the command line and leave with its exit code: 0 done, 1 failed, 2 bad input, 130 stopped."""
    gc.disable()  # nothing that is imported is garbage; what trains turns it on again
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """The exit code of a command line."""
    try:
        options, rest = _before_the_command(arguments)
        with tracing():
            kit = Kit(without=options["without"], files=[Path(file) for file in options["plugin"]])
            code = build(kit).main(args=rest, prog_name="lorakit", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except LorakitError as error:
        if not isinstance(error, ProcessError) or not launched.number():
            click.echo(f"error: {shown(str(error))}", err=True)
        return error.exit_code
    except click.NoSuchOption as error:
        error.show()
        if error.option_name in ("--without", "--plugin"):
            click.echo(f"{error.option_name} stands before the command: lorakit {error.option_name} ... plan", err=True)
        return 2
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        return STOPPED
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away, as `| head` does
        return 0
    except Exception as error:
        return _bug(error)


def build(kit: Kit) -> click.Group:
    """The group with core's commands and those of the Kit's plugins."""
    first = next(iter(kit.shelves.families), "NAME")
    group = click.Group(
        "lorakit",
        help="Teach a diffusion model one character, style or edit, and get a LoRA that loads elsewhere.",
        epilog=f"Start with: lorakit train --family {first} --data DIR --trigger WORD",
        params=_leading_options(),
        callback=lambda **_: None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    for command in _own_commands():
        group.add_command(command)
    kit.commands(group)
    group.context_settings["obj"] = kit
    return group


def _own_commands() -> tuple[click.Command, ...]:
    """Core's commands."""
    from lorakit.cli import (
        calibrate,
        check,
        compare,
        ctl,
        doctor,
        drawing,
        evidence,
        export,
        imports,
        inspect,
        lists,
        plans,
        plugins,
        recover,
        runs,
    )

    return (
        runs.train,
        plans.plan,
        check.check,
        runs.resume,
        ctl.ctl,
        drawing.sample,
        drawing.grid,
        inspect.inspect,
        export.export,
        recover.recover,
        imports.import_,
        doctor.doctor,
        compare.compare,
        evidence.pick,
        evidence.report,
        calibrate.calibrate,
        lists.families,
        lists.presets,
        plugins.plugins,
        plugins.new_plugin,
        lists.schema,
    )


def _leading_options() -> list[click.Parameter]:
    return [
        click.Option(["--without"], multiple=True, metavar="NAME", help="Leave an installed plugin out."),
        click.Option(
            ["--plugin"], multiple=True, metavar="FILE", type=click.Path(), help="Use a Python file as a plugin."
        ),
        click.version_option(__version__, prog_name="lorakit")(lambda: None).__click_params__[0],  # type: ignore[attr-defined]
    ]


def _before_the_command(arguments: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The options that decide which plugins there are, read before the group can be built, and the whole line."""
    parser = click.Command("lorakit", params=_leading_options()[:2], add_help_option=False)
    parser.ignore_unknown_options, parser.allow_interspersed_args = True, False
    context = parser.make_context("lorakit", list(arguments), resilient_parsing=True, allow_extra_args=True)
    return {name: context.params[name] or () for name in ("without", "plugin")}, list(arguments)


def _bug(error: Exception) -> int:
    """A traceback is a bug: say so, and show it to those who ask."""
    if os.environ.get("LORAKIT_DEBUG"):
        traceback.print_exc()
    else:
        click.echo(
            f"error: lorakit failed in a way it should not: {type(error).__name__}: {shown(str(error))}. This is a "
            "bug; please report it with the output of the same command under LORAKIT_DEBUG=1.",
            err=True,
        )
    return 1
