"""The rules of the house, read off the source: who imports whom, what library code never does, how long things are."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = [p for folder in ("vtprune", "kernels") for p in sorted((ROOT / folder).rglob("*.py"))]
EVERYTHING = [
    *LIBRARY,
    *(p for folder in ("benchmarks", "demos", "tests") for p in sorted((ROOT / folder).rglob("*.py"))),
]

# folder or file -> what it may not import, not even inside a function
MAY_NOT_IMPORT = {
    "kernels": {"vtprune", "transformers", "benchmarks", "demos"},
    "vtprune": {"triton", "gradio", "datasets", "ray", "matplotlib", "torchvision", "benchmarks", "demos", "tests"},
    "vtprune/tokens.py": {"vtprune", "transformers"},
    "vtprune/policies": {"transformers", "vtprune.pruner", "vtprune.families", "vtprune.api", "torch.nn"},
    "vtprune/blocks": {"transformers", "vtprune.pruner", "vtprune.families", "vtprune.api", "torch.nn"},
    "vtprune/cache_scores": {"transformers", "vtprune", "torch.nn"},
    "vtprune/families": {"vtprune.pruner", "vtprune.policies", "vtprune.api", "vtprune_kernels"},
    "benchmarks": {"demos", "tests"},
    "demos": {"benchmarks", "tests"},
}
# parts of the above that are allowed after all
MAY_IMPORT = {"torch.nn.functional"}
# ... and for whom: the harness runs on clusters and draws plots, the demo has a page, which the library proper does not
# ... and scores of cache entries know tensors, kernels and each other
MAY_IMPORT_IN = {
    "vtprune/demo/page": {"gradio"},
    "vtprune/bench": {"ray", "matplotlib"},
    "vtprune/lmms_eval": {"lmms_eval"},
    "vtprune/cache_scores": {"vtprune.cache_scores"},
}
# parts that the rest of the library does not know, and how the names of files that do begin
KNOWN_BY = {
    "vtprune.bench": ("vtprune/cli/bench", "vtprune/lmms_eval"),
    "vtprune.demo": ("vtprune/cli/demo",),
    "vtprune.lmms_eval": ("vtprune/lmms_eval",),
}

# what a module of the library may import at its top; whatever else it needs, it imports where it is used
CORE = {"vtprune", "vtprune_kernels", "torch", "transformers", "numpy", "safetensors", "PIL", *sys.stdlib_module_names}

# the pruner, its part for sites inside a layer, the oracle of the self-test and what looks ahead, which hook a model
# that is not wrapped while they run it
MAY_REGISTER_HOOKS = {"vtprune/pruner.py", "vtprune/inside.py", "vtprune/selftest.py", "vtprune/lookahead.py"}
MAY_READ_THE_ENVIRONMENT = {"kernels/vtprune_kernels/dispatch.py"}
MAY_READ_THE_CLOCK = {"benchmarks/measure.py"}
MAY_ASK_FOR_THE_DEVICE = {"kernels/vtprune_kernels/dispatch.py", "kernels/vtprune_kernels/merge.py"}

LONGEST_FUNCTION, LONGEST_FILE = 60, 400

Checker = Callable[[ast.Module], list[str]]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def python_files(where: str) -> list[Path]:
    path = ROOT / where
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def found(checker: Checker, paths: list[Path]) -> list[str]:
    return [f"{name(path)}: {sin}" for path in paths for sin in checker(parse(path))]


def imported(node: ast.AST) -> list[str]:
    """Dotted names that a statement imports: ``from torch import nn`` is torch.nn."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return []


def inside(part: str, whole: str) -> bool:
    return part == whole or part.startswith(whole + ".")


