"""The parts of a release besides the package: changelog, citation, workflow."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import emp_kernels

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
DESCRIPTION = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = DESCRIPTION["project"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))


def test_the_version_has_one_source():
    assert PROJECT["dynamic"] == ["version"]
    assert DESCRIPTION["tool"]["setuptools"]["dynamic"] == {
        "version": {"attr": "emp_kernels.__version__"}
    }


def test_the_changelog_knows_the_version():
    """The format of Keep a Changelog: unreleased changes first, then the versions, newest first."""
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.+?)\](?: - \d{4}-\d\d-\d\d)?$", text, re.M)
    assert len(headings) == len(re.findall(r"^## ", text, re.M))
    assert headings[0] == "Unreleased"
    assert headings[1] == emp_kernels.__version__
    kinds = set(re.findall(r"^### (.+)$", text, re.M))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == emp_kernels.__version__
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    page = (ROOT / "docs/explain/method.md").read_text()
    (bibtex,) = re.findall(r"author  = {(.+?)}", page, re.S)
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert names == re.split(r"\s+and\s+", bibtex)
    assert paper["url"] in page
    assert paper["url"] in (ROOT / "README.md").read_text()


def test_the_classifiers_name_the_versions_of_python():
    of = "Programming Language :: Python :: 3."
    minors = [int(line.removeprefix(of)) for line in PROJECT["classifiers"] if line.startswith(of)]
    assert minors == list(range(10, minors[-1] + 1))
    assert PROJECT["requires-python"] == f">=3.{minors[0]}"
    built = DESCRIPTION["tool"]["cibuildwheel"]["build"]
    assert {f"cp3{minor}-*" for minor in minors} <= set(built)


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_well_formed(path):
    """Checks that the CI service would otherwise make only when it runs."""
    workflow = yaml.safe_load(path.read_text())
    assert set(workflow) == {"name", True, "permissions", "jobs"}  # YAML 1.1 reads "on" as true
    assert workflow["permissions"] == {"contents": "read"}
    jobs = workflow["jobs"]
    for name, job in jobs.items():
        assert set(job) <= {"name", "needs", "strategy", "runs-on", "steps"}, name
        assert {"runs-on", "steps"} <= set(job), name
        assert job.get("needs", name) in jobs
        matrix = job.get("strategy", {}).get("matrix", {})
        known = set(matrix) | {key for extra in matrix.get("include", []) for key in extra}
        for expression in re.findall(r"\${{ *(.*?) *}}", yaml.safe_dump(job)):
            assert expression.startswith("matrix."), expression
            assert expression.removeprefix("matrix.") in known, expression
    for step in steps(workflow):
        assert set(step) <= {"name", "uses", "with", "env", "run"}
        assert ("uses" in step) != ("run" in step), step
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d[\d.]*", step["uses"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_hands_on_what_it_built(path):
    by_action: dict[str, list[str]] = {}
    for step in steps(yaml.safe_load(path.read_text())):
        action = step.get("uses", "").partition("@")[0]
        by_action.setdefault(action, []).append(step.get("with", {}).get("name", ""))
    assert set(by_action["actions/download-artifact"]) <= set(by_action["actions/upload-artifact"])


def test_the_wheels_are_tried_with_the_oldest_and_the_pinned_torch():
    workflow = yaml.safe_load((ROOT / ".github/workflows/wheels.yml").read_text())
    job = workflow["jobs"]["test"]
    (oldest,) = re.findall(r"torch>=([\d.]+)", " ".join(PROJECT["dependencies"]))
    assert job["strategy"]["matrix"]["torch"] == [f"{oldest}.0", PINS["torch"]]
    command = job["steps"][-1]["run"]
    (files,) = re.findall(r"for name in (.+);", command)
    for name in files.split():
        assert (ROOT / f"tests/test_{name}.py").exists()
