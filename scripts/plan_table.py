"""What the paper's whole study takes of GPUs: every full and paper recipe, on 1, 4 and 8 of three cards, three crops on each GPU.

    python scripts/plan_table.py                        everything that is not in docs/plan.json yet; hours of a small machine
    python scripts/plan_table.py --only pretrain_vit    recipes, cards or forms of attention of this name
    python scripts/plan_table.py --write                nothing new: docs/plan.md from docs/plan.json

Needs the extra "plan" and no GPU. Each row is kept as soon as it is there, with the commit that made it, so that it can be stopped and
started again; `--again` makes rows anew.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from brainseg_jax.core.errors import InputError, exit_code
from brainseg_jax.core.files import write_text
from brainseg_jax.planning import compilation, gpus
from brainseg_jax.planning.compilation import Place

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "plan.md"
LOADER = ROOT / "docs" / "benchmarks" / "loader.json"
CARDS = ("rtx3090", "a100", "h100")
DEVICES = (1, 4, 8)
PER_DEVICE = 3  # the paper, section IV-C: "a batch size of three 3D MRI scans per GPU"
# The paper's training volumes: 6,010 for pretraining; OASIS's 289 masks and all 3,548 of ADNI, or all 251 of CC359.
PRETRAINING, STRUCTURES, SKULL = 6010, 289 + 3548, 289 + 251
RECIPES = {
    "pretrain_vit:paper": PRETRAINING,
    "finetune_unetr:thirtythree,paper": STRUCTURES,
    "pretrain_swin:paper": PRETRAINING,
    "finetune_swin_unetr:thirtythree,paper": STRUCTURES,
    "pretrain_vit:full": PRETRAINING,
    "finetune_unetr:thirtythree,full": STRUCTURES,
    "pretrain_swin:full": PRETRAINING,
    "finetune_swin_unetr:thirtythree,full": STRUCTURES,
}
# GPU hours of its Table III, 33 structures from scratch with all masks, on four RTX 3090, stopped early at an epoch that it does not name.
PAPERS_HOURS = {"finetune_unetr:thirtythree,paper": 109.28, "finetune_swin_unetr:thirtythree,paper": 165.60}


class Row(NamedTuple):
    """A row of the table."""

    recipe: str
    gpu: str
    devices: int
    attention: str = "auto"

    @property
    def name(self) -> str:
        return " ".join(map(str, self))


def rows() -> Iterator[Row]:
    """Every row, those first that tell most."""
    for recipe in RECIPES:
        yield from (Row(recipe, gpu, 4) for gpu in CARDS)
    for recipe in RECIPES:
        if "swin" not in recipe:
            yield from (Row(recipe, "h100", 4, attention) for attention in ("cudnn", "pallas"))
    for devices in (1, 8):
        for gpu in CARDS:
            yield from (Row(recipe, gpu, devices) for recipe in RECIPES)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of the names of the rows to make, e.g. 'finetune_unetr:thirtythree,paper h100 4'")
    parser.add_argument("--again", action="store_true", help="make rows anew that are there already")
    parser.add_argument("--write", action="store_true", help="make no rows")
    args = parser.parse_args()
    return exit_code(lambda: table(args.only, args.again, args.write))


def table(only: str, again: bool, write: bool) -> int:
    """Makes what is missing and writes both files after every row."""
    file = OUT.with_suffix(".json")
    found = json.loads(file.read_text()) if file.exists() else {}
    named = [row for row in rows() if only in row.name]
    if not named:
        raise InputError(f"--only: no row's name has {only!r} in it; a name is e.g. {next(rows()).name!r}")
    wanted = [row for row in named if again or row.name not in found]
    if wanted and not write:
        if fault := compilation.missing():
            raise InputError(fault)
        compilation.without_gpus()
        for i, row in enumerate(wanted):
            began = time.perf_counter()
            found[row.name] = made(row)
            write_text(file, json.dumps({r.name: found[r.name] for r in rows() if r.name in found}, indent=1) + "\n")
            write_text(OUT, document(found))
            print(f"{i + 1}/{len(wanted)} {row.name}: {time.perf_counter() - began:.0f} s", flush=True)
    write_text(OUT, document(found))
    return 0


def made(row: Row) -> dict[str, Any]:
    """The plan of a row, or why there is none."""
    import jax

    from brainseg_jax.config.resolve import of_file
    from brainseg_jax.planning import plan
    from brainseg_jax.training import run_records

    file, _, variant = row.recipe.partition(":")
    recipe = of_file(f"{ROOT / 'configs' / file}.py:{variant}")
    # Crops that a run sees, whatever its batch.
    crops = recipe.steps * recipe.data.batch or round(recipe.epochs * RECIPES[row.recipe] * recipe.data.crops_per_volume)
    batch = {"data__batch": PER_DEVICE * row.devices, "data__crops_per_volume": 1}
    facts = {"commit": run_records.environment()["commit"], "jax": jax.__version__, "crops": crops, "attention": row.attention}
    try:
        config = plan.settled(plan.changed(recipe, attention=row.attention, **batch))
        return facts | plan.planned(config, Place(gpus.gpu(row.gpu), row.devices))
    except Exception as error:  # whatever the compiler says is what this row says
        return facts | {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    finally:
        jax.clear_caches()


def document(found: dict[str, Any]) -> str:
    """The document of the rows that are there."""
    there = [row for row in rows() if row.name in found]
    commits = sorted({found[row.name]["commit"][:12] for row in there})
    parts = [HEAD.format(there=len(there), all=len(list(rows())), commits=", ".join(commits))]
    for gpu in CARDS:
        card = gpus.GPUS[gpu]
        parts.append(
            f"\n## {card.title}\n\nPeaks: {card.bfloat16 / 1e12:.0f} TFLOP/s in bfloat16, {card.bandwidth / 1e12:.2f} TB/s, "
            f"{card.link / 1e9:.0f} GB/s to the other GPUs of its host ({card.source}).\n\n{COLUMNS}"
        )
        ordered = sorted(
            (r for r in there if r.gpu == gpu and r.attention == "auto"), key=lambda r: (list(RECIPES).index(r.recipe), r.devices)
        )
        parts += [line(row, found[row.name]) for row in ordered]
    return "\n".join([*parts, attentions(found), feeding(found, measured()), study(found)]) + "\n"


HEAD = """# Which GPUs for the paper's study

