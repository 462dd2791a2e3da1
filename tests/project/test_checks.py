"""The checks before a commit, before a push and at the repository's host are those of `scripts/`."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PRE_COMMIT: dict[str, Any] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
[JOB] = WORKFLOW["jobs"].values()


def test_the_hooks_run_the_linters_of_scripts_lint_and_download_nothing() -> None:
    linters = re.findall(r"^((?:\.venv|scripts)/.+)$", (ROOT / "scripts/lint").read_text(), re.M)
    [local] = PRE_COMMIT["repos"]
    assert local["repo"] == "local"
    assert sorted(hook["entry"] for hook in local["hooks"]) == sorted(linters)
    assert {(hook["language"], hook["pass_filenames"]) for hook in local["hooks"]} == {("system", False)}


def test_the_workflow_runs_scripts_test_with_the_oldest_and_the_newest_python() -> None:
    assert [step["run"] for step in JOB["steps"] if "run" in step] == ["scripts/test"]
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    pythons = re.findall(r"Python :: (3\.\d+)", "\n".join(classifiers))
    assert JOB["strategy"]["matrix"]["python"] == [pythons[0], pythons[-1]]


def test_the_workflow_pins_its_actions_and_may_write_nothing() -> None:
    actions = [step["uses"] for step in JOB["steps"] if "uses" in step]
    assert [action for action in actions if not re.search(r"@v\d+\.\d+\.\d+$", action)] == []
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_every_script_that_a_document_names_exists_and_can_be_run() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    named = {name for path in documents for name in re.findall(r"\bscripts/[\w.-]+\b", path.read_text())}
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert [name for name in named if "." not in name and not os.access(ROOT / name, os.X_OK)] == []
