"""The reference pages of the documentation, in docs/reference/, read off the source.

    python scripts/reference.py

Writes `config.md` (keys, defaults and meanings), `commands.md` (flags, from the commands' own parsers), `python.md` (signatures and
docstrings) and `formats.md` (files that are read and written). What a column or a key of a file means stands here, and one that has no
meaning yet is an error.
"""

import argparse
import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

from absl import flags

from brainseg_jax.cli.arguments import Parser
from brainseg_jax.cli.brainseg import COMMANDS
from brainseg_jax.config.reference import config_page
from brainseg_jax.core.errors import exit_code
from brainseg_jax.core.runtime import cache_folder
from brainseg_jax.data import labels, manifest
from brainseg_jax.data.synthesis import priors
from brainseg_jax.pretrained import DEFAULT
from brainseg_jax.weights import single_file

ROOT = Path(__file__).parents[1]
WIDE = 80  # characters of a signature in one line
# What python.md shows: a heading, the file, and of it functions and classes (with their public methods).
API = (
    ("Predict", "inference/prediction.py", ("predict", "Prediction")),
    ("Predict many scans", "inference/predictor.py", ("predictor",)),
    ("Networks", "inference/network.py", ("load", "Network")),
    ("Losses", "objectives/losses.py", ("dice_cross_entropy", "dice_of_present_cross_entropy", "log_dice_of_present_cross_entropy")),
    ("Scores", "evaluation/metrics.py", ("score", "definitions")),
    ("Scans", "data/nifti.py", ("Scan", "read", "read_labels", "from_array", "from_image")),
    ("Label maps like a scan", "data/nifti_write.py", ("write_like",)),
    ("Standardisation", "data/preprocess.py", ("spec", "Spec", "standardize", "Standardized")),
    ("Label tables", "data/labels.py", ("read_table", "Table", "Structure", "grouping", "lookup", "swap")),
    ("Manifests", "data/manifest.py", ("read_manifest", "Row")),
)

MANIFEST = {
    "subject": "required: the subject; never in two splits",
    "session": "optional: the visit",
    "image": "required: a .nii, .nii.gz, .mgz or .mgh file, relative to the manifest; several of a subject, such as T1 and FLAIR, "
    'separated by ";"',
    "labels": 'optional: label maps on the image\'s grid, in any order of its voxels; several separated by ";"',
    "scheme": "the label table of each label map: a name, or the path of a TSV file of your own",
    "dataset": "optional: the data set; a subject is a pair of data set and name",
    "split": "`train`, `val`, `test`, `excluded`, or empty",
    "source": "empty for a scan; `synth` for labels without an image, of which scans are made",
}
TABLE = {
    "id": "required: the voxel value, up to 65535; 0 is the background and has no line",
    "name": 'required: plain words, the side first: "Left hippocampus"',
    "abbreviation": "a short name",
    "freesurfer": 'the FreeSurfer id, or several joined by "/" where the structure is made of them; empty where FreeSurfer has none',
    "part_of": 'FreeSurfer ids of what it is part of, for tables that do not have it; "2/41" is whichever of the two lies nearer',
    "partner": "required: the id of the same structure on the other side, its own id on the midline",
    "colour": "#rrggbb",
    "tissue": "",  # filled in from the source
    "note": "why, where it could be otherwise",
}
PRIOR = {
    "id": "an id of the table `head`, 0 for air",
    "mean": "mean intensity of the tissue, from 0 (the background) to 1 (the brightest of a head)",
    "mean_sd": "standard deviation of that mean between subjects",
    "spread": "standard deviation of the intensity within the tissue",
    "spread_sd": "standard deviation of that spread between subjects",
}
CARD = {
    "format": "the version of this format; cards from before there was one have none",
    "config": "every config key with its value and where it came from",
    "spec": "the standardisation",
    "subjects": "hashes of data set and name of the subjects in the training data",
    "subjects_before": "the same of the pretraining that it began with",
    "steps": "training steps",
    "labels": "the label table of the classes",
    "cohort": "by label table and structure: mean volume in ml, standard deviation and number of subjects, for the QC report",
    "dice": "by label table and structure: Dice on the test set",
}
RUN = {
    "config.json": "every value and where it came from",
    "run.json": "every start of the run with its command, versions, commit, hardware, mesh, and hashes of manifest, split and scans",
    "metrics.jsonl": "one JSON object a line: step, kind, time, and metrics by name",
    "tb/": "the same for TensorBoard (extra `view`)",
    "split.tsv": "the split of every scan, the test set included",
    "failures.csv": "scans that were set aside, with the reason",
    "checkpoints/STEP/": "the latest two, and the best on validation volumes; sealed with SHA-256",
    "pictures/": "slices at each evaluation (extra `view`)",
}
SIDECAR = {
    "Sources": "the scan, or the images of a subject",
    "SpatialReference": "the scan whose grid the label map has",
    "Description": "structures, networks and versions",
    "MadeFrom": "a hash of scan, networks and options: tells whether the scan has to be segmented again",
    "Entropy": "mean entropy inside the brain, in nats a voxel",
    "Remarks": "remarks on how the scan was read that are no errors",
    "Volumes": "of each structure its name, id, `voxel_ml` and `soft_ml`",
    "Score": "how urgently somebody should look; 0 without flags",
    "Flags": "what looks wrong, in sentences",
    "SHA256": "of the files that were written, so that damage and corrections by hand are noticed",
}
SCORES = {
    "subject, structure, id": "what is scored; the id is that of the table in which both sides are compared",
    "dice, hd95, assd, nsd": "the metrics that were asked for",
    "pred_ml, ref_ml": "volumes of prediction and reference, in ml",
    "absent": "`prediction`, `reference` or `both`, where the structure is missing; else empty",
}
VOLUMES = {
    "subject, session, scan": "which scan",
    "structure, id": "which structure",
    "voxel_ml": "its volume by counting voxels",
    "soft_ml": "the sum of its probability, which overstates structures of a few millilitres",
}


