"""Configs: every bad value names its key, every file and variant builds at full size, and where a value came from is known."""

import json
import math
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import brainseg_jax
from brainseg_jax.config.checks import check, check_idle, idle_keys
from brainseg_jax.config.keys import KEYS, base, flat, get_key
from brainseg_jax.config.reference import config_page
from brainseg_jax.config.resolve import differing_keys, from_resolved, known_entries, of_card, of_file, used_value, with_sources
from brainseg_jax.core.errors import InputError
from brainseg_jax.data.augment.prepare import prepare_train
from brainseg_jax.data.labels import read_table
from brainseg_jax.data.labels import swap as labels_swap
from brainseg_jax.data.synthesis.generator import generator_of
from brainseg_jax.models.encoders import ENCODERS
from brainseg_jax.objectives import OBJECTIVES
from brainseg_jax.training.optim import optimizer
from brainseg_jax.training.program import parts_of_batch, resolve_auto, sample_of
from brainseg_jax.training.step import init_params, init_state, make_train_step

FILES = sorted((Path(__file__).parents[2] / "configs").glob("[!_]*.py"))


def variants():
    """(file, variant) of every config: a file names its variants in the error for a wrong one."""
    for file in FILES:
        get = lambda variant, file=file: of_file(f"{file}:{variant}")  # noqa: E731
        with pytest.raises(InputError) as refusal:
            get("no such variant")
        for variant in str(refusal.value).partition("use one of ")[2].split(", "):
            yield pytest.param(get, variant, id=f"{file.stem}:{variant}")


BAD = [
    ("dtype", "float16", "float32, bfloat16"),
    ("data.spec", "nnunet", "default, paper"),
    ("data.split_rule", "image", "subject"),
    ("data.dtype", "int16", "uint8"),
    ("vit.positions", "rope", "sincos"),
    ("data.batch", 0, "greater than 0"),
    ("data.crop", (160, 0, 160), "greater than 0"),
    ("data.spacing", -1.0, "greater than 0"),
    ("optim.lr", 0.0, "greater than 0"),
    ("log_every", 0, "greater than 0"),
    ("optim.lr", math.inf, "finite"),
    ("optim.lr", math.nan, "greater than 0"),
    ("vit.eps", -1.0, "greater than 0"),
    ("optim.b1", 1.0, "less than 1"),
    ("optim.b2", -0.5, "less than 1"),
    ("optim.lr_multipliers", (("encoder/.*", -1.0),), "not be negative"),
    ("optim.lr_multipliers", (("encoder/.*", math.nan),), "not be negative"),
    ("augment.affine.scaling", (1.0, 0.1, 0.1), "less than 1"),
    ("augment.affine.shear", (0.1, 9.0, 0.1), "less than 1"),
    ("augment.field_of_view.share", 1.0, "less than 1"),
    ("best", "dice", "the smallest is kept"),
    ("steps", -1, "not be negative"),
    ("data.workers", -1, "not be negative"),
    ("optim.clip", -0.1, "not be negative"),
    ("mae.mask_ratio", 1.5, "from 0 to 1"),
    ("augment.chance", -0.1, "from 0 to 1"),
    ("augment.affine.shear", (0.1, 0.1), "three numbers"),
    ("augment.affine.rotation", (0.0, -5.0, 0.0), "not be negative"),
    ("augment.elastic.mm", 13.0, "at most 0.4"),
    ("augment.contrast.curve", 1.1, "from 0 to 1"),
    ("augment.noise.kind", "salt", "gaussian, rician"),
    ("synth.share", 1.5, "from 0 to 1"),
    ("synth.spread", -0.1, "from 0 to 1"),
    ("synth.air", 2.0, "from 0 to 1"),
    ("synth.texture.share", 1.1, "from 0 to 1"),
    ("synth.texture.mm", 0.0, "greater than 0"),
    ("synth.lesions.chance", 1.5, "from 0 to 1"),
    ("synth.lesions.share", math.nan, "from 0 to 1"),
    ("synth.lesions.mm", -1.0, "greater than 0"),
    ("synth.strip.chance", -0.1, "from 0 to 1"),
    ("synth.strip.mm", 0.0, "greater than 0"),
    ("synth.face.chance", 2.0, "from 0 to 1"),
    ("synth.face.mm", math.inf, "finite"),
    ("synth.air_noise.chance", 1.1, "from 0 to 1"),
    ("eval_every", 2.0, "from 0 to 1"),
    ("data.size", (192, 192), "three numbers"),
    ("data.crop", (160, 160), "three numbers"),
    ("data.crop", (208, 160, 160), "larger than data.size"),
    ("data.crop", (160, 160, 150), re.escape("(160, 160, 144)")),
    ("vit.heads", 7, "does not divide"),
    ("mae.heads", 5, "does not divide"),
    ("data.crops_per_volume", 3, "does not divide"),
    ("optim.accumulate", 3, "does not divide"),
    ("mae.mask_ratio", 0.0, "none hidden"),
    ("mae.mask_ratio", 1.0, "none visible"),
    ("epochs", 3.0, "set one of them"),
]
SEGMENTATION = [
    ("data.labels", "", "name the label table"),
    ("decoder", "unetr", "do not fit"),
    ("data.crop", (96, 80, 96), re.escape("(96, 64, 96)")),
    ("data.num_labelled", -2, "-1 for all"),
    ("data.missing_labels", "ignore", "refuse, background"),
    ("init.parts", ("stem",), "encoder, decoder, head"),
    ("init.parts", (), "encoder, decoder, head"),
    ("init.parts", ("encoder", "encoder"), "each once"),
    ("optim.layer_decay", 0.0, "just outside"),
    ("optim.unfreeze", 1.0, "just outside"),
    ("segmentation.overlap", 1.0, "just outside"),
]


