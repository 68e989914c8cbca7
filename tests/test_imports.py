"""Imports run one way, heavy packages are lazy, and importing the package costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "codec").rglob("*.py"))
LAZY = {"accelerate", "yaml", "pesq", "pystoi", "librosa", "torchaudio", "tensorboard", "matplotlib", "huggingface_hub"}

# what each module may import from the package at module level; every module may import files and config
BASIC = {"codec", "codec.files", "codec.config", "codec.windows"}
QUANTIZERS = {
    f"codec.quantizers.{path.stem}".removesuffix(".__init__") for path in MODULES if path.parent.name == "quantizers"
}
MEASURING = {"codec.audio", "codec.data", "codec.manifest", "codec.metrics"}
REPORT_PARTS = {
    f"codec.evaluation.report_{part}"
    for part in ("html", "input", "plots", "spectrograms", "results", "codebooks", "files")
}
ALLOWED = {
    "codec.config": set(),
    "codec.files": set(),
    "codec.errors": set(),
    "codec.windows": set(),
    "codec.container": {"codec.config", "codec.files"},
    "codec.paths": set(),
    "codec.pretrained": {"codec.errors"},
    "codec.audio": set(),
    "codec.spectral": set(),
    "codec.layers": set(),
    "codec.manifest": {"codec.files"},
    "codec.scan": {"codec.audio", "codec.files"},
    "codec.fetch": set(),
    "codec.autoencoder": BASIC | {"codec.layers"},
    **dict.fromkeys(QUANTIZERS, BASIC | QUANTIZERS),
    "codec.model": BASIC
    | QUANTIZERS
    | {"codec.audio", "codec.container", "codec.autoencoder", "codec.pretrained", "codec.weights"},
    "codec.weights": {"codec.files", "codec.pretrained", "codec.quantizers.table"},
    "codec.losses": {"codec.spectral"},
    "codec.discriminators": BASIC | {"codec.spectral"},
    "codec.adversarial": {"codec.discriminators"},
    "codec.optimizers": {"codec.config", "codec.model", "codec.recipe"},
    "codec.warm_start": {"codec.config", "codec.discriminators", "codec.model"},
    "codec.health": set(),
    "codec.tokens": set(),
    "codec.metrics": {"codec.audio", "codec.errors", "codec.losses", "codec.spectral"},
    "codec.evaluation.statistics": set(),
    "codec.evaluation.stored": set(),
    "codec.evaluation.compare": {"codec.evaluation.statistics", "codec.evaluation.stored"},
    "codec.evaluation.commands": {"codec", "codec.errors", "codec.pretrained"},
    "codec.data": {"codec.audio", "codec.manifest"},
    "codec.evaluation.report_html": set(),
    "codec.evaluation.report_input": {"codec.evaluation.stored"},
    "codec.evaluation.report_spectrograms": set(),
    "codec.evaluation.report_plots": {"codec.evaluation.report_html"},
    **dict.fromkeys(("codec.evaluation.report_results", "codec.evaluation.report_codebooks"), REPORT_PARTS),
    "codec.evaluation.report_files": REPORT_PARTS | {"codec.files"},
    "codec.evaluation.report": REPORT_PARTS | {"codec.files"},
    "codec": set(),
    "codec.checkpoint": {"codec.files"},
    "codec.cli": {"codec", "codec.errors", "codec.paths"},
    "codec.info": {"codec.container", "codec.paths"},
    "codec.recipe": {"codec.config", "codec.discriminators"},
    "codec.tracking": {"codec.files", "codec.spectral"},
    "codec.transfer": BASIC | {"codec.audio", "codec.container", "codec.model", "codec.paths", "codec.pretrained"},
    "codec.training": set(),
    "codec.training.networks": {"codec.data", "codec.discriminators", "codec.losses", "codec.model", "codec.optimizers"}
    | {"codec.pretrained", "codec.recipe", "codec.warm_start"},
    "codec.training.progress": set(),
    "codec.training.readers": {"codec.data", "codec.errors", "codec.recipe"},
    "codec.training.validation": MEASURING | {"codec.health", "codec.losses", "codec.model", "codec.tracking"},
    "codec.evaluation": set(),
    "codec.evaluation.alignment": {"codec.metrics"},
    "codec.evaluation.plugins": MEASURING,
    "codec.evaluation.stability": {"codec.metrics", "codec.model"},
    "codec.evaluation.systems": MEASURING | {"codec.container", "codec.model", "codec.evaluation.alignment"},
    "codec.evaluation.measure": MEASURING
    | BASIC
    | {"codec.container", "codec.transfer"}
    | {f"codec.evaluation.{part}" for part in ("plugins", "stability", "systems")},
    "codec.evaluation.latents": MEASURING | QUANTIZERS | {"codec.health", "codec.model", "codec.evaluation.measure"},
    "codec.evaluation.runner": MEASURING
    | BASIC
    | {"codec.errors", "codec.pretrained"}
    | {f"codec.evaluation.{part}" for part in ("measure", "plugins", "systems")},
    "codec.evaluation.summary": MEASURING
    | BASIC
    | {f"codec.evaluation.{part}" for part in ("alignment", "latents", "measure", "plugins", "runner", "stability")}
    | {f"codec.evaluation.{part}" for part in ("statistics", "stored", "systems")},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.Module, top_level: bool) -> set[str]:
    """Module names imported; ``from codec import x`` counts as ``codec.x`` where that is a module."""
    names: set[str] = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = below & {module_name(path) for path in MODULES}
            names |= modules or {node.module}
    return names


def test_something_is_checked() -> None:
    assert len(MODULES) > 20 and set(ALLOWED) == {module_name(path) for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_run_one_way(path: Path) -> None:
    names = imported(ast.parse(path.read_text(encoding="utf-8")), top_level=True)
    assert not {name.split(".")[0] for name in names} & LAZY, "import it where it is used"
    own = {name for name in names if name.split(".")[0] == "codec"}
    assert own <= ALLOWED[module_name(path)], own - ALLOWED[module_name(path)]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes").rglob("*.py")) + sorted((ROOT / "data").rglob("*.py")), ids=str
)
def test_scripts_do_not_import_each_other(path: Path) -> None:
    names = imported(ast.parse(path.read_text(encoding="utf-8")), top_level=False)
    assert not {name.split(".")[0] for name in names} & {"recipes", "data", "tests"}


def test_container_needs_no_torch() -> None:
    names = imported(ast.parse((ROOT / "codec" / "container.py").read_text(encoding="utf-8")), top_level=False)
    assert "torch" not in {name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    "statement",
    [
        "import codec",
        "import codec.cli",
        "import codec.container",
        "import codec.manifest",
        "import codec.evaluation.report",
    ],
)
def test_importing_is_cheap(statement: str) -> None:
    code = f"import sys; {statement}; print('torch' in sys.modules, 'soundfile' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
