"""The house's rules, read off the source: floors point down, each library has its room, and everything says what it is for."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "brainseg_jax").rglob("*.py"))
SHIPPED = [*PACKAGE, *sorted((ROOT / "configs").glob("*.py")), *sorted((ROOT / "converters").glob("*.py"))]

# From the top: a room may import from those below its own line, and from those on it except where FORBIDDEN says otherwise.
FLOORS = (
    ("main", "predict", "evaluate", "plan", "probe", "parameters", "recipes", "__main__", "__init__"),
    ("cli",),
    ("planning",),
    ("training",),
    ("inference", "evaluation"),
    ("qc", "objectives"),
    ("data", "weights"),
    ("config",),
    ("models",),
    ("parallel", "pretrained"),
    ("core",),
)
FORBIDDEN = {"data": ("models", "weights"), "weights": ("data",), "objectives": ("data", "qc")}
# Who may import what; others may not.
ROOMS = {
    "orbax": ("weights/checkpoint.py",),
    "grain": ("data/loader.py",),
    "nibabel": ("data/nifti.py", "data/nifti_write.py"),
    "safetensors": ("weights/safetensors.py",),
    "PIL": ("qc/images.py",),
    "flax": ("models/", "objectives/"),
    "optax": ("training/optim.py", "training/layer_decay.py", "training/step.py"),
    "torch": ("converters/certify.py",),
    "monai": ("converters/certify.py",),
    "tensorflow": (),
    "clu": (),
}


def name(path):
    return path.relative_to(ROOT).as_posix()


def imports(path):
    """(module, names) of every import, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module, tuple(alias.name for alias in node.names)


def parts(path):
    """The rooms of the package that a file imports from, e.g. {"data", "errors"}."""
    for module, names in imports(path):
        if module == "brainseg_jax":
            yield from names
        elif module.startswith("brainseg_jax."):
            yield module.split(".")[1]


def room(path):
    return path.relative_to(ROOT / "brainseg_jax").parts[0].removesuffix(".py")


def floor(part):
    found = [i for i, parts in enumerate(FLOORS) if part in parts]
    assert found, f"{part} stands on no floor; give it one in FLOORS"
    return found[0]


def test_what_stands_on_a_floor_is_there():
    assert {part for parts in FLOORS for part in parts} - {room(path) for path in PACKAGE} == set()


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_imports_point_down(path):
    here = room(path)
    for part in parts(path):
        assert floor(part) >= floor(here), f"{here} imports {part} from a floor above"
        assert part not in FORBIDDEN.get(here, ()), f"{here} imports {part}"


@pytest.mark.parametrize("path", SHIPPED, ids=name)
def test_each_library_has_its_room(path):
    for module, _ in imports(path):
        rooms = ROOMS.get(module.partition(".")[0])
        inside = name(path).removeprefix("brainseg_jax/")
        assert rooms is None or inside.startswith(rooms), f"{name(path)} imports {module}"


@pytest.mark.parametrize("path", SHIPPED, ids=name)
def test_what_jax_may_move_is_asked_for_by_of_jax(path):
    """An import of a private or experimental name is a traceback in the release that moves it."""
    assert [module for module, _ in imports(path) if module.startswith(("jax._", "jax.experimental", "jax.lib", "jaxlib"))] == []


@pytest.mark.parametrize("path", SHIPPED, ids=name)
def test_every_module_says_what_it_is_for(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{name(path)} begins without a docstring"


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_every_public_function_and_class_has_a_docstring(path):
    nodes = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    assert [n.name for n in nodes if not n.name.startswith("_") and not ast.get_docstring(n)] == []


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_all_modules_can_be_imported_together(path):
    """Flags are global: two commands that define one of the same name cannot be used in one process."""
    importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


COMMANDS = [p for p in (*SHIPPED, *sorted((ROOT / "scripts").rglob("*.py"))) if '__name__ == "__main__"' in p.read_text()]


@pytest.mark.parametrize("path", COMMANDS, ids=name)
def test_nothing_beside_a_command_hides_the_standard_library(path):
    """`python FOLDER/COMMAND.py` looks into FOLDER first, whatever the standard library imports."""
    assert [p.name for p in path.parent.iterdir() if p.stem in sys.stdlib_module_names] == []


@pytest.mark.parametrize("command", ["main", "predict"])
def test_a_command_may_be_called_by_its_path(command):
    done = subprocess.run([sys.executable, f"brainseg_jax/{command}.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "--" in done.stdout


def test_there_is_no_utils():
    assert [name(path) for path in SHIPPED if path.stem in ("utils", "helpers", "common", "misc")] == []


def test_checked_files_do_not_postpone_annotations():
    """jaxtyping checks shapes at run time: annotations that are text would go unchecked."""
    assert [name(path) for path in PACKAGE if "__future__" in {module for module, _ in imports(path)}] == []


@pytest.mark.parametrize("path", [path for path in PACKAGE if room(path) in ("config", "weights")], ids=name)
def test_config_and_weights_know_of_networks_what_encoders_say_of_themselves(path):
    assert {module for module, _ in imports(path) if module.startswith("brainseg_jax.models")} <= {"brainseg_jax.models.encoders"}


def test_a_config_is_checked_before_jax_is_imported():
    """A mistyped flag is answered at once, and what JAX reads when it is imported can still be set."""
    code = (
        "import sys, brainseg_jax.config.checks, brainseg_jax.config.recipes, brainseg_jax.cli.config_flags; sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_an_encoder_is_one_file_and_one_line():
    """No room but models knows that there is a residual U-Net: what others ask of an encoder, it says of itself."""
    words = {"resenc", "unet", "unet_spec"}

    def known(path):
        for node in ast.walk(ast.parse(path.read_text())):
            text = next((value for field in ("value", "attr", "id") if isinstance(value := getattr(node, field, None), str)), "")
            if text.partition(".")[0] in words:
                yield text

    assert {name(path).removeprefix("brainseg_jax/models/") for path in PACKAGE if any(known(path))} == {"unet_spec.py", "encoders.py"}