@pytest.mark.parametrize(("key", "value", "hint"), BAD)
def test_a_bad_value_is_refused_by_its_key_with_what_it_may_be(key, value, hint):
    c = base()
    c.steps = 10
    c.data.batch = 4
    c.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=hint) as refusal:
        check(c)
    assert key in str(refusal.value) and "\n" not in str(refusal.value)


UNET = [
    ("unet.features", (32, 0, 64, 64, 64, 64), "greater than 0"),
    ("unet.features", (32, 64), "a number each for every stage"),
    ("unet.blocks", (1, 3), "a number each for every stage"),
    ("unet.blocks", (1, 3, 4, 6, 6, 1.5), "whole numbers"),
    ("unet.decoder_blocks", (1, 1), re.escape("give 5 numbers, e.g. (1, 1, 1, 1, 1)")),
    ("decoder", "swin_unetr", "vit with unetr, or swin with swin_unetr, or resenc with unet"),
    ("data.crop", (96, 80, 96), r"takes multiples of 32, .* use e\.g\. \(96, 64, 96\)"),
    ("data.crop", (32, 32, 32), re.escape("e.g. (64, 64, 64)")),
    ("objective", "ssl", "made for encoder swin"),
]


@pytest.mark.parametrize(("key", "value", "hint"), UNET)
def test_a_bad_value_of_a_u_net_is_refused_likewise(key, value, hint):
    c = base()
    c.update_from_flattened_dict({"steps": 10, "objective": "segmentation", "data.labels": "seg4", "encoder": "resenc", "decoder": "unet"})
    check(c)
    check_idle(c)
    c.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=hint) as refusal:
        check(c)
    assert key.partition(".")[0] in str(refusal.value) and "\n" not in str(refusal.value)


def test_no_layer_of_a_u_net_from_scratch_is_slowed_down():
    full = [of_file(str(file) + ":four,full") for file in FILES if file.stem.startswith("finetune")]
    assert {c.encoder: c.optim.layer_decay for c in full} == {"vit": 0.75, "swin": 0.75, "resenc": 1.0}


@pytest.mark.parametrize(("key", "value", "hint"), SEGMENTATION)
def test_a_bad_value_of_fine_tuning_is_refused_likewise(key, value, hint):
    c = base()
    c.update_from_flattened_dict({"steps": 10, "objective": "segmentation", "data.labels": "seg4", "data.crop": (96, 96, 96)})
    c.encoder, c.decoder = "swin", "swin_unetr"
    check(c)
    c.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=hint) as refusal:
        check(c)
    assert key in str(refusal.value) and "\n" not in str(refusal.value)


