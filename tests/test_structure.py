"""Rules about the project itself: who imports whom, what is complete, what must not appear."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from cost_models.rows import AXIS_FACTORS, Rows
from cost_models.strategy import AXES, ParallelDegrees
from planner.result import StrategyRecord

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "topologies": {"topologies"},
    "cost_models": {"cost_models", "topologies"},
    "planner": {"planner", "cost_models", "topologies"},
}
ONLY_IN = {"ortools": ("planner/search/",), "torch": ("planner/read_model/torch_", "planner/runtime/")}
MODULES = sorted(p.relative_to(ROOT) for package in MAY_IMPORT for p in (ROOT / package).rglob("*.py"))
TEXTS = sorted(
    p.relative_to(ROOT)
    for folder in (*MAY_IMPORT, "tests", "notebooks", ".ci")
    for p in (ROOT / folder).rglob("*")
    if p.suffix in {".py", ".toml", ".json", ".ipynb", ".md", ".j2", ".txt", ""}
    and p.is_file()
    and "__pycache__" not in p.parts
)
PAGES = [ROOT / "README.md", *(ROOT / text for text in TEXTS if text.name == "README.md")]
ALLOWED_AT_TOP = {
    "pyproject.toml",
    "planner",
    "cost_models",
    "topologies",
    "tests",
    "notebooks",
    "README.md",
    "LICENSE",
}


@cache
def tree_of(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text())


def imported_roots(module: Path) -> set[str]:
    """Top-level packages that a file imports, unless only for type checking."""
    nodes = list(statements(tree_of(module).body))
    plain = [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
    from_ = [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)]
    return {name.split(".")[0] for name in plain + from_}


def statements(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Statements within statements, but for those that type checkers alone read."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from statements(getattr(node, name, []))


def test_imports_point_one_way():
    roots = {module: imported_roots(module) for module in MODULES}

    assert [str(it) for it in MODULES if not roots[it] & MAY_IMPORT.keys() <= MAY_IMPORT[it.parts[0]]] == []
    for package, allowed in ONLY_IN.items():
        importers = [module.as_posix() for module in MODULES if package in roots[module]]
        assert importers
        assert [name for name in importers if not name.startswith(allowed)] == []


def test_library_source_has_no_assert():
    asserts = [(str(it), n.lineno) for it in MODULES for n in statements(tree_of(it).body) if isinstance(n, ast.Assert)]
    assert asserts == []


def test_files_stay_small():
    lines = {str(module): len((ROOT / module).read_text().splitlines()) for module in MODULES}
    assert {name: count for name, count in lines.items() if count > 400} == {}


@pytest.mark.parametrize("package", ["planner", "topologies.ready"])
def test_import_is_light(package):
    """None of the heavy libraries is loaded by it."""
    heavy = "{'torch', 'ortools', 'numpy', 'pandas', 'networkx'}"
    code = f"import {package}, sys; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout.strip() == "[]"


def test_reading_loads_neither_torch_nor_transformers():
    code = "import sys, planner.read_model as r; r.read_model('gpt2'); "
    code += "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == "[]", run.stderr


def test_planning_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import planner"
    code += "; print(planner.plan('llama-3.2-1b', 'dgx-h100:1').status)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == "optimal", run.stderr


def test_every_axis_has_its_terms():
    """Each row of AXES is a degree, a column of rows with factors per level, and a field of the saved strategy."""
    degrees = ParallelDegrees()
    for axis in AXES:
        assert getattr(degrees, axis.name) == 1
        assert axis.name in AXIS_FACTORS
        assert axis.name in StrategyRecord.model_fields
        assert hasattr(Rows, axis.name) or axis.name in Rows.__dataclass_fields__


def test_no_machine_path():
    path = re.compile(r"/(?:[w]ork|[r]oot|[h]ome)/")
    assert [str(text) for text in TEXTS if path.search((ROOT / text).read_text(errors="replace"))] == []


def test_nothing_else_at_the_top():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT).stdout.split()
    top = {Path(name).parts[0] for name in tracked}
    assert {name for name in top if not name.startswith(".")} <= ALLOWED_AT_TOP


def test_readme_commands_are_those_of_ci():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    commands = [line for line in ci.splitlines() if "pip install" in line]
    assert len(commands) == 2
    for command in commands:
        assert command in readme


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[tuple[Path, str]]:
    """Each file that a page links to, and the section, if one is named; addresses of the web are left out."""
    found = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", prose(page))
    return [((page.parent / name).resolve() if name else page, anchor) for name, anchor in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.parent.relative_to(ROOT)))
def test_links_lead_to_files_and_sections_that_exist(page):
    found = links(page)
    lost = [(str(it), anchor) for it, anchor in found if not it.exists() or (anchor and anchor not in anchors(it))]

    assert found
    assert lost == []


def test_the_front_page_is_short_and_leads_to_every_other():
    front, *others = PAGES

    assert len(front.read_text().splitlines()) < 500
    assert set(others) <= {page for page, _ in links(front)}


def test_every_solver_is_made_where_its_parameters_are_set():
    """A CP-SAT solver made elsewhere would bring back presolve rules that lose solutions."""
    makers = [module.as_posix() for module in MODULES if "CpSolver(" in (ROOT / module).read_text()]

    assert makers == ["planner/search/solver.py"]