def run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """The statements that importing a module runs: functions are not entered, nor is what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from run_on_import(child)


@pytest.mark.parametrize("where", MAY_NOT_IMPORT)
def test_no_forbidden_import(where):
    for path in python_files(where):
        own = [allowed for part, allowed in MAY_IMPORT_IN.items() if part in name(path)]
        for module in (m for node in ast.walk(parse(path)) for m in imported(node)):
            if not any(inside(module, allowed) for allowed in MAY_IMPORT.union(*own)):
                bad = [b for b in MAY_NOT_IMPORT[where] if inside(module, b)]
                assert not bad, f"{name(path)} imports {module}; {where} may not import {bad[0]}"


@pytest.mark.parametrize("part", KNOWN_BY)
def test_the_library_proper_does_not_know(part):
    """The harness and the plug-in use the library; nobody who prunes needs them."""
    own = part.replace(".", "/")
    for path in python_files("vtprune"):
        if own not in name(path) and not name(path).startswith(KNOWN_BY[part]):
            modules = [m for node in ast.walk(parse(path)) for m in imported(node)]
            assert not any(inside(m, part) for m in modules), f"{name(path)} imports {part}"


def imports_at_the_top(tree: ast.Module) -> list[str]:
    return [module for node in run_on_import(tree) for module in imported(node)]


def test_the_library_imports_only_its_core_at_the_top():
    for path in LIBRARY:
        allowed = CORE | ({"triton"} if path.name.endswith("_triton.py") else set())
        # a subclass needs its base class at once; nobody else imports this file
        allowed |= {"lmms_eval", "loguru"} if name(path) == "vtprune/lmms_eval/model.py" else set()
        # layout and callbacks; nobody imports them but vtprune demo, when it runs
        allowed |= {"gradio"} if name(path).startswith("vtprune/demo/page/") else set()
        for module in imports_at_the_top(parse(path)):
            message = f"{name(path)} imports {module} at its top; import it where it is used"
            assert module.split(".")[0] in allowed, message


def test_triton_is_imported_by_kernels_alone():
    for path in LIBRARY:
        modules = [m for node in ast.walk(parse(path)) for m in imported(node)]
        if not path.name.endswith("_triton.py"):
            assert not any(inside(m, "triton") for m in modules), f"{name(path)} imports triton"


def test_every_kernel_stands_beside_its_reference():
    kernels = sorted((ROOT / "kernels/vtprune_kernels").glob("*_triton.py"))
    assert kernels
    for path in kernels:
        reference = path.with_name(path.name.replace("_triton", ""))
        assert reference.exists(), f"{name(path)} has no {reference.name}"
        functions = {n.name for n in parse(reference).body if isinstance(n, ast.FunctionDef)}
        assert any(f.endswith("_reference") for f in functions), f"{name(reference)} defines no reference"


def test_kernels_folder_is_not_a_package():
    """transformers imports Hugging Face's ``kernels``; a package of that name at the root would answer instead."""
    assert not (ROOT / "kernels/__init__.py").exists()


def python(code: str) -> str:
    """Standard output of a fresh interpreter that finds the packages as the tests do."""
    path = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'kernels')!r}]\n"
    done = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_vtprune_is_light():
    """Oracle: the modules of a fresh interpreter after the import. No model class, no optional package."""
    modules = python("import vtprune; print(*sys.modules, sep='\\n')").split()
    assert "vtprune" in modules and "torch" in modules
    heavy = re.compile(r"(triton|gradio|datasets|matplotlib|pandas|pyarrow|ray|av|decord|rich|torchvision)(\..*)?")
    model = re.compile(r"transformers\.models\.(?!auto\.).*\.modeling_.*")
    assert [m for m in modules if heavy.fullmatch(m) or model.fullmatch(m)] == []


def test_importing_vtprune_changes_nobody_else():
    """Oracle: the attention functions of transformers and the public names of torch.nn.Module, before and after."""
    code = """
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

def state():
    owners = (nn.Module, PreTrainedModel)
    return dict(ALL_ATTENTION_FUNCTIONS.items()), [dict(vars(owner)) for owner in owners]

before = state()
import vtprune
print(state() == before)
"""
    assert python(code).split() == ["True"]


