"""The house: rooms import downwards, nothing goes round in a circle, files and functions stay readable."""

import ast
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import kdrun

HOUSE = Path(kdrun.__file__).parent
ROOMS = ("core", "config", "metrics", "data", "models", "losses", "teachers", "methods", "runs", "training", "results",
         "cli")  # fmt: skip
FACES = ("__init__", "__main__", "train", "method", "registry", "config/__init__")
"""What users import and start: they show what is inside, and stand in no room."""
LINES, FUNCTION_LINES = 400, 60
HIDDEN = 9
"""Imports of kdrun inside functions: where torch must not load at start-up, or a module must stay light."""


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file."""
    files = {path.relative_to(HOUSE.parent).with_suffix(""): path for path in sorted(HOUSE.rglob("*.py"))}
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in files.items()}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def is_face(path: Path) -> bool:
    return path.relative_to(HOUSE).with_suffix("").as_posix() in FACES


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def named(node: ast.AST) -> Iterator[str]:
    """The modules of kdrun that a statement imports; also those that `later` will load."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "kdrun")
    elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kdrun":
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            if node.module == "kdrun" and alias.name in kdrun._PUBLIC:  # a public name: what counts is its home
                inner = f"kdrun.{kdrun._PUBLIC[alias.name]}"
            yield inner if inner in modules() else str(node.module)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "later":
        name = node.args[0]
        if isinstance(name, ast.Constant) and str(name.value).split(".")[0] == "kdrun":
            yield str(name.value)


@cache
def arrows() -> dict[str, dict[str, int]]:
    """Module -> what it imports anywhere, under TYPE_CHECKING and in functions too -> line."""
    return {
        name: {
            other: node.lineno  # type: ignore[attr-defined]
            for node in ast.walk(tree(path))
            for other in named(node)
        }
        for name, path in modules().items()
    }


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(HOUSE.parent)}:{line}"


def functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in modules().values():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def test_every_module_stands_in_a_room():
    strange = [name for name, path in modules().items() if not is_face(path) and room(name) not in ROOMS]
    assert not strange, f"in none of {', '.join(ROOMS)}: {strange}"


def is_allowed(module: str, other: str) -> bool:
    if is_face(modules()[other]):
        return False
    if room(module) == "metrics":
        return room(other) == "core"
    return ROOMS.index(room(other)) <= ROOMS.index(room(module))


def test_a_room_imports_only_itself_and_rooms_above_it():
    wrong = [
        f"{place(modules()[name], line)}: {room(name)} imports {other}"
        for name, others in arrows().items()
        if not is_face(modules()[name])
        for other, line in others.items()
        if not is_allowed(name, other)
    ]
    assert not wrong, "\n".join(["the order is " + ", ".join(ROOMS), *wrong])


def test_no_modules_import_each_other_in_a_circle():
    done: set[str] = set()

    def circle(name: str, above: tuple[str, ...]) -> tuple[str, ...]:
        if name in above:
            return (*above[above.index(name) :], name)
        if name not in done:
            for other in arrows()[name]:
                if found := circle(other, (*above, name)):
                    return found
            done.add(name)
        return ()

    found = next((found for name in modules() if (found := circle(name, ()))), ())
    assert not found, "\n".join(f"{a} imports {b} in line {arrows()[a][b]}" for a, b in pairwise(found))


def test_imports_inside_functions_are_few():
    hidden = {
        place(path, node.lineno): f"{outer.name}: {ast.unparse(node)}"
        for path, outer in functions()
        if not is_face(path)
        for node in ast.walk(outer)
        if isinstance(node, ast.Import | ast.ImportFrom) and list(named(node))
    }
    listed = "\n".join(f"{where}: {what}" for where, what in sorted(hidden.items()))
    assert len(hidden) <= HIDDEN, f"{len(hidden)} imports of kdrun inside functions, allowed {HIDDEN}:\n{listed}"


def test_files_and_functions_are_short():
    lengths = {path: len(path.read_text().splitlines()) for path in modules().values()}
    long = [f"{place(path, 1)}: {length} lines, allowed {LINES}" for path, length in lengths.items() if length > LINES]
    for path, node in functions():
        length = (node.end_lineno or 0) - node.lineno + 1
        if length > FUNCTION_LINES:
            long.append(f"{place(path, node.lineno)}: {node.name}: {length} lines, allowed {FUNCTION_LINES}")
    assert not long, "\n".join(long)


def test_nothing_is_asserted_and_no_error_is_swallowed():
    """`python -O` drops assertions; what was caught must be said, raised, or stand in `contextlib.suppress`."""
    wrong = []
    for path in modules().values():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Assert):
                wrong.append(f"{place(path, node.lineno)}: assert")
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                wrong.append(f"{place(path, node.lineno)}: except without a kind")
            if isinstance(node, ast.ExceptHandler) and all(isinstance(line, ast.Pass) for line in node.body):
                wrong.append(f"{place(path, node.lineno)}: except that passes")
    assert not wrong, "\n".join(wrong)