Written by `scripts/plan_table.py` from docs/plan.json on a machine without a GPU: {there} of {all} rows are there, made at {commits}.
Every row is one recipe's training step with three crops of its own size on each GPU, as the paper has it, compiled for that card. The
recipes' own batches differ from that: what `--config=configs/FILE.py:VARIANT` needs as it stands, `python -m brainseg_jax.plan` says.

**Proven** by the compiler: that the step compiles for this card and number of GPUs; shapes; which collectives it takes, and their bytes;
kernels; the memory of the program (state, batch and temporaries) of each GPU. **Estimated**: whether it fits, as far as the margin of
1.5 GiB for workspaces and NCCL goes, which nobody measured; and every time: a roofline with shares of the peaks that are guesses
(brainseg_jax/planning/roofline.py says which). **Not known** here: that it runs; that the host reads fast enough; which algorithms cuDNN
takes. It fits if memory and margin are within 75 % of the card's, JAX's default (XLA_CLIENT_MEM_FRACTION raises it).
Hours are for as many crops as the recipe's whole run sees, without evaluations, over the paper's volumes: 6,010 for pretraining, 3,837
for 33 structures."""

COLUMNS = (
    "| recipe | GPUs | GiB of each | fits | collectives, MB a step (beside kernels) | TFLOP of each | ms a step | crops/s | hours |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def line(row: Row, plan: dict[str, Any]) -> str:
    """A row of Markdown."""
    if "error" in plan:
        return f"| {row.recipe} | {row.devices} | {plan['error']} | | | | | | |"
    traffic = "; ".join(
        f"{sum_['number']} {kind}, {sum_['bytes'] / 1e6:.0f} ({sum_['overlapped_bytes'] / max(sum_['bytes'], 1):.0%})"
        for kind, sum_ in plan["collectives"].items()
    )
    memory, work = plan["memory"]["needed"] / 2**30, plan["flops"]["compiled_per_device"] / 1e12
    cells = [row.recipe, row.devices, f"{memory:.1f}", "yes" if plan["fits"] else "**no**", traffic or "none", f"{work:.2f}"]
    if "seconds" in plan:
        fast, slow = plan["seconds"]
        low, high = (plan["crops"] * s / plan["batch"] / 3600 for s in plan["seconds"])
        cells += [f"{1000 * fast:.0f}–{1000 * slow:.0f}", f"{plan['batch'] / slow:.1f}–{plan['batch'] / fast:.1f}", f"{low:.1f}–{high:.1f}"]
    else:
        cells += [f"work of {', '.join(plan['unknown'])} unknown", "", ""]
    return "| " + " | ".join(map(str, cells)) + " |"


def attentions(found: dict[str, Any]) -> str:
    """The forms of attention side by side."""
    lines = [
        "\n## Attention: XLA, cuDNN, Pallas\n",
        "Of the ViT, on 4 H100; a Swin's windows have biases that the other two do not take.\n",
    ]
    lines += ["| recipe | attention | GiB of each | ms a step |", "|---|---|---|---|"]
    for recipe in RECIPES:
        for attention in ("auto", "cudnn", "pallas"):
            row = Row(recipe, "h100", 4, attention)
            if row.name not in found or "swin" in recipe:
                continue
            plan, called = found[row.name], "xla" if attention == "auto" else attention
            if "error" in plan:
                lines.append(f"| {recipe} | {called} | {plan['error']} | |")
                continue
            time = "–".join(f"{1000 * s:.0f}" for s in plan["seconds"]) if "seconds" in plan else f"{', '.join(plan['unknown'])}: not known"
            lines.append(f"| {recipe} | {called} | {plan['memory']['needed'] / 2**30:.2f} | {time} |")
    lines.append(
        "\ncuDNN's own graphs are built when a program is loaded, on the GPU: that it takes these shapes is not proven here, and its "
        "workspace counts as nothing."
    )
    return "\n".join(lines)


def measured() -> dict[str, Any]:
    """What `scripts/benchmark.py --mode loader` found of recipes; {} if it was not run."""
    return json.loads(LOADER.read_text()) if LOADER.exists() else {}


def feeding(found: dict[str, Any], loader: dict[str, Any]) -> str:
    """How many GPUs a core of the machine that the loader was measured on keeps busy."""
    if not loader:
        return ""
    machine = loader["environment"]["machine"]
    lines = [
        "\n## Feeding\n",
        f"Crops a second that the input pipeline reads from its cache, measured on {machine['processor']}, {machine['cores']} cores",
        "(docs/benchmarks/loader.md), beside what one GPU of four takes by the roofline, at its fastest. Cropping is on the host; crops go",
        "to the device in 8 bits, those of the paper's recipes in float16; augmentation is in the step. A cluster's disks and networks are",
        "not in it.\n",
        "| recipe | crops/s of a core | " + " | ".join(f"{gpus.GPUS[gpu].title}: crops/s, cores for it" for gpu in CARDS) + " |",
        "|---|---|" + "---|" * len(CARDS),
    ]
    for recipe in RECIPES:
        turns = loader["results"].get(f"configs/{recipe.replace(':', '.py:', 1)}")
        if not turns:
            continue
        core = statistics.median(turn["rate"] for turn in turns) / machine["cores"]
        cells = []
        for gpu in CARDS:
            plan = found.get(Row(recipe, gpu, 4).name, {})
            rate = plan["batch"] / plan["seconds"][0] / 4 if "seconds" in plan else float("nan")
            cells.append(f"{rate:.0f}, {rate / core:.2f}" if rate == rate else "")
        lines.append(f"| {recipe} | {core:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def study(found: dict[str, Any]) -> str:
    """Hours of both pretrainings and of fine-tuning with all masks on all three tasks, as the paper's recipes have them."""
    lines = [
        "\n## The paper's whole study\n",
        "Both pretrainings, and both networks fine-tuned from scratch with all masks for skull stripping (540 volumes), 4 and 33",
        "structures (3,837 each), with the paper's recipes. The three tasks take what the compiled one, 33 structures, takes for a crop:",
        "their networks differ in the last layer only. Runs with fewer masks take proportionally less. GPU hours in brackets.\n",
        "| GPUs | hours (GPU hours), estimated |",
        "|---|---|",
    ]
    for gpu in CARDS:
        for devices in DEVICES:
            low = high = 0.0
            for recipe in (name for name in RECIPES if name.endswith("paper")):
                plan = found.get(Row(recipe, gpu, devices).name, {})
                if "seconds" not in plan or not plan["fits"]:
                    low = high = float("nan")
                    break
                tasks = (2 * STRUCTURES + SKULL) / STRUCTURES if recipe.startswith("finetune") else 1
                low, high = (
                    total + tasks * plan["crops"] * s / plan["batch"] / 3600 for total, s in zip((low, high), plan["seconds"], strict=True)
                )
            if low == low:
                lines.append(f"| {devices} × {gpus.GPUS[gpu].title} | {low:.0f}–{high:.0f} ({devices * low:.0f}–{devices * high:.0f}) |")
    lines.append("\nA check against the paper's own clock, four RTX 3090 in float16, with early stopping (100 epochs at most):\n")
    lines += ["| recipe | our range for all 100 epochs, GPU hours | its Table III, GPU hours |", "|---|---|---|"]
    over = []
    for recipe, hours in PAPERS_HOURS.items():
        plan = found.get(Row(recipe, "rtx3090", 4).name, {})
        if "seconds" in plan:
            low, high = (4 * plan["crops"] * s / plan["batch"] / 3600 for s in plan["seconds"])
            lines.append(f"| {recipe} | {low:.0f}–{high:.0f}{'' if plan['fits'] else ', if it fitted'} | {hours} |")
            over.append(f"{hours / high:.1f}")
    if over:
        lines += [
            f"\n**The paper's hours are {' and '.join(over)} times the slow end of ours.** Its clock also has reading, standardising and",
            "evaluating in it, and another implementation. How much of the difference is that, and how much our shares of the peaks,",
            "nobody has measured. Rent with this factor on top until a run of yours was timed.",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