def main() -> int:
    """Writes all pages. Returns the exit code."""
    parser = Parser("python scripts/reference.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "reference", help="the folder to write to (docs/reference)")
    return exit_code(lambda: write(parser.parse_args().out))


def write(out: Path) -> int:
    """Writes all pages into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    for name, page in (("config", config_page), ("commands", commands_page), ("python", python_page), ("formats", formats_page)):
        (out / f"{name}.md").write_text(page())
    return 0


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [head, tuple("---" for _ in head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---- config keys


# ---- commands


def commands_page() -> str:
    """The flags of all commands."""
    text = ["# Commands", "The flags that each `--help` lists. What a user can correct ends a command with one line and exit code 2."]
    text += [table(("command", ""), [(f"[`brainseg {name}`](#brainseg-{name})", does) for name, (_, does) in COMMANDS.items()])]
    codes = [
        ("0", "done"),
        ("1", "`brainseg plan`: the step does not fit"),
        ("2", "a user error, in one line on stderr"),
        ("3", "some scans or pairs could not be treated; the others were"),
        ("130", "stopped by Ctrl-C"),
    ]
    text += [table(("exit code", ""), codes)]
    for name, (module, does) in COMMANDS.items():
        text += [f"## brainseg {name}", f"{does[0].upper()}{does[1:]}."]
        if parser := parser_of(importlib.import_module(module)):
            text += flags_of(parser)
        else:
            rows = [(f"`--{flag.name}`", flag.help.replace("\n", " "), default(flag.default)) for flag in absl_flags(module)]
            text += [table(("flag", "", "default"), rows)]
    return "\n\n".join(text).replace(str(cache_folder()), "~/.cache/brainseg_jax") + "\n"


def parser_of(module: Any) -> argparse.ArgumentParser | None:
    """The parser that a command builds; None for those whose flags are absl's."""
    found: list[argparse.ArgumentParser] = []

    def stop(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        found.append(self)
        raise SystemExit(0)

    if "argv" in inspect.signature(module.main).parameters and inspect.signature(module.main).parameters["argv"].default is None:
        with mock.patch.object(argparse.ArgumentParser, "parse_args", stop), suppress(SystemExit):
            module.main([])
    return found[0] if found else None


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    """A table of a parser's flags, or, where it has subcommands, one for each."""
    parts = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
    if parts:
        helps = {action.dest: action.help for action in parts._choices_actions}
        return [line for name, sub in parts.choices.items() for line in (f"### {name}", f"{helps[name]}.", *flags_of(sub))]
    rows = []
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            words = (action.help or "") % (vars(action) | {"prog": parser.prog})
            takes = "" if action.nargs == 0 else " ".join(metavars(action))
            name = f"`{' '.join(filter(None, [*action.option_strings[:1], takes]))}`"
            rows.append((name, words + (" (required)" if action.required and action.option_strings else "")))
    return [table(("flag", ""), rows)]


def metavars(action: argparse.Action) -> tuple[str, ...]:
    """What stands for a flag's values in its help."""
    if action.choices and not action.metavar:
        return ("{" + ",".join(map(str, action.choices)) + "}",)
    name = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    return name if isinstance(name, tuple) else (name,)


def absl_flags(module: str) -> Iterator[Any]:
    """The flags that a command defines, and those of a config, which it shares."""
    importlib.import_module(module)
    own = flags.FLAGS.get_flags_for_module(module)
    declared = [flag for flag in flags.FLAGS.get_key_flags_for_module(module) if flag not in own]
    yield from [*declared, *own]


def default(value: Any) -> str:
    """A flag's default in a table."""
    return "" if value in (None, "", False) else f"`{value}`"


# ---- Python


def python_page() -> str:
    """Signatures and docstrings of what is for use from Python."""
    text = [
        "# Python",
        "`import brainseg_jax` gives `brainseg_jax.predict` and `brainseg_jax.load`; the rest is imported from its module. Axes in shapes: "
        "b batch, x y z voxels, c channels, k classes. What a user can correct raises `brainseg_jax.core.errors.InputError`.",
    ]
    for heading, file, names in API:
        module = f"brainseg_jax.{file.removesuffix('.py').replace('/', '.')}"
        nodes = {node.name: node for node in ast.parse((ROOT / "brainseg_jax" / file).read_text()).body if hasattr(node, "name")}
        text += [f"## {heading}", f"`{module}`"]
        for name in names:
            text += described(nodes[name])
    return "\n\n".join(text) + "\n"


def described(node: Any, within: str = "") -> list[str]:
    """A function, or a class with its fields and public methods: signature and docstring."""
    name = f"{within}{node.name}"
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        given = ast.unparse(node.args)
        signature = f"{name}({given}){returns}"
        if len(signature) > WIDE:  # an argument a line
            depth, parts = 0, [""]
            for letter in given:
                depth += (letter in "[(") - (letter in "])")
                parts = [*parts, ""] if letter == "," and not depth else [*parts[:-1], parts[-1] + letter]
            signature = "\n".join([f"{name}(", *(f"    {part.strip()}," for part in parts), f"){returns}"])
    else:
        fields = [ast.unparse(line) for line in node.body if isinstance(line, ast.AnnAssign)]
        signature = "\n    ".join([f"class {name}", *fields])
    said = re.sub(r"\n(?!\n)", " ", ast.get_docstring(node) or "").replace("\n ", "\n\n").replace("[", "\\[").replace("<", "&lt;")
    text = [f"{'####' if within else '###'} {name}", f"```python\n{signature}\n```", said]
    if isinstance(node, ast.ClassDef):
        methods = (part for part in node.body if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"))
        text += [line for method in methods for line in described(method, f"{name}.")]
    return text


# ---- formats


def formats_page() -> str:
    """The files that are read and written, column by column and key by key."""
    tissues = f"for grouping by tissue: {', '.join(labels.TISSUES)}"
    shipped = [(f"`{scheme}`", str(len(labels.read_table(scheme).structures))) for scheme in labels.SCHEMES]
    card = sorted(single_file.read(DEFAULT)[1], key=list(CARD).index)
    text = [
        "# Formats",
        "Tables are UTF-8 text, separated by tabs (`.tsv`) or commas (`.csv`), with a header line.",
        "## Manifest",
        "One line for each scan. Paths are taken from the manifest's own folder.",
        meanings("column", manifest.COLUMNS, MANIFEST),
        "A split file (`split.tsv` of a run) has the columns " + ", ".join(f"`{name}`" for name in manifest.SPLIT_COLUMNS) + ".",
        "## Label table",
        "What each voxel value of a label scheme stands for; tab-separated.",
        meanings("column", labels.COLUMNS, TABLE | {"tissue": tissues}),
        "Tables that come with the package:",
        table(("name", "structures"), shipped),
        "## Prior",
        "What tissues look like in one sequence, for `synth.prior.table`; tab-separated, all columns required. Tissues left out look like "
        "anything.",
        meanings("column", priors.COLUMNS, PRIOR),
        "## Run folder",
        "What a training writes, by default into `runs/` and the config's name.",
        meanings("file", tuple(RUN), RUN),
        "## Card",
        "What a checkpoint, and a network in one file, says about itself: prediction and fine-tuning need nothing else. In a "
        "`.safetensors` file it is JSON in the metadata, sealed together with the numbers by a SHA-256.",
        meanings("key", tuple(card), CARD),
        "## Cache",
        "Standardised volumes, by default in `~/.cache/brainseg_jax` (or `$XDG_CACHE_HOME/brainseg_jax`). A scan is an uncompressed `.npz` "
        "of its image and, for each task, one of its labels as the task's classes, which names the image's. Names hold a hash of all that "
        "decides the content, zip checksums are compared at every read, and a record in the file says how it was made. Any file may be "
        "deleted; it is made again.",
        "## Label map's sidecar",
        "A JSON file beside each predicted label map. Without it the label map counts as somebody else's, or as unfinished.",
        meanings("key", tuple(SIDECAR), SIDECAR),
        "## Volumes",
        "The table of `brainseg predict --vol`.",
        meanings("columns", tuple(VOLUMES), VOLUMES),
        "## Scores",
        "The table of `brainseg evaluate`, one line for each subject and structure.",
        meanings("columns", tuple(SCORES), SCORES),
    ]
    return "\n\n".join(text) + "\n"


def meanings(of: str, names: tuple[str, ...], words: dict[str, str]) -> str:
    """A table of names and what they mean. Raises KeyError for a name that has no meaning here."""
    return table((of, ""), [(", ".join(f"`{part}`" for part in name.split(", ")), words[name]) for name in names])


if __name__ == "__main__":
    sys.exit(main())