def files_with(pattern: str, folders: tuple[str, ...]) -> set[str]:
    paths = [p for folder in folders for p in python_files(folder)]
    return {name(p) for p in paths if re.search(pattern, p.read_text(encoding="utf-8"))}


def test_only_the_pruner_registers_hooks():
    assert files_with(r"register_forward|register_full_backward|register_module_", ("vtprune",)) == MAY_REGISTER_HOOKS


def test_only_the_dispatch_reads_the_environment():
    assert files_with(r"\bos\.environ|\bgetenv\b", ("vtprune", "kernels")) <= MAY_READ_THE_ENVIRONMENT


def test_only_the_stopwatch_reads_the_clock():
    assert files_with(r"perf_counter|time\.time\(|monotonic\(", ("kernels", "benchmarks")) == MAY_READ_THE_CLOCK


def test_only_the_dispatch_asks_whether_a_kernel_may_run():
    assert files_with(r"\bis_cuda\b", ("kernels",)) <= MAY_ASK_FOR_THE_DEVICE


def called(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def keyword(node: ast.Call, argument: str) -> object:
    return next((ast.unparse(k.value) for k in node.keywords if k.arg == argument), None)


def asserts(tree: ast.Module) -> list[str]:
    """They vanish under -O, and read as bugs: a wrong call deserves a ValueError."""
    return [f"assert in line {n.lineno}" for n in ast.walk(tree) if isinstance(n, ast.Assert)]


def prints(tree: ast.Module) -> list[str]:
    return [f"print in line {n.lineno}" for n in ast.walk(tree) if called(n) in ("print", "pprint")]


def broad_excepts(tree: ast.Module) -> list[str]:
    handlers = [n for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler)]
    kinds = ((n, "BaseException" if n.type is None else ast.unparse(n.type)) for n in handlers)
    return [f"broad except in line {n.lineno}" for n, kind in kinds if re.search(r"\b(Base)?Exception\b", kind)]


def evals(tree: ast.Module) -> list[str]:
    return [f"{called(n)} in line {n.lineno}" for n in ast.walk(tree) if called(n) in ("eval", "exec", "compile")]


def unpickles(tree: ast.Module) -> list[str]:
    """Loading a pickle runs whatever is in it. ``__reduce__``, for those who pickle our objects, is fine."""
    sins = []
    for node in ast.walk(tree):
        pickles = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
        sins += [f"imports {m}" for m in imported(node) if m.split(".")[0] in pickles]
        if called(node) == "torch.load" and keyword(node, "weights_only") != "True":
            sins.append(f"torch.load without weights_only=True in line {node.lineno}")
        if called(node) in ("np.load", "numpy.load") and keyword(node, "allow_pickle") not in (None, "False"):
            sins.append(f"np.load with allow_pickle in line {node.lineno}")
    return sins


def replacements(tree: ast.Module) -> list[str]:
    """Another object's class or forward is not assigned to: hooks can be removed, those cannot be told apart later."""
    sins = []
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        sins += [f"assigns {ast.unparse(t)}" for t in targets if getattr(t, "attr", "") in ("forward", "__class__")]
        if (
            called(node) == "setattr"
            and len(node.args) > 1
            and ast.unparse(node.args[1]) in ("'forward'", "'__class__'")
        ):
            sins.append(f"sets {ast.unparse(node.args[1])} in line {node.lineno}")
        if called(node) in ("reload", "importlib.reload"):
            sins.append(f"reloads a module in line {node.lineno}")
    return sins


def globals_that_change(tree: ast.Module) -> list[str]:
    return [f"global in line {n.lineno}" for n in ast.walk(tree) if isinstance(n, ast.Global)]


def relative_imports(tree: ast.Module) -> list[str]:
    return [f"imports {m}" for node in ast.walk(tree) for m in imported(node) if m.startswith(".")]


def long_functions(tree: ast.Module) -> list[str]:
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lengths = [(f.name, f.end_lineno - f.lineno + 1) for f in functions]
    return [f"{function} has {length} lines" for function, length in lengths if length > LONGEST_FUNCTION]


