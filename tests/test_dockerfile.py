"""The Dockerfile, checked without Docker: what it names exists, and it follows the usual rules for images."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import typer
from packaging.specifiers import SpecifierSet

from evle.cli import main as cli

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def instructions():
    """The instructions as (word, rest), in order; comments are dropped and continued lines are joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def only(instructions, word):
    (rest,) = [rest for name, rest in instructions if name == word]
    return rest


def command(instructions, word):
    """The list of an instruction in exec form, without a shell."""
    return json.loads(re.search(r"\[.*\]", only(instructions, word))[0])


def copied(instructions):
    return [source for word, rest in instructions if word == "COPY" for source in rest.split()[:-1]]


def test_every_instruction_is_one_that_docker_knows(instructions):
    known = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT"}
    assert {word for word, _ in instructions} <= known
    assert instructions[0][0] == "FROM"


def test_the_image_has_a_version_of_python_that_the_project_supports(instructions, project):
    version = re.fullmatch(r"python:(\d+\.\d+)-slim", only(instructions, "FROM"))[1]
    assert version in SpecifierSet(project["project"]["requires-python"])
    assert f"Programming Language :: Python :: {version}" in project["project"]["classifiers"]


def test_all_that_is_copied_exists_and_is_sent_to_the_builder(instructions):
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sent == set(copied(instructions))
    assert all((ROOT / name).exists() for name in sent)


def test_all_that_the_build_reads_is_copied(instructions, project):
    needed = ["pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]]
    needed += [Path(folder).parts[0] for folder in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
    assert set(needed) == set(copied(instructions))


def test_the_installed_extras_are_those_of_serving(instructions, project):
    (install,) = [rest for word, rest in instructions if word == "RUN" and "pip install" in rest]
    assert "--no-cache-dir" in install
    assert re.search(r"'\.\[(.*?)\]'", install)[1] == "serve"
    assert "serve" in project["project"]["optional-dependencies"]


def test_the_server_is_not_run_as_root(instructions):
    words = [word for word, _ in instructions]
    user = only(instructions, "USER")
    assert words.index("USER") < words.index("ENTRYPOINT")
    (created,) = [rest for word, rest in instructions if word == "RUN" and "useradd" in rest]
    assert created.split()[-1] == user
    home = [rest for word, rest in instructions if word == "WORKDIR"][-1]
    assert home == f"/home/{user}"


def test_the_entry_point_is_a_command_with_known_options_and_the_exposed_port(instructions):
    name, verb, *options = command(instructions, "ENTRYPOINT")
    assert name == "evle"
    parsed = typer.main.get_command(cli.app).commands[verb].make_context(verb, [*options, "/runs/coco", "vqa=/runs/a"])
    assert parsed.params["host"] == "0.0.0.0"
    assert str(parsed.params["port"]) == only(instructions, "EXPOSE")
    assert parsed.params["models"] == ["/runs/coco", "vqa=/runs/a"]


def test_the_health_check_asks_a_path_of_the_server(instructions):
    program, flag, code = command(instructions, "HEALTHCHECK")
    assert (program, flag) == ("python", "-c")
    compile(code, "Dockerfile", "exec")
    port, path = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", code).groups()
    assert port == only(instructions, "EXPOSE")
    assert f'"{path}"' in (ROOT / "src/evle/server/app.py").read_text()