def test_scans_are_made_of_one_channel_that_is_scaled_by_default():
    c = base()
    c.update_from_flattened_dict({"steps": 10, "objective": "segmentation", "data.labels": "seg4", "channels": 2})
    check(c)
    c.synth.share = 0.5
    with pytest.raises(InputError, match=r"^synth\.share is 0\.5 and channels is 2; scans are made of one channel, so use synth\.share=0"):
        check(c)
    c.channels, c.data.spec = 1, "paper"
    with pytest.raises(InputError, match=r"^data\.spec is 'paper', and scans that are made are scaled as by default; use synth\.share=0"):
        check(c)


def test_swin_unetr_wants_four_stages():
    c = base()
    c.update_from_flattened_dict({"steps": 10, "objective": "segmentation", "data.labels": "seg4", "data.crop": (96, 96, 96)})
    c.update(encoder="swin", decoder="swin_unetr", swin={"depths": (1, 1), "heads": (1, 2)})
    with pytest.raises(InputError, match=r"swin\.depths \(1, 1\): .* give four numbers"):
        check(c)


def test_unetr_wants_its_patches():
    c = base()
    c.update_from_flattened_dict({"steps": 10, "objective": "segmentation", "data.labels": "seg4", "vit.patch": 8})
    with pytest.raises(InputError, match=r"vit\.patch is 8.*use 16"):
        check(c)


@pytest.mark.parametrize(
    ("depth", "features", "hint"),
    [
        (6, (3, 6, 9), r"vit\.features is \(3, 6, 9\).*before the last one of vit\.depth 6: use e\.g\. \(1, 2, 3\)"),
        (12, (3, 6, 11), r"use e\.g\. \(2, 5, 8\)"),
        (12, (3, 6), "three blocks"),
        (12, (2, 4, 6, 8), "three blocks"),
        (12, (6, 3, 9), "in their order"),
        (12, (3, 3, 9), "in their order"),
        (12, (-1, 3, 9), "counted from 0"),
        (3, (0, 1, 2), r"vit\.depth is 3.*use 4 or more"),
    ],
)
def test_unetr_wants_three_blocks_that_there_are(depth, features, hint):
    c = base()
    c.update_from_flattened_dict({"steps": 10, "objective": "segmentation", "data.labels": "seg4", "vit.depth": depth})
    c.vit.features = features
    with pytest.raises(InputError, match=hint):
        check(c)
    c.update_from_flattened_dict({"vit.depth": 4, "vit.features": (0, 1, 2)})
    check(c)


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"vit.drop_path": 0.1}, "vit.drop_path does nothing with objective=mae; leave it out"),
        ({"data.target": "A"}, "data.target does nothing with objective=mae"),
        ({"data.num_labelled": 3}, "data.num_labelled does nothing with objective=mae"),
        ({"data.missing_labels": "background"}, "data.missing_labels does nothing with objective=mae"),
        ({"segmentation.overlap": 0.7}, "segmentation.overlap does nothing with objective=mae"),
        ({"classes": 5}, "classes does nothing with objective=mae"),
        ({"unetr.width": 4}, "unetr.width does nothing with objective=mae"),
        ({"synth.share": 0.5}, "synth.share does nothing with objective=mae"),
        ({"synth.face.mm": 5.0}, "synth.face.mm does nothing with objective=mae"),
        ({"synth.air": 0.5, "objective": "ssl", "encoder": "swin"}, "synth.air does nothing with objective=ssl"),
        ({"ssl.share": 0.2}, "ssl.share does nothing with objective=mae"),
        ({"swin.window": 4}, "swin.window does nothing with encoder=vit"),
        ({"unet.blocks": (1, 1)}, "unet.blocks does nothing with encoder=vit"),
        ({"encoder": "resenc", "attention": "xla"}, "attention does nothing with encoder=resenc"),
        ({"data.manifest": "people.tsv", "data.subjects": 3}, "data.subjects does nothing with data.manifest=people.tsv"),
        ({"data.split_rule": "paper", "data.fractions": (0.5, 0.3, 0.2)}, "data.fractions does nothing with data.split_rule=paper"),
        ({"objective": "segmentation", "data.labels": "seg4", "mae.depth": 2}, "mae.depth does nothing with objective=segmentation"),
    ],
)
def test_a_key_that_does_nothing_is_refused(changes, refusal):
    c = base()
    c.update_from_flattened_dict({"steps": 10} | changes)
    with pytest.raises(InputError, match=re.escape(refusal)):
        check_idle(c)
    # A run from before it was refused goes on without it.
    again = base()
    again.update_from_flattened_dict({key: value for key, value in flat(c).items() if key not in idle_keys(c)})
    check_idle(again)
    assert differing_keys(*(with_sources(one, set(), "x.py") for one in (c, again))) == []


