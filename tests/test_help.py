"""The help of every command: a line that is not cut, two examples that are right, options in groups."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete, FishComplete, ZshComplete
from click.testing import CliRunner
from tiny_checkpoint import byte_level_tokenizer, tiny_model

from longformer.cli import cli, main
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
        "-q,",
        "-h,",
    }
    assert len(parts) >= 5


@pytest.mark.parametrize("path", LEAVES)
def test_help_says_bounds_in_words(path: str) -> None:
    """And none that only the machine sets, nor a type's name in place of what the value is."""
    shown = CliRunner().invoke(cli, [*path.split(), "--help"], terminal_width=WIDTH).output
    for unread in ("<=", ">=", "<x", "x>", "2147483647", "9223372036854775807", "RANGE"):
        assert unread not in shown.partition("Examples:")[0]


def test_a_bound_in_help_and_in_the_error() -> None:
    shown = CliRunner().invoke(cli, ["generate", "--help"], terminal_width=WIDTH).output
    assert "[more than 0, at most 1]" in " ".join(shown.split())
    assert "Make the same text again.  [0 or more]" in " ".join(shown.split("\n")).replace("  " * 10, "")
    for option, value, says in (
        ("--top-p", "0", "0.0 is out of range; give more than 0"),
        ("--top-p", "nan", "nan is out of range; give more than 0"),
        ("--top-p", "1.5", "1.5 is out of range; give at most 1"),
        ("--seed", "-1", "-1 is out of range; give 0 or more"),
        ("--seed", str(2**63), f"{2**63} is out of range; give at most {2**63 - 1}"),
        ("--top-k", "0", "0 is out of range; give 1 or more"),
    ):
        assert says in CliRunner().invoke(cli, ["generate", "LM", option, value]).output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
    completion = classes[shell](cli, {}, "longformer", "_LONGFORMER_COMPLETE")
    monkeypatch.setattr(BashComplete, "_check_version", lambda self: None)  # asks the bash of this machine
    script = completion.source()
    assert f"_LONGFORMER_COMPLETE={shell}_complete" in script and "longformer" in script
    assert {item.value for item in completion.get_completions([], "")} == set(cli.commands)
    assert "--quiet" in {item.value for item in completion.get_completions(["train", "qa"], "--")}


def test_the_environment_asks_for_the_completion(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As docs/how-to/command-line.md has it, through the entry point of the package."""
    monkeypatch.setenv("_LONGFORMER_COMPLETE", "zsh_source")
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert not stopped.value.code
    assert capsys.readouterr().out.startswith("#compdef longformer")


# ---- --quiet


@pytest.mark.parametrize("path", LEAVES)
def test_every_command_can_be_quiet(path: str) -> None:
    assert "--quiet" in {name for parameter in LEAVES[path].params for name in parameter.opts}


def test_quiet_leaves_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    tokenizer = byte_level_tokenizer(source)
    tiny_model(tokenizer).save_pretrained(source)
    tokenizer.save_pretrained(source)
    words = ["convert", str(source)]
    for flags, said in (([], f"wrote {tmp_path / 'loud'}"), (["--quiet"], "")):
        with pytest.raises(SystemExit) as stopped:
            main([*words, str(tmp_path / ("quiet" if flags else "loud")), *flags])
        shown = capsys.readouterr()
        assert not stopped.value.code and shown.err.strip() == said
    assert (tmp_path / "quiet" / "model.safetensors").is_file()


def test_quiet_leaves_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["-q", "no such file"], ["no such file", "-q", "--no-such-option"]):
        with pytest.raises(SystemExit) as stopped:
            main(["answer", "Who fell?", *words])
        assert stopped.value.code == 2
        assert "error: " in capsys.readouterr().err
