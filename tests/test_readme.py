"""The README's snippets run as printed, and its figures come from where it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from loading import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPES = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
EVALUATION = RECIPES[RECIPES.index("## Evaluation") :]
COLLAPSE = (ROOT / "recipes" / "collapse" / "README.md").read_text(encoding="utf-8")
LAYER = COLLAPSE[COLLAPSE.index("## In a model of yours") : COLLAPSE.index("## Two toys")]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT + EVALUATION + LAYER, flags=re.DOTALL)
COMMANDS = [body for kind, body in BLOCKS if kind == "bash" and "venv" not in body and "codec-" in body]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the README's relative paths hold."""
    path = tmp_path_factory.mktemp("readme")
    for name in ("tests", "data"):
        (path / name).symlink_to(ROOT / name)
    return path


@pytest.mark.slow
def test_commands_run(folder: Path) -> None:
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in COMMANDS:
        installed = "\n".join(line for line in command.splitlines() if not line.startswith("pip install"))
        subprocess.run(["bash", "-euo", "pipefail", "-c", installed], cwd=folder, env=env, check=True)
    assert (folder / "piped.wav").read_bytes() == (folder / "out.wav").read_bytes()
    assert (folder / "decoded" / "example.flac").is_file()
    assert (folder / "report" / "index.html").is_file()


@pytest.mark.slow
def test_python_snippets_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for kind, body in BLOCKS:
        if kind == "python":
            exec(compile(body, "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith("24000 320 75.0 8 1024 6000.0")


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("recipes/**/README.md"), ROOT / "data/README.md"]
    for page in pages:
        links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
        assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == [], page


def test_the_recipes_are_all_described() -> None:
    names = {p.name for p in (ROOT / "recipes").iterdir() if p.suffix in (".py", "") and p.name != "__pycache__"}
    assert {name for name in names if f"({name}" not in RECIPES} == set()
