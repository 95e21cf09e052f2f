from __future__ import annotations

import re
import shlex

import pytest
from hydra import compose, initialize_config_dir

from cai import paths
from cai.schema import to_config

README = (paths.ROOT / "README.md").read_text("utf-8")
COMMANDS = sorted(
    {
        line.strip("`")
        for line in re.findall(r"^python -m cai\.run .*$|`python -m cai\.run [^`]*`", README, re.M)
        if "--" not in line and "..." not in line
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_composes(command: str) -> None:
    arguments = [a for a in shlex.split(command)[3:] if a != "-m"]
    # A multirun's first combination, lists left alone; a sweep file is a multirun by itself.
    overrides = [re.sub(r"=([^,\[]*),.*", r"=\1", a) for a in arguments if "sweeps=" not in a]
    with initialize_config_dir(str(paths.CONF), version_base="1.3"):
        to_config(compose("config", overrides=overrides))


def test_the_readme_has_commands() -> None:
    assert len(COMMANDS) >= 6


def test_the_tree_names_files_that_exist_and_forgets_none() -> None:
    tree = README.split("```\nconf/")[1].split("```")[0]
    package = paths.PACKAGE
    named = set(re.findall(r"\b([a-z_]+\.py)\b", tree))
    there = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert named == there
    for folder in re.findall(r"^  ([a-z_]+)/ ", tree, re.M):
        assert (package / folder).is_dir() or (paths.CONF / folder).is_dir()
