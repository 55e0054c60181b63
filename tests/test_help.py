"""The help of every command: a line that is not cut, two examples that are right, options in groups."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from longformer.cli import cli
from longformer.help import HELP

WIDTH = 80


def commands(group: click.Group = cli, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        full = f"{path} {name}".strip()
        yield full, command
        if isinstance(command, click.Group):
            yield from commands(command, full)


ALL = dict(commands())
LEAVES = {path: command for path, command in ALL.items() if not isinstance(command, click.Group)}


def test_every_command_has_its_help() -> None:
    assert sorted(HELP) == sorted(ALL)


@pytest.mark.parametrize("path", LEAVES)
def test_two_examples(path: str) -> None:
    """Each is of this command, and has options that there are."""
    shown = CliRunner().invoke(cli, [*path.split(), "--help"], terminal_width=WIDTH).output
    assert len(HELP[path].examples) == 2
    for example in HELP[path].examples:
        assert f"\n    {example}\n" in shown + "\n"
        words = shlex.split(example.partition(" < ")[0])
        assert words[: 1 + len(path.split())] == ["longformer", *path.split()]
        command = LEAVES[path]
        parser = command.make_parser(click.Context(command))
        parser.parse_args(words[1 + len(path.split()) :])  # raises NoSuchOption


@pytest.mark.parametrize("path", ["", *(path for path in ALL if path not in LEAVES)])
def test_no_line_of_a_list_is_cut(path: str) -> None:
    shown = CliRunner().invoke(cli, [*path.split(), "--help"], terminal_width=WIDTH).output
    assert "...\n" not in shown.partition("Commands:")[2]


@pytest.mark.parametrize("path", [path for path in LEAVES if path.startswith("train ")])
def test_options_of_a_training_are_in_groups(path: str) -> None:
    shown = CliRunner().invoke(cli, [*path.split(), "--help"], terminal_width=WIDTH).output
    parts = shown.partition("Options:\n")[2].split("\n\n")
    assert {line.split()[0] for line in parts[0].splitlines() if line.startswith("  -")} <= {
        "--config",
        "--resume",
        "-h,",
    }
    assert len(parts) >= 5
