"""Several images a subject: heads whose structure only the second image shows, from the manifest to a prediction, and from one channel."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import brainseg_jax
from brainseg_jax.cli.evaluate import main as evaluate
from brainseg_jax.cli.predict import main as predict
from brainseg_jax.config.checks import check
from brainseg_jax.config.resolve import with_sources
from brainseg_jax.core.errors import InputError
from brainseg_jax.data.augment.prepare import as_float
from brainseg_jax.data.manifest import Row, read_manifest, write_manifest
from brainseg_jax.data.nifti import read, read_labels
from brainseg_jax.data.nifti_write import write
from brainseg_jax.data.preprocess import spec_of, standardize_all
from brainseg_jax.inference.predictor import predictor
from brainseg_jax.inference.segmentation import prepare, segment
from brainseg_jax.models import encoders
from brainseg_jax.objectives import OBJECTIVES
from brainseg_jax.training.loop import train
from brainseg_jax.training.metrics_log import Writer
from brainseg_jax.training.program import parts_of_batch, sample_of
from brainseg_jax.training.step import init_params
from brainseg_jax.weights import checkpoint
from brainseg_jax.weights.checkpoint import load
from brainseg_jax.weights.transfer import load_parts

CROP = {"data.crop": (32, 32, 32), "vit.patch": 16, "vit.depth": 4, "vit.features": (0, 1, 2)}
TWO = CROP | {"channels": 2, "data.channel_names": ("T1w", "FLAIR")}
FINE = TWO | {"objective": "segmentation", "data.labels": "brain", "classes": 2, "unetr.width": 4}
FINE |= {"steps": 120, "optim.lr": 5e-3, "eval_every": 1.0}
SWIN = {"encoder": "swin", "decoder": "swin_unetr", "swin.width": 12, "swin.depths": (1, 1, 1, 1), "swin.window": 4}

UNET = {"encoder": "resenc", "decoder": "unet", "unet.features": (4, 6, 8), "unet.blocks": (1, 2, 1), "unet.decoder_blocks": (1, 1)}

SIZES = ("crop", "size")


def ball(affine, shape, centre, radii):
    at = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    return np.sum(((at - centre) / radii) ** 2, -1) < 1


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Six heads of 4 mm; a ball somewhere in each is bright in a second image, of other voxels and axes, and not seen in the first."""
    folder = tmp_path_factory.mktemp("two")
    rng, rows = np.random.default_rng(5), []
    t1 = np.diag([4.0, 4.0, 4.0, 1.0])
    t1[:3, 3] = -78
    flair = np.array([[0, 0, -3.4, 76], [-4.1, 0, 0, 80], [0, 5.0, 0, -80], [0, 0, 0, 1]])
    for i, split in enumerate(("train", "train", "train", "train", "val", "test")):
        centre = rng.choice([-18, 18], 3) + rng.uniform(-4, 4, 3)
        for name, affine, shape, bright in (("T1w", t1, (40, 40, 40), 100), ("FLAIR", flair, (40, 33, 46), 220)):
            head = ball(affine, shape, (0, 0, 0), (58, 66, 62))
            inside = head & ball(affine, shape, centre, 42)
            grey = np.where(head, np.where(inside, bright, 100), 5)
            write(folder / f"{i}_{name}.nii.gz", rng.normal(grey, 6).clip(0).astype(np.float32), affine)
            write(folder / f"{i}_{name}_ball.nii.gz", inside.astype(np.uint8), affine)
        image, other, labels = (folder / f"{i}_{name}.nii.gz" for name in ("T1w", "FLAIR", "T1w_ball"))
        rows.append(Row(f"p{i}", "", image, (labels,), ("brain",), "made", split, (other,)))
    write_manifest(folder / "people.tsv", rows)
    return folder / "people.tsv"


@pytest.fixture(scope="module")
def run(small, people):
    def go(folder, **changes):
        config = small(**{"data.manifest": str(people), "data.cache": str(people.parent)} | changes)
        train(config, with_sources(config, set(), "test.py"), folder)
        return folder

    return go


@pytest.fixture(scope="module")
def tuned(run, tmp_path_factory):
    """A network that was trained on both images."""
    return run(tmp_path_factory.mktemp("tuned") / "run", **FINE) / "checkpoints" / "120"


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.slow
def test_what_only_the_second_image_shows_is_found_with_it_and_not_without(tuned, people):
    row = read_manifest(people)[-1]
    t1, flair = map(read, row.images)
    by = predictor([tuned])

    def score(*scans, truth):
        return dice(segment(by, prepare(by, scans, ["first", "second"])).classes > 0, read_labels(truth).voxels > 0)

    assert score(t1, flair, truth=row.labels[0]) > 0.8
    assert score(t1, t1, truth=row.labels[0]) < 0.6
    # The other way round labels lie on the second image's grid, and the channels have changed places.
    assert score(flair, t1, truth=row.image.with_name("5_FLAIR_ball.nii.gz")) < 0.6


@pytest.mark.slow
def test_a_prediction_is_the_networks_logits(tuned, people):
    row = read_manifest(people)[-1]
    network = brainseg_jax.load(tuned)
    ready = standardize_all([read(path) for path in row.images], spec_of(network.card), list(map(str, row.images)))
    classes = np.argmax(network.logits(as_float(jnp.asarray(ready.image)[None]))[0], axis=-1)
    labels = brainseg_jax.predict(row.image, tuned, also=[row.images[1]], keep_small_components=True, ids="table").labels
    x, y, z = ready.record["start"]
    np.testing.assert_array_equal(labels[x : x + 32, y : y + 32, z : z + 32] > 0, classes > 0)
    assert (labels > 0).sum() == (classes > 0).sum() > 100