def test_slices_that_are_not_thicker_than_voxels_are_refused_if_they_are_asked_for():
    c = base()
    c.steps, c.data.spacing, c.augment.low_resolution.mm = 10, 2.0, 2.0
    check(c)
    c.augment.low_resolution.chance = 0.1
    with pytest.raises(InputError, match=r"augment\.low_resolution\.mm 2\.0 is not above data\.spacing 2\.0"):
        check(c)


def test_neither_steps_nor_epochs_is_refused():
    with pytest.raises(InputError, match="steps is 0 and epochs is 0"):
        check(base())


def test_what_a_key_acts_with_exists_and_may_be_so():
    for name, key in KEYS.items():
        get_key(base(), name)
        for other, _, wanted in (condition.partition("=") for condition in key.acts_with.split()):
            for value in wanted.split(","):
                assert KEYS[other].rule.fault(value, KEYS[other].default) == ""


def test_every_default_follows_its_own_rule():
    assert [name for name, key in KEYS.items() if key.rule.fault(key.default, key.default)] == []


def test_the_reference_has_a_line_of_every_key():
    lines = config_page().splitlines()
    for name, key in KEYS.items():
        (line,) = [line for line in lines if line.startswith((f"| `{name}` |", rf"| `{name}`\* |"))]
        assert key.meaning in line and line.count("|") == 5


def test_a_key_is_one_line():
    """Of the tables, so that each can be read as one."""
    package = Path(brainseg_jax.__file__).parent
    files = [package / "config" / "keys.py", *(package / "models").glob("*_spec.py")]
    lines = [line.strip() for file in files for line in file.read_text().splitlines() if re.match(r" +\w+=key\(", line)]
    assert len(lines) == len(KEYS) and [line for line in lines if not line.endswith("),")] == []


def test_unknown_keys_cannot_be_set():
    c = base().lock()
    with pytest.raises(AttributeError, match="widht"):
        c.vit.widht = 3


@pytest.mark.parametrize(("get", "variant"), [v for v in variants() if v.values[1].startswith(("skull", "thirtythree"))])
def test_the_papers_tasks_differ_in_their_labels_only(get, variant):
    _, comma, recipe = variant.partition(",")
    c, four = get(variant), get("four" + comma + recipe)
    assert c.data.labels != four.data.labels
    four.data.labels = c.data.labels
    assert c.to_dict() == four.to_dict()
    check(c)
    check_idle(c)


def of_each_network():
    """Variants that differ in more than labels; where a Swin is traced, which takes long, they are slow tests but for one."""
    for one in variants():
        if not one.values[1].startswith(("skull", "thirtythree")):
            slow = "swin" in one.id and not one.id.endswith("pretrain_swin:trial")
            yield pytest.param(*one.values, id=one.id, marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize(("get", "variant"), list(of_each_network()))
def test_every_config_builds_at_full_size(get, variant):
    """Initial state and one training step, as shapes only."""
    c = get(variant)
    c.dtype = "bfloat16"
    check(c)
    check_idle(c)
    swap = made = None
    if c.data.labels:
        table = read_table(c.data.labels)
        c.classes, swap = len(table.structures) + 1, labels_swap(table)
        made = generator_of(c, table)
    objective = OBJECTIVES[c.objective](c)
    batch = {name: jax.ShapeDtypeStruct((c.data.batch, *shape), dtype) for name, (shape, dtype) in parts_of_batch(c).items()}
    params = jax.eval_shape(lambda: init_params(objective, sample_of(c), c.seed))
    tx = optimizer(c.optim, 100, params)
    state = jax.eval_shape(lambda params: init_state(params, tx), params)
    step = make_train_step(objective, tx, prepare_train(c, swap, made), c.seed, c.optim.accumulate)
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), state)
    assert all(total.shape == number.shape == () for total, number in metrics.values()) and "loss" in metrics
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_a_config_file_refuses_an_unknown_variant_by_name():
    with pytest.raises(InputError, match=r"tiny.*trial"):
        of_file(f"{FILES[-1]}:tiny")
    with pytest.raises(InputError, match="no such config; it is a Python file"):
        of_file("configs/none.py")
    assert of_file(str(FILES[-1])).to_dict() == of_file(f"{FILES[-1]}:trial").to_dict()