def missing_docstring(tree: ast.Module) -> list[str]:
    return [] if ast.get_docstring(tree) else ["does not open with a sentence that says what it is"]


SINS: dict[Checker, str] = {
    asserts: "def f(x):\n    assert x > 0",
    prints: "print('done')",
    broad_excepts: "try:\n    pass\nexcept (OSError, Exception):\n    pass",
    evals: "eval('1 + 1')",
    unpickles: "from pickle import loads",
    replacements: "def f(layer):\n    layer.forward = None",
    globals_that_change: "def f():\n    global state",
    relative_imports: "from . import tokens",
    long_functions: "def f():\n" + "    pass\n" * LONGEST_FUNCTION,
    missing_docstring: "import torch",
}
MORE_SINS = [
    (broad_excepts, "try:\n    pass\nexcept:\n    pass"),
    (unpickles, "import torch\ntorch.load('x')"),
    (unpickles, "np.load('x', allow_pickle=True)"),
    (replacements, "setattr(layer, 'forward', None)"),
    (replacements, "layer.__class__ = Other"),
]


@pytest.mark.parametrize("checker", SINS, ids=lambda checker: checker.__name__)
def test_library_code_never(checker):
    assert found(checker, LIBRARY) == []


@pytest.mark.parametrize(("checker", "code"), [*SINS.items(), *MORE_SINS])
def test_each_rule_can_be_broken(checker, code):
    """Oracle: code that breaks the rule, and an innocent module that does not."""
    assert checker(ast.parse(code))
    assert not checker(
        ast.parse('"""An innocent module."""\ndef f(x):\n    y = x\n    return torch.load(y, weights_only=True)')
    )


def test_what_runs_on_import_is_told_from_what_does_not():
    top = "import a\nif b:\n    import c\nclass G:\n    import d\n"
    code = top + "if TYPE_CHECKING:\n    import no\ndef f():\n    import no\n"
    assert imports_at_the_top(ast.parse(code)) == ["a", "c", "d"]


def test_files_are_short():
    long = [
        f"{name(p)}: {n} lines"
        for p in LIBRARY
        if (n := len(p.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    ]
    assert long == []


def test_no_file_is_a_drawer():
    """A file is called after the one thing in it."""
    drawer = re.compile(r"_*(utils?|common|helpers?|misc|tools?)\d*_*|.*_(utils?|helpers?|v\d+)")
    assert [
        name(p) for p in EVERYTHING if any(drawer.fullmatch(part) for part in p.relative_to(ROOT).with_suffix("").parts)
    ] == []


def written_by_us() -> list[Path]:
    """The text of the repository: what git would track, by its endings, wherever git is not asked."""
    folders = ("vtprune", "kernels", "benchmarks", "demos", "tests", "requirements", ".ci")
    paths = [*ROOT.glob("*.*"), ROOT / "Makefile", *(p for f in folders for p in (ROOT / f).rglob("*"))]
    texts = {".py", ".md", ".toml", ".txt", ".json", ".jsonl", ".html", ".css", ".yaml", ".yml", ""}
    return [p for p in paths if p.is_file() and p.suffix in texts and "__pycache__" not in p.parts]


def test_no_word_of_the_machine_it_was_written_on():
    """Paths of one machine, and documents that are not in the repository, mean nothing to a reader."""
    slash = "/"
    machine = rf"(?<![\w.])/(work|root|home|mnt|opt|Users){slash}\w"
    private = rf"\b(house|engine|environment|anchors){re.escape('.')}md\b|\bshared{slash}(specs|prototype|hooks)\b"
    bad = re.compile(f"{machine}|{private}")
    assert (
        bad.search(f"see {slash}work{slash}main")
        and bad.search("engine" + ".md")
        and not bad.search("a/work/b ../home/x")
    )
    hits = []
    for path in written_by_us():
        text = path.read_text(encoding="utf-8", errors="replace")
        hits += [f"{name(path)}: {match.group()}" for match in bad.finditer(text)]
    assert hits == []
