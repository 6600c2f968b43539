"""From pretraining to a segmentation, on made-up heads: the encoder arrives, the network learns, and a run that learns no more ends."""

import jax
import numpy as np
import pytest

from brainseg_jax import load as load_network
from brainseg_jax.cli.evaluate import main as evaluate
from brainseg_jax.cli.predict import main as predict
from brainseg_jax.config.resolve import with_sources
from brainseg_jax.core.errors import InputError
from brainseg_jax.data import cache
from brainseg_jax.data.labels import parse_table, read_table
from brainseg_jax.data.manifest import read_manifest
from brainseg_jax.data.nifti import read
from brainseg_jax.objectives.segmentation import Segmentation
from brainseg_jax.training.loop import train
from brainseg_jax.training.metrics_log import read_metrics
from brainseg_jax.training.validation import as_network_input
from brainseg_jax.weights.checkpoint import card as card_of
from brainseg_jax.weights.checkpoint import load
from converters.convert import main as convert

VIT = {"data.crop": (32, 32, 32), "vit.patch": 16, "vit.depth": 4, "vit.features": (0, 1, 2)}
FINE = VIT | {"objective": "segmentation", "data.labels": "brain", "classes": 2, "unetr.width": 4, "augment.mirror.sides": 0.5}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(small, masked):
    def go(folder, **changes):
        config = small(**{"data.manifest": str(masked), "data.cache": str(masked.parent)} | changes)
        train(config, with_sources(config, set(), "test.py"), folder)
        return folder

    return go


@pytest.fixture(scope="module")
def tuned(run, tmp_path_factory):
    """A pretraining's checkpoint, and a run that began with its encoder."""
    folder = tmp_path_factory.mktemp("tuned")
    pretrained = run(folder / "mae", **VIT | {"steps": 2}) / "checkpoints" / "2"
    fine = FINE | {
        "steps": 60,
        "optim.lr": 3e-3,
        "init.checkpoint": str(pretrained),
        "optim.lr_multipliers": (("encoder/patch_embed/.*", 0.0),),
    }
    return pretrained, run(folder / "fine", **fine)


def test_it_learns_from_masks_and_is_judged_by_whole_volumes(tuned):
    rows = [row for row in read_metrics(tuned[1] / "metrics.jsonl") if row["kind"] == "eval"]
    assert [row["step"] for row in rows] == [0, 30, 60]
    assert rows[0]["dice"] < 0.7 < 0.9 < rows[-1]["dice"]
    assert set(Segmentation.metrics) < set(rows[-1])
    assert rows[-1]["loss"] == pytest.approx(1 - rows[-1]["dice"]) and "dice/Brain" in rows[-1]
    assert (tuned[1] / "pictures" / "step_000060.png").exists()


def test_what_was_frozen_is_still_the_pretrained_encoders(tuned):
    before, _ = load(tuned[0], "params/encoder")
    after, _ = load(tuned[1] / "checkpoints" / "60", "params/encoder")
    jax.tree.map(np.testing.assert_array_equal, before["patch_embed"], after["patch_embed"])
    assert np.abs(before["norm"]["scale"] - after["norm"]["scale"]).max() > 0


def test_its_checkpoint_is_a_network(tuned, masked):
    network = load_network(tuned[1] / "checkpoints" / "60")
    file = next(f for f in (masked.parent / "volumes").glob("head3_*.npz") if "label" in cache.load(f))
    arrays = cache.load(file)
    found = np.argmax(network.logits(as_network_input(arrays["image"])[None])[0], axis=-1)
    truth = arrays["label"]
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9


def test_it_is_scored_on_a_split_on_the_scans_own_grids(tuned, masked, tmp_path, capsys):
    checkpoint, table = str(tuned[1] / "checkpoints" / "60"), tmp_path / "table.tsv"
    assert evaluate(["--checkpoint", checkpoint, "--manifest", str(masked), "--split", "val", "--o", str(table)]) == 0
    assert "0 of 1 people were in the training data" in capsys.readouterr().out
    (row,) = [line.split("\t") for line in table.read_text().splitlines() if "Brain" in line]
    assert row[0] == "head3_head3" and float(row[3]) > 0.9
    mirrored = ["--checkpoint", checkpoint, "--tta", "--manifest", str(masked), "--split", "val", "--metrics", "dice"]
    assert evaluate([*mirrored, "--o", str(table)]) == 0
    (with_mirror,) = [line.split("\t") for line in table.read_text().splitlines() if "Brain" in line]
    assert float(with_mirror[3]) > 0.9 and with_mirror[3] != row[3]
    twice = ["--checkpoint", f"{checkpoint},{checkpoint}", "--manifest", str(masked), "--split", "train", "--metrics", "dice"]
    assert evaluate([*twice, "--o", str(table)]) == 0
    assert "3 of 3 people were in the training data of the checkpoint or of what it began with: head0, head1" in capsys.readouterr().out