BEGIN = "from brainseg_jax.config.keys import base\n\n\ndef get_config():\n    c = base()\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("c = 1\n\ndef get_config(:\n", "line 3: SyntaxError: invalid syntax; correct the file"),
        ("import nowhere\n", "line 1: ModuleNotFoundError: No module named 'nowhere'; correct the file"),
        (f"{BEGIN}    helper(c)\n\n\ndef helper(c):\n    1 / 0\n", "line 10: ZeroDivisionError: division by zero; correct the file"),
        (f"{BEGIN}    c.steps = 'ten'\n    return c\n", r"line 6: TypeError: .*; correct the file"),
        (f"{BEGIN}    open('nowhere.txt')\n", r"line 6: FileNotFoundError: .*nowhere\.txt'; correct the file"),
        ("\0", "SyntaxError: source code string cannot contain null bytes; correct the file"),
        ("get_confg = 3\n", "has no function get_config, which makes the experiment; write it as in configs/pretrain_vit.py"),
        (BEGIN, "its get_config gives NoneType and no ConfigDict; begin it with c = base.., end it with return c"),
        (
            f"{BEGIN}    c.vit.widht = 3\n    return c\n",
            r"its get_config sets vit\.widht: there is no such key \(did you mean vit\.width\?\)",
        ),
        (f"{BEGIN}    del c.vit.width\n    return c\n", r"its get_config gives no vit\.width; begin it with c = base\(\)"),
    ],
)
def test_a_config_file_that_fails_is_answered_with_its_line(tmp_path, text, reason):
    file = tmp_path / "mine.py"
    file.write_text(text)
    for name in (file, os.path.relpath(file)):
        with pytest.raises(InputError, match=f"mine.py: {reason}") as refusal:
            of_file(str(name))
        assert str(refusal.value).startswith(f"{name}: ") and "\n" not in str(refusal.value)


def test_where_each_value_came_from():
    c = base()
    c.steps, c.seed, c.vit.depth = 240, 3, 12
    resolved = with_sources(c, {"seed", "vit.depth"}, "configs/x.py")
    assert resolved["steps"] == {"value": 240, "from": "configs/x.py"}
    assert resolved["seed"] == {"value": 3, "from": "command line"}
    assert resolved["vit.depth"] == {"value": 12, "from": "command line"}  # said, though it is the default
    assert resolved["vit.width"] == {"value": 768, "from": "default"}
    assert set(resolved) == set(flat(base()))


def test_what_was_written_down_is_read_back():
    c = base()
    changes = {"data.crop": (32, 48, 64), "optim.lr_multipliers": ((".*bias", 0.5),), "epochs": 2.5, "mae.normalize_targets": True}
    c.update_from_flattened_dict(changes)
    again = from_resolved(json.loads(json.dumps(with_sources(c, set(), "x.py"))))
    assert flat(again) == flat(c) and isinstance(again.optim.lr_multipliers[0], tuple)


def test_free_keys_make_no_other_experiment():
    old, other, free = base(), base(), base()
    other.update_from_flattened_dict({"optim.lr": 1e-3, "log_every": 3})
    words = {"data.cache": "/x", "attention": "xla"}
    resumable = {name for name, key in KEYS.items() if key.resumable}
    assert {"log_every", "data.threads", "mesh.data"} < resumable and not {"seed", "data.batch", "dtype"} & resumable
    free.update_from_flattened_dict({key: words.get(key, -9) for key in resumable if key != "data.max_failures"})
    resolve = lambda c: with_sources(c, set(), "x.py")  # noqa: E731
    assert differing_keys(resolve(old), resolve(free)) == []
    assert differing_keys(resolve(old), resolve(other)) == ["optim.lr: 0.0004 → 0.001"]


