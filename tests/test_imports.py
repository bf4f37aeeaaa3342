"""Who may import whom, what loads late, and what is never unpickled: read from the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RANKS = (
    {"errors", "config", "runtime", "log", "files", "shipped", "sheet", "compiled"},
    {"nn", "sampling"},
    {"tokenizers", "models"},
    {"checkpoint", "convert"},
    {"decoding", "rerank", "data", "average"},
    {"train", "evaluate"},
    {"output", "inputs"},
    {"steering"},
    {"stages"},
    {"decode_request"},
    {"pipeline", "decode", "refine", "assemble", "assemble_decoder", "assess"},
    {"cli", "serve"},
)
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
HEAVY = {
    "transformers",
    "deepspeed",
    "webdataset",
    "gradio",
    "wandb",
    "tensorboard",
    "torchvision",
    "diffusers",
    "accelerate",
}
UNPICKLES = "dalle3/convert/pickles.py"

SOURCES = sorted(path for package in ("dalle3", "diffusion") for path in (ROOT / package).rglob("*.py"))
EVERYTHING = sorted({*SOURCES, *(p for d in ("tests", "recipes", "benchmarks") for p in (ROOT / d).rglob("*.py"))})


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that `tree` imports, those of `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_when_loaded(tree: ast.AST) -> Iterator[str]:
    """What importing the module imports: everything outside functions and `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from imports(node)
        else:
            yield from imports_when_loaded(node)


def rank(module: str) -> int | None:
    """The rank of a dotted name inside dalle3; None for `dalle3` itself and its plain attributes."""
    parts = module.split(".")
    return RANK.get(parts[1]) if parts[0] == "dalle3" and len(parts) > 1 else None


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_go_downwards(path):
    found = set(imports(ast.parse(path.read_text())))
    if path.is_relative_to(ROOT / "diffusion"):
        assert not {module for module in found if module.split(".")[0] == "dalle3"}
        return
    if name(path) == "dalle3/__init__.py":  # the front door names what it opens to, and imports it on first use
        return
    own = rank(name(path).removesuffix(".py").replace("/", "."))
    assert own is not None, f"{name(path)} has no rank: give it one here"
    above = {module for module in found if (other := rank(module)) is not None and other > own}
    assert not above, f"{name(path)} imports what stands above it"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_heavy_packages_are_imported_inside_functions(path):
    found = {module.split(".")[0] for module in imports_when_loaded(ast.parse(path.read_text()))}
    assert not found & HEAVY


def unsafe_loads(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            flags = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if flags.get("weights_only") != "True":
                yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", EVERYTHING, ids=name)
def test_nothing_is_unpickled_unsafely(path):
    tree = ast.parse(path.read_text())
    assert not list(unsafe_loads(tree))
    assert "torch.load" not in set(imports(tree)), "write torch.load, so that this test can read its arguments"
    if path in SOURCES and name(path) != UNPICKLES:
        assert not {"pickle", "dill", "joblib"} & {module.split(".")[0] for module in imports(tree)}


def test_the_scan_sees_an_unsafe_load():
    assert list(unsafe_loads(ast.parse("import torch\nx = torch.load(path, weights_only=False)")))
    assert list(unsafe_loads(ast.parse("torch.load(path)")))
    assert not list(unsafe_loads(ast.parse("torch.load(path, map_location='cpu', weights_only=True)")))


@pytest.mark.parametrize("command", [["--help"], [], ["--version"]], ids=" ".join)
def test_the_overview_does_not_wait_for_torch(command):
    code = f"import sys\nfrom dalle3.cli import main\ntry: main({command!r})\nexcept SystemExit: pass\n"
    code += "print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
