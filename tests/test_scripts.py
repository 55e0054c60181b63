"""The experiments' scripts, with stand-ins for the commands that take hours: what was killed half-way is made again."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
# Logs its arguments; writes what it is asked to, and is "killed" in the midst of that where the file `kill` names it.
STAND_IN = """#!/usr/bin/env bash
echo "$*" >> "$LOG"
case $1 in
  convert) mkdir -p "$4"; touch "$4/config.json"; [ "$(cat kill 2>/dev/null)" != convert ] || exit 137
    touch "$4/model.safetensors" ;;
  predict) [ "$(cat kill 2>/dev/null)" != predict ] || exit 137
    echo '{}' > "$4" ;;
  */squad_data.py)
    while [ $# -gt 0 ]; do [ "$1" != -o ] || touch "$2"; shift; done
    [ "$(cat kill 2>/dev/null)" != spans ] || exit 137 ;;
esac
"""


class Work:
    """A folder from which a script is run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "scripts").symlink_to(SCRIPTS)
        (folder / "stand-in").write_text(STAND_IN)
        (folder / "stand-in").chmod(0o755)

    def run(self, script: str, *arguments: str, kill: str = "", **settings: str) -> tuple[int, list[str]]:
        """Exit status, and the commands that were given."""
        (self.folder / "kill").write_text(kill)
        log = self.folder / "log"
        log.write_text("")
        own = {"LONGFORMER": "./stand-in", "PYTHON": "./stand-in", "LOG": str(log), "DATA": "data", "ENCODER": "short"}
        done = subprocess.run(
            ["bash", f"scripts/{script}", *arguments],
            cwd=self.folder, env={**os.environ, **own, **settings}, capture_output=True, check=False,
        )  # fmt: skip
        return done.returncode, log.read_text().splitlines()


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


def of(command: str, given: list[str]) -> list[str]:
    return [line for line in given if line.startswith(command)]


@pytest.mark.parametrize(("moment", "command"), [("convert", "convert"), ("spans", "scripts/squad_data.py spans")])
def test_what_is_half_made_is_made_again(work: Work, moment: str, command: str) -> None:
    status, given = work.run("checkpoint.sh", "w", "plain", kill=moment)
    assert status == 137
    assert not of("train", given)
    status, given = work.run("checkpoint.sh", "w", "plain")
    assert status == 0
    assert len(of(command, given)) == len(of("train qa w/encoder w/plain", given)) == 1
    assert (work.folder / "w" / "encoder" / "model.safetensors").exists()
    assert not list((work.folder / "w").glob("*.part"))
    status, given = work.run("checkpoint.sh", "w", "plain")
    assert status == 0
    assert [line.split()[0] for line in given] == ["train"]


def test_answers_that_are_there_are_not_made_again(work: Work) -> None:
    for folder in ("w", "m"):
        (work.folder / folder).mkdir()
    old = [work.folder / "w" / f"{name}.json" for name in ("dev-held", "xquad-held", "covid-held")]
    old.append(work.folder / "m" / "model.safetensors")
    for path in old:
        path.write_text("")
        os.utime(path, (1, 1))
    assert work.run("measure.sh", "m", "w", kill="predict")[0] == 137
    status, given = work.run("measure.sh", "m", "w")
    assert (status, len(of("predict", given)), len(of("evaluate", given))) == (0, 4, 4)
    assert of("predict", given)[-1] == (
        "predict w/covid-held.json -o m/answers-covid-held-512.json --model m --max-length 512"
    )
    assert of("evaluate", given)[0] == "evaluate w/dev-held.json --predictions m/answers-dev-held.json"
    (work.folder / "m" / "answers-xquad-held.json").unlink()
    _, given = work.run("measure.sh", "m", "w")
    assert (len(of("predict w/xquad-held", given)), len(of("predict", given)), len(of("evaluate", given))) == (1, 1, 4)
    _, given = work.run("measure.sh", "m", "w", LIMIT="20")
    assert of("predict", given)[0] == "predict w/dev-held.json -o m/answers-dev-held-20.json --model m --limit 20"
    later = (work.folder / "m" / "answers-dev-held.json").stat().st_mtime + 5
    os.utime(work.folder / "m" / "model.safetensors", (later, later))
    assert len(of("predict", work.run("measure.sh", "m", "w")[1])) == 4