@pytest.mark.parametrize(
    ("entry", "asked", "used"),
    [
        ({"value": "bfloat16", "from": "default"}, "auto", "bfloat16"),  # as records were, that of auto knew the result only
        ({"value": "auto", "from": "default", "used": "bfloat16"}, "auto", "bfloat16"),
        ({"value": "float32", "from": "command line"}, "float32", "float32"),
    ],
)
def test_the_type_that_was_asked_for_and_the_one_that_was_used(entry, asked, used):
    old = known_entries(with_sources(base(), set(), "x.py") | {"dtype": entry}, "config.json")
    assert from_resolved(old).dtype == asked and used_value(old, "dtype") == used
    for there, same in (("float32", used == "float32"), ("bfloat16", used == "bfloat16")):
        config = base()
        config.dtype = asked
        new = with_sources(config, set(), "x.py")
        resolve_auto(config, there == "float32", new)
        if asked == "auto":
            assert (config.dtype, new["dtype"]["value"], new["dtype"]["used"]) == (there, "auto", there)
            assert (differing_keys(old, new) == []) == same  # as before: a run goes on in what it began with
        else:
            assert config.dtype == asked and differing_keys(old, new) == [] and "used" not in new["dtype"]


def test_a_value_named_on_the_command_line_is_not_another_experiment():
    assert differing_keys(with_sources(base(), {"seed"}, "x.py"), with_sources(base(), set(), "x.py")) == []


def test_a_key_that_one_of_the_two_lacks_has_its_default():
    changed = base()
    changed.seed = 3
    old, new = (with_sources(c, set(), "x.py") for c in (base(), changed))
    for lacking in (old, {key: entry for key, entry in old.items() if key != "seed"}):
        assert differing_keys(lacking, old) == differing_keys(old, lacking) == []
        assert differing_keys(lacking, new) == ["seed: 0 → 3"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vit.widht": {"value": 3, "from": "x.py"}}, r"has the key 'vit\.widht', and there is no such key \(did you mean vit\.width\?\)"),
        ({"vit": {"value": 3}}, "has the key 'vit', and there is no such key"),
        ({"seed": 3}, "has no value under 'seed'"),
        ({"seed": {"value": "three", "from": "x.py"}}, "seed is 'three', where something like 0 is meant"),
        ({"data.crop": {"value": 3, "from": "x.py"}}, r"data\.crop is 3, where something like \(160, 160, 160\)"),
    ],
)
def test_a_card_that_is_not_understood_is_refused_in_one_line(change, message):
    card = {"config": with_sources(base(), set(), "x.py") | change}
    with pytest.raises(InputError, match=rf"^runs/x/checkpoints/8: its card: {message}") as refusal:
        of_card(card, "runs/x/checkpoints/8")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({}, "holds no config"),
        ({"config": [1]}, "holds no config"),
        ({"format": 99, "config": with_sources(base(), set(), "x.py")}, "is of format 99, and this brainseg_jax reads up to"),
        ({"format": "new", "config": with_sources(base(), set(), "x.py")}, "is of format 'new'"),
    ],
)
def test_a_card_of_another_form_is_refused_in_one_line(card, message):
    with pytest.raises(InputError, match=f"^c: .*{message}"):
        of_card(card, "c")


def test_names_that_may_be_chosen_are_those_that_there_are():
    for key, names in (("objective", OBJECTIVES), ("encoder", ENCODERS)):
        assert KEYS[key].rule.fault("none", "") == f"is 'none'; use one of {', '.join(names)}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("data.split_seed", -1),
        ("data.crop", ("a", "b", "c")),
        ("data.crop", (32, 32)),
        ("optim.warmup", 1.0),
        ("optim.decay", ("[",)),
        ("optim.lr_multipliers", ("encoder",)),
        ("optim.lr_multipliers", (("[", 0.1),)),
    ],
)
def test_what_would_fail_later_is_refused_at_once(key, value):
    config = base()
    config.steps = 1
    config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=re.escape(key)):
        check(config)
