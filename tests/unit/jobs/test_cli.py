"""The table of commands: what its help shows, what it loads, and that each command runs as a module too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import COMMANDS as TABLE
from jobs.cli import app, load_command

ROOT = Path(__file__).parents[3]
GROUPS = {name: load_command(name) for name in TABLE}
COMMANDS = {name: command for name, command in GROUPS.items() if not hasattr(command, "commands")}
COMMANDS |= {
    f"{name} {inner}": command
    for name, group in GROUPS.items()
    for inner, command in getattr(group, "commands", {}).items()
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_mentions_every_option(name: str) -> None:
    shown = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, [*name.split(), "--help"], terminal_width=200)
    assert shown.exit_code == 0
    command = COMMANDS[name]
    shown_parameters = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    given = [parameter for parameter in shown_parameters if parameter.param_type_name == "option"]
    options = [option for parameter in given for option in (*parameter.opts, *parameter.secondary_opts)]
    assert "--json" in options
    assert "--debug" in options
    for option in options:
        assert option in shown.output, option
    assert command.help


def test_help_names_every_command() -> None:
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["--help"])
    assert shown.exit_code == 0
    assert {"demo", "shard", "verify", "pretrain", "evaluate", "report", "run", "submit", "status", "doctor"} <= set(
        COMMANDS
    )
    for name in GROUPS:
        assert name in shown.output
    assert "Exit codes" in shown.output


def test_a_process_of_its_own_says_the_same(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.run", "nowhere.yaml"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("vitpipe: nowhere.yaml: there is no such file")
    assert len(done.stderr.splitlines()) == 1


def test_only_old_options_of_evaluate_are_hidden() -> None:
    hidden = {
        (name, parameter.name)
        for name, command in COMMANDS.items()
        for parameter in command.params
        if getattr(parameter, "hidden", False)
    }
    old = ("redo", "retry", "invalidate", "cancel", "uncancel", "reason")
    assert hidden == {("evaluate", option) for option in old}


@pytest.mark.parametrize("module", [("jobs", "status"), ("jobs.status",)])
def test_every_command_runs_as_a_module(module: tuple[str, ...], tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120", "TERM": "dumb"}
    command = [sys.executable, "-m", *module, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "What a workspace holds" in done.stdout
    assert "--workspace" in done.stdout


def test_status_loads_nothing_heavy() -> None:
    heavy = ["torch", "ray", "boto3", "deepspeed", "webdataset", "matplotlib"]
    code = f"import sys, jobs.cli, jobs.status; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_the_table_says_of_each_command_what_its_own_help_begins_with() -> None:
    for name, (_, line) in TABLE.items():
        assert (GROUPS[name].help or "").split("\n\n")[0].replace("\n", " ").split() == line.split(), name


def test_a_misspelt_command_names_the_nearest() -> None:
    shown = CliRunner().invoke(app, ["evalute"])
    assert shown.exit_code == 2
    assert "Did you mean 'evaluate'" in shown.output