def test_it_says_whom_it_and_its_pretraining_were_trained_on(tuned):
    card = card_of(tuned[1] / "checkpoints" / "60")
    assert card["subjects"] == card["subjects_before"] == card_of(tuned[0])["subjects"] and len(card["subjects"]) == 3
    assert parse_table(card["labels"], "card").structures == read_table("brain").structures


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--manifest", "M", "--split", "test"], "no scan of split 'test' has labels; choose another --split"),
        ([], "--manifest is missing"),
        (["--manifest", "M", "--pred", "x"], "--pred: of no use with --checkpoint"),
        (["--manifest", "M", "--split", "val", "--labels", "seg4"], "does not tell"),
    ],
)
def test_what_cannot_be_scored_is_said_in_one_line(tuned, masked, tmp_path, capsys, flags, message):
    flags = [str(masked) if flag == "M" else flag for flag in flags]
    assert evaluate(["--checkpoint", str(tuned[1] / "checkpoints" / "60"), *flags, "--o", str(tmp_path / "t.tsv")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "t.tsv").exists()


def test_a_pretraining_cannot_be_scored(tuned, masked, tmp_path, capsys):
    assert evaluate(["--checkpoint", str(tuned[0]), "--manifest", str(masked), "--split", "val", "--o", str(tmp_path / "t.tsv")]) == 2
    assert "fine-tune it first" in capsys.readouterr().err


def test_a_run_that_learns_no_more_ends_early_and_says_so_again(run, tmp_path, capsys):
    changes = FINE | {"steps": 40, "optim.lr": 1e-9, "eval_every": 0.1, "patience": 2, "optim.layer_decay": 0.5, "optim.unfreeze": 0.5}
    folder = run(tmp_path / "run", **changes)
    assert "finished: 8 steps, ended early: 2 evaluations without a better loss" in capsys.readouterr().out
    run(folder, **changes)
    assert "finished: 8 steps, ended early" in capsys.readouterr().out
    assert read_metrics(folder / "metrics.jsonl")[-1]["step"] == 8


UNET = {"encoder": "resenc", "decoder": "unet", "unet.features": (4, 8, 8), "unet.blocks": (1, 1, 2), "unet.decoder_blocks": (1, 1)}
UNET |= {"data.crop": (32, 32, 32), "objective": "segmentation", "data.labels": "brain", "classes": 2, "optim.lr": 1e-2}


@pytest.fixture(scope="module")
def u_net(run, tmp_path_factory):
    """The checkpoint of a U-Net that was trained from scratch."""
    return run(tmp_path_factory.mktemp("unet") / "run", **UNET | {"steps": 40, "eval_every": 1.0}) / "checkpoints" / "40"


def test_a_u_net_learns_and_predicts(u_net, masked, tmp_path):
    rows = [row for row in read_metrics(u_net.parents[1] / "metrics.jsonl") if row["kind"] == "eval"]
    assert rows[0]["dice"] < 0.7 < 0.9 < rows[-1]["dice"]
    row = next(row for row in read_manifest(masked) if row.subject == "head3")
    assert predict(["--i", str(row.image), "--o", str(tmp_path), "--checkpoint", str(u_net)]) == 0
    (label,) = tmp_path.rglob("*.nii.gz")
    found, truth = read(label).voxels > 0, read(row.labels[0]).voxels > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9


def test_a_u_net_is_a_network_of_any_size_that_halves(u_net, tmp_path):
    network = load_network(u_net)
    network.save(tmp_path / "net.safetensors")
    again, image = load_network(tmp_path / "net.safetensors"), np.random.default_rng(0).random((1, 16, 24, 20, 1), np.float32)
    np.testing.assert_array_equal(again.logits(image), network.logits(image))
    with pytest.raises(InputError, match="an image of 16 x 24 x 22 voxels: this U-Net takes multiples of 4"):
        network.logits(np.zeros((1, 16, 24, 22, 1), np.float32))


def test_a_u_net_is_not_written_for_monai(u_net, tmp_path, capsys):
    assert convert([str(u_net), str(tmp_path / "out.safetensors")]) == 2
    error = capsys.readouterr().err
    assert "holds a residual U-Net, which MONAI does not have" in error and error.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_a_u_net_goes_on_from_another_with_its_rates_by_depth(u_net, run, tmp_path, capsys):
    changes = UNET | {"init.checkpoint": str(u_net), "init.parts": ("encoder", "decoder"), "optim.layer_decay": 0.5, "optim.unfreeze": 0.5}
    run(tmp_path / "run", **changes | {"steps": 2, "eval_every": 1.0, "remat": True})
    assert f"encoder, decoder from {u_net}: all " in capsys.readouterr().out
    before, after = (load(folder, "params/encoder")[0] for folder in (u_net, tmp_path / "run" / "checkpoints" / "2"))
    jax.tree.map(np.testing.assert_array_equal, before["stem"], after["stem"])
