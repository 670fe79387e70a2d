"""The house: short files, one file of a name, signs on rooms, imports that point one way. Found by parsing."""

import ast
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE, TESTS = ROOT / "dcp_ref", ROOT / "tests"
PAPER = [  # in reading order
    "config", "sigmoid", "layers", "interaction", "attention", "choosing", "policies", "block", "model"]
LEVEL = {"paper": 0, "checkpoints": 1, "runtime": 2, "native": 3, "training": 4, "analysis": 4, "tracing": 4,
         "testing": 4, "corpus": 4, "bench": 5, "cli": 5}  # a room imports from lower levels, and from itself
ALSO = {
    ("runtime", "tracing.recording"): "generate returns a Trace where one is asked for, and imports it only then",
    ("runtime", "public.__version__"): "what is saved belongs to a version of the package",
    ("tracing", "analysis.table"): "tables look alike",
    ("corpus", "analysis.windows"): "a document is scored in the windows in which a text is measured: one definition",
    ("corpus", "analysis.texts"): "bytes are counted as they are there",
    ("corpus", "training.data"): "a document is tokenized as training and measuring do",
    ("cli", "bench"): "the command has a subcommand that benchmarks",
    ("analysis", "training.data"): "a text is measured as training reads, tokenizes and cuts it: one definition",
    ("analysis", "training.parallel"): "texts are tokenized side by side, as in training",
    ("analysis", "training.step"): "share_kept is the number that training reports",
}
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted({file.parent for file in FILES} - {PACKAGE})


class Import(NamedTuple):
    line: int
    module: str  # as written, with the name after `import`: dcp_ref.runtime.cache.KVCache
    in_function: bool


def room_of(file: Path) -> str:
    """The room of a file; the paper's files have one too. "public" is the package's own `__init__` and `__main__`."""
    if file.parent != PACKAGE:
        return file.relative_to(PACKAGE).parts[0]
    return "public" if file.stem.startswith("__") else "paper"


def imports_of(file: Path) -> list[Import]:
    """All that a file imports, wherever in it."""
    found = []

    def visit(node: ast.AST, in_function: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(node.lineno, name.name, in_function) for name in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are written whole"
            found.extend(Import(node.lineno, f"{node.module}.{name.name}", in_function) for name in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child, in_function or isinstance(node, (ast.FunctionDef, ast.Lambda)))

    visit(ast.parse(file.read_text(encoding="utf-8")), False)
    return found


def own_imports(file: Path) -> list[tuple[Import, str, str]]:
    """What a file imports of this package: the import, the room that it is from, and its file in that room."""
    found = []
    for each in imports_of(file):
        package, *parts = each.module.split(".")
        if package != "dcp_ref":
            continue
        if (PACKAGE / parts[0]).is_dir():
            found.append((each, parts[0], parts[1] if len(parts) > 1 else "__init__"))
        else:
            found.append((each, "paper" if (PACKAGE / f"{parts[0]}.py").exists() else "public", parts[0]))
    return found


def shown(file: Path) -> str:
    return str(file.relative_to(ROOT))


def lines_of(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize(("files", "most"), [(FILES, 200), (sorted((ROOT / "csrc").glob("*.[ch]")), 250)],
                         ids=["dcp_ref", "csrc"])
def test_a_file_is_read_at_once(files, most):
    assert {shown(file): n for file in files if (n := lines_of(file)) > most} == {}


def test_no_two_files_have_one_name_but_twins():
    """A file of native/ has the name of its NumPy twin, in runtime/ or at the root."""
    twins = [PACKAGE / "native" / file.name for file in FILES if room_of(file) in ("runtime", "paper")]
    names = Counter(file.name for file in FILES if file.name != "__init__.py" and file not in twins)
    assert [name for name, n in names.items() if n > 1] == []


def test_only_native_touches_cffi():
    """Neither the module, nor the ffi and lib that native/ shares among its files, nor the extension by its name."""
    others = [file for file in FILES if room_of(file) != "native"]
    found = [f"{shown(file)}:{each.line} imports {each.module}" for file in others for each in imports_of(file)
             if each.module.split(".")[0] in ("cffi", "_cffi_backend")
             or (each.module.startswith("dcp_ref.native.") and each.module.split(".")[-1] in ("ffi", "lib"))]
    assert found == []
    assert [shown(file) for file in others if "dcp_ref._native" in file.read_text(encoding="utf-8")] == []


def test_the_paper_imports_itself_alone_in_reading_order():
    assert sorted(file.stem for file in FILES if room_of(file) == "paper") == sorted(PAPER)
    for n, name in enumerate(PAPER):
        for each, room, module in own_imports(PACKAGE / f"{name}.py"):
            assert room == "paper", f"{name}.py:{each.line} imports {each.module}"
            assert module in PAPER[:n], f"{name}.py:{each.line} imports {module}, which is read later"


def refusal(file: Path, each: Import, room: str, module: str) -> str | None:
    """Why a file of a room must not import this; None where it may."""
    own = room_of(file)
    if own in ("public", "paper", room) or (own, room) in ALSO or (own, f"{room}.{module}") in ALSO:
        return None
    if room == "public":  # a name of the package's own __init__, which imports the engine
        return None if own in ("cli", "bench") else f"{own} imports {each.module} from the package itself"
    if (own, room) == ("runtime", "native"):
        return None if each.in_function else "runtime chooses a backend by name, and imports native only then"
    return None if LEVEL[room] < LEVEL[own] else f"{own} imports {each.module}"


def test_imports_point_one_way():
    found = [(f"{shown(file)}:{each.line}", refusal(file, each, room, module))
             for file in FILES for each, room, module in own_imports(file)]
    assert [(where, why) for where, why in found if why] == []


def test_every_exception_is_in_use():
    used = {(room_of(file), name) for file in FILES for _, room, module in own_imports(file)
            for name in (room, f"{room}.{module}")}
    assert set(ALSO) - used == set()


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_has_a_sign(room):
    """A few lines say what the room is for; and no name that the sign imports hides a file of the room."""
    assert room.name in LEVEL, "an unknown room: on which level is it?"
    sign = room / "__init__.py"
    text = ast.get_docstring(ast.parse(sign.read_text(encoding="utf-8")))
    assert text and text.splitlines()[0].endswith(".") and len(text) > 60
    files = {file.stem for file in room.glob("*.py")}
    names = [each.module.split(".")[-1] for each, own, module in own_imports(sign) if own == room.name and
             each.module != f"dcp_ref.{own}.{module}"]
    assert files & set(names) == set()


def test_the_tests_mirror_the_rooms():
    rooms = {room.name for room in ROOMS} | {"paper", "project"}
    assert {file.parent.name for file in TESTS.rglob("test_*.py")} <= rooms
    helpers = {shown(file) for file in TESTS.rglob("*.py") if not file.name.startswith("test_")}
    assert {name for name in helpers if not name.startswith(("tests/tools/", "tests/fuzz/"))} == \
        {"tests/conftest.py", "tests/mutants.py", "tests/stress.py", "tests/try_wheel.py"}