@pytest.mark.slow
def test_the_command_takes_the_others_beside_a_scan_or_from_a_list_and_scoring_from_the_manifest(tuned, people, tmp_path, capsys):
    row = read_manifest(people)[-1]
    given = ["--checkpoint", str(tuned), "--o"]
    assert predict(["--i", str(row.image), "--also", str(row.images[1]), *given, str(tmp_path / "one")]) == 0
    write_manifest(tmp_path / "list.tsv", [row._replace(labels=(), scheme=())])
    assert predict(["--i", str(tmp_path / "list.tsv"), *given, str(tmp_path / "list")]) == 0
    one, listed = read(tmp_path / "one" / "5_T1w_seg.nii.gz"), read(tmp_path / "list" / "made" / "p5_5_T1w_seg.nii.gz")
    np.testing.assert_array_equal(one.voxels, listed.voxels)
    assert json.loads((tmp_path / "one" / "5_T1w_seg.json").read_text())["Sources"] == list(map(str, row.images))
    table = tmp_path / "scores.tsv"
    assert evaluate(["--checkpoint", str(tuned), "--manifest", str(people), "--metrics", "dice", "--o", str(table)]) == 0
    (scored,) = [line.split("\t") for line in table.read_text().splitlines() if "Brain" in line]
    assert float(scored[3]) > 0.8
    capsys.readouterr()
    assert predict(["--i", str(row.image), *given, str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert "trained on 2 images a subject (T1w, FLAIR, in this order), and 1 is given; give the others with --also" in error
    assert error.count("\n") == 1 and not (tmp_path / "none").exists()


@pytest.mark.slow
def test_pretraining_on_two_goes_on_from_a_stop_as_if_nothing_had_happened(run, tmp_path, monkeypatch):
    changes = TWO | {"steps": 4, "mae.mask_ratio": 0.5, "augment.affine.chance": 0.5, "augment.contrast.chance": 0.5}
    whole, real = run(tmp_path / "whole", **changes), Writer.progress

    def progress(self, done, *what):
        real(self, done, *what)
        if done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Writer, "progress", progress)
    run(tmp_path / "stopped", **changes)
    monkeypatch.setattr(Writer, "progress", real)
    run(tmp_path / "stopped", **changes)
    (a, _), (b, _) = (load(folder / "checkpoints" / "4", "params") for folder in (whole, tmp_path / "stopped"))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert a["encoder"]["patch_embed"]["kernel"].shape[0] == 2 * 16**3 == a["predict"]["kernel"].shape[-1]


@pytest.mark.parametrize(
    "changes",
    [
        TWO | {"mae.mask_ratio": 0.5},
        FINE,
        FINE | SWIN,
        FINE | UNET,
        SWIN | {"objective": "ssl", "channels": 3} | {f"data.{k}": (64,) * 3 for k in SIZES},
    ],
    ids=["mae", "unetr", "swin_unetr", "unet", "ssl"],
)
def test_every_objective_takes_images_of_several_channels(small, changes):
    config = small(**changes)
    check(config)
    objective = OBJECTIVES[config.objective](config)
    assert parts_of_batch(config)["image"][0][-1] == config.channels
    batch = sample_of(config)
    params = jax.eval_shape(lambda: init_params(objective, batch, 0))
    rngs = {name: jax.random.key(0) for name in objective.streams}
    loss, _ = jax.eval_shape(lambda params: objective.apply({"params": params}, batch, True, rngs=rngs), params)
    assert loss.shape == ()


@pytest.mark.slow
@pytest.mark.parametrize("network", [{}, SWIN, UNET], ids=["vit", "swin", "resenc"])
def test_kernels_of_one_channel_repeated_give_equal_channels_what_one_gave(small, tmp_path, close, rng, network):
    parts = {"init.parts": ("encoder", "decoder", "head"), "init.checkpoint": str(tmp_path / "c")}
    one, three = (small(**FINE | {"data.channel_names": (), "channels": c} | parts | network) for c in (1, 3))
    image = rng.random((1, 32, 32, 32, 1)).astype(np.float32)
    params = jax.jit(encoders.segmenter(one).init)(jax.random.key(0), image)["params"]
    checkpoint.write(tmp_path / "c", jax.device_get(params), {"config": with_sources(one, set(), "test.py")})
    like = jax.eval_shape(encoders.segmenter(three).init, jax.random.key(0), np.repeat(image, 3, -1))["params"]
    with pytest.raises(InputError, match="images of channels 1, this config has channels 3; add --config"):
        load_parts(like, three, print)
    three.init.channels, said = "repeat", []
    repeated = load_parts(like, three, said.append)
    assert "3 channels share its first layers' mean kernel" in said[0]
    close(
        jax.jit(encoders.segmenter(three).apply)({"params": repeated}, np.repeat(image, 3, axis=-1)),
        jax.jit(encoders.segmenter(one).apply)({"params": params}, image),
        times=10,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 1}, "names 2 images a subject, and the config has channels 1; use --config.channels=2, or give each subject 1"),
        ({"channels": 3}, "names 2 images a subject, and the config has channels 3; use --config.channels=2"),
    ],
)
def test_config_and_manifest_have_to_agree(run, tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as refusal:
        run(tmp_path / "run", **FINE | {"data.channel_names": ()} | changes)
    assert "\n" not in str(refusal.value) and not (tmp_path / "run" / "split.tsv").exists()


@pytest.mark.parametrize("names", [("T1w",), ("T1w", "T1w"), (1, 2)])
def test_channels_have_a_name_each_or_none(small, names):
    with pytest.raises(InputError, match=r"data\.channel_names is .*; give a name for each of channels 2, or none"):
        check(small(**TWO | {"data.channel_names": names}))
