"""Every command in every README does what it says, run in order in a fresh folder beside the examples."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READMES = [ROOT / "README.md", *sorted((ROOT / "examples").glob("*/README.md"))]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# These run until they are ended; their first line says that they are ready.
SERVERS = re.compile(r"^outstation (agent|hub|inference)\b")
ENVIRON = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def blocks(readme: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(readme.read_text())


@contextmanager
def serving(command: str, folder: Path) -> Iterator[None]:
    server = subprocess.Popen(command.split(), cwd=folder, env=ENVIRON, stdout=subprocess.PIPE)
    assert server.stdout is not None
    try:
        assert select.select([server.stdout], [], [], 30.0)[0], f"{command} says nothing"
        assert b"ready" in server.stdout.readline()
        yield
        server.terminate()
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def run(command: list[str] | str, folder: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=ENVIRON,
        shell=isinstance(command, str),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_a_readme_works(readme: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    with ExitStack() as servers:
        for language, text in blocks(readme):
            if language == "python":
                if readme.parent != ROOT:  # the README at the top shows an example that is run by its own
                    run([sys.executable, "-c", text], tmp_path)
                continue
            for line in text.strip().splitlines():
                if line.startswith("make "):
                    # make would set up an environment, or run this very test: that the target is there is enough here,
                    # and tests/integration/test_demo.py runs what `make demo` runs.
                    run(["make", "-n", "-C", str(ROOT), line.split()[1]], tmp_path)
                elif SERVERS.match(line):
                    servers.enter_context(serving(line, tmp_path))
                else:
                    run(line, tmp_path)


def test_the_readme_shows_the_example_as_it_is() -> None:
    shown = next(text for language, text in blocks(ROOT / "README.md") if language == "python")
    source = (ROOT / "examples/first-station/app.py").read_text()
    assert shown in source


def test_the_links_between_pages_lead_somewhere() -> None:
    for page in [*READMES, ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
