"""Allowed imports, read from the sources and checked in fresh interpreters."""

import ast
import subprocess
import sys
from functools import cache

import pytest
from paths import ROOT

TORCH_FREE = (
    *("job", "plan", "errors", "text.prompt", "text.tokens"),
    *(
        "sampling.schedules",
        "sampling.samplers",
        "sampling.dpm_solver",
        "sampling.guidance",
        "sampling.prediction",
    ),
    *("weights.checkpoint", "weights.detect", "weights.architecture", "weights.key_map"),
    *("weights.families", "weights.embedded", "weights.header", "weights.naming", "weights.quantization"),
    *("weights.prefetch", "weights.sources"),
)
HEAVY = ("torch", "diffusers", "transformers")


def list_modules(package):
    """Return the dotted names of all modules of a package."""
    paths = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / package).rglob("*.py"))
    return sorted(".".join(path.parts) for path in paths if path.name != "__init__")


def test_modules_are_found_in_every_folder():
    assert {"pipelines.plan", "pipelines.sampling.samplers"} <= {*list_modules("pipelines")}
    assert {"server.app", "server.request.resolve"} <= {*list_modules("server")}


def is_typing_only(node):
    return ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def iter_imports(node, lazy):
    """Yield the names that a syntax tree imports at run time; those inside functions only with `lazy`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield str(child.module)
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.If) and is_typing_only(child):
            for other in child.orelse:
                yield from iter_imports(ast.Module([other], []), lazy)
        elif lazy or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from iter_imports(child, lazy)


@cache
def direct_imports(module, lazy=False):
    path = ROOT / f"{module.replace('.', '/')}.py"
    if not path.exists():
        return frozenset()
    return frozenset(iter_imports(ast.parse(path.read_text("utf-8")), lazy))


@cache
def all_imports(module):
    """Return everything that importing a module imports, directly or through our own modules."""
    names = set()
    queue = [module]
    while queue:
        for name in direct_imports(queue.pop()) - names:
            names.add(name)
            queue.append(name)
    return frozenset(names)


def select_heavy(names):
    return {name for name in names if name.split(".")[0] in HEAVY}


def run_python(code):
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)


@pytest.mark.parametrize("module", list_modules("pipelines"))
def test_pipelines_do_not_import_the_server(module):
    assert not {
        name for name in direct_imports(module, lazy=True) if name.split(".")[0] in {"server", "demo"}
    }


@pytest.mark.parametrize("name", TORCH_FREE)
def test_the_torch_free_half_of_pipelines_imports_no_torch(name):
    assert not select_heavy(all_imports(f"pipelines.{name}"))
    assert not {
        name
        for name in select_heavy(direct_imports(f"pipelines.{name}", lazy=True))
        if not name.startswith("torch")
    }


@pytest.mark.parametrize("module", list_modules("server"))
def test_only_the_device_and_loading_import_the_torch_half_of_pipelines(module):
    torch_half = {name for name in list_modules("pipelines") if select_heavy(all_imports(name))}
    assert "pipelines.pipeline" in torch_half
    torch_imports = direct_imports(module, lazy=True) & torch_half | select_heavy(
        direct_imports(module, lazy=True)
    )
    assert not torch_imports or module in ("server.engine.device", "server.engine.loading")


@pytest.mark.parametrize(
    "module", ["server.app", "server.request.schema", "server.request.resolve", "server.cli.main"]
)
def test_importing_the_server_does_not_import_torch(module):
    done = run_python(f"import sys, {module}; sys.exit(' '.join({set(HEAVY)} & set(sys.modules)) or 0)")
    assert done.returncode == 0, done.stderr


def test_help_works_without_torch():
    hidden = "; ".join(f"sys.modules[{name!r}] = None" for name in HEAVY)
    done = run_python(
        f"import sys; {hidden}; sys.argv = ['naiad', '--help']; from server.cli.main import main; main()"
    )
    assert done.returncode == 0, done.stderr
    assert "serve" in done.stdout
