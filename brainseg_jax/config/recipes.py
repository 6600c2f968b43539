"""Fine-tuning configs shared by all networks: the paper's tasks, and recipes for a trial, for a cohort, as published, and at 2 mm."""

from collections.abc import Callable

from ml_collections import ConfigDict

from brainseg_jax.config.keys import base
from brainseg_jax.config.resolve import recipe
from brainseg_jax.models.encoders import ENCODERS

# Section IV-B of the paper, and the label table of each.
TASKS = {"skull": "brain", "four": "seg4", "thirtythree": "seg33"}


def finetuning(variant: str, file: str, network: Callable[[ConfigDict], None], as_published: Callable[[ConfigDict], None]) -> ConfigDict:
    """The config of a variant TASK or TASK,RECIPE. `network` sets encoder, decoder and crop; `as_published` the paper's changes.

    Raises InputError, with the known names, for an unknown task or recipe.
    """
    recipes = {"": trial, ",full": full, ",paper": paper, ",2mm": two_millimetres, ",small": small, ",heads": heads, ",any": any_scan}
    change = recipe(variant, {task + name: change for task in TASKS for name, change in recipes.items()}, file)
    c = base()
    c.objective = "segmentation"
    c.classes = 0
    c.data.labels = TASKS[variant.partition(",")[0]]
    c.optim.lr = 2e-4
    c.optim.b2 = 0.999
    network(c)
    change(c)
    if change is paper:
        as_published(c)
    return c


def augmented(c: ConfigDict) -> None:
    """Turns on augmentation for scanners unlike those of training: contrast, coil, resolution, position and field of view."""
    c.augment.mirror.sides = 0.5
    c.augment.affine.chance = 0.3
    c.augment.elastic.chance = 0.2
    c.augment.contrast.chance = 0.3
    c.augment.bias.chance = 0.3
    c.augment.blur.chance = 0.2
    c.augment.noise.chance = 0.2
    c.augment.low_resolution.chance = 0.2
    c.augment.field_of_view.chance = 0.05


def trial(c: ConfigDict) -> None:
    """Sets a short run on one anatomy, augmented, for trying the software."""
    augmented(c)
    c.steps = 40
    c.log_every = 1
    c.eval_every = 0.5
    c.eval_volumes = 1
    c.mesh.data = 1


def full(c: ConfigDict) -> None:
    """Sets a full training on a cohort, on GPUs."""
    augmented(c)
    c.epochs = 300.0
    c.eval_every = 0.02
    c.patience = 10
    c.save_every = 500
    c.data.batch = 8
    c.data.crops_per_volume = 2
    c.remat = True
    # Layer-wise decay protects pretrained weights; without pretraining it would only slow the first blocks down.
    c.optim.layer_decay = 0.75 if ENCODERS[c.encoder].pretraining else 1.0


def paper(c: ConfigDict) -> None:
    """Sets the values of the paper's code, with 34 classes for its 36: the two of the choroid plexus were never trained. Its metric counted
    the background."""
    c.epochs = 100.0
    c.eval_every = 0.1
    c.save_every = 500
    c.data.spec = "paper"
    c.data.dtype = "float16"
    c.data.split_rule = "paper"
    c.data.batch = 8  # 4 GPUs × 1 volume × 2 crops
    c.data.crops_per_volume = 2
    c.segmentation.loss = "paper"
    c.segmentation.blend = "constant"
    c.augment.chance = 0.0
    c.optim.lr = 1e-4
    c.optim.warmup = 0.5
    c.optim.weight_decay = 1e-5
    c.optim.decay = (".*",)
    c.optim.clip = 0.0


def two_millimetres(c: ConfigDict) -> None:
    """Sets whole heads at 2 mm in one crop: for scans of that resolution, or a CPU."""
    augmented(c)
    c.epochs = 100.0
    c.eval_every = 0.1
    c.data.spacing = 2.0
    c.data.size = (96, 96, 96)
    c.data.crop = (96, 96, 96)
    c.data.batch = 2
    of_encoder(c, "2mm")


def small(c: ConfigDict) -> None:
    """Sets small networks on crops at 2 mm, for an hour or two on two CPU cores."""
    augmented(c)
    narrow(c)
    c.steps = 2000
    c.eval_volumes = 8
    c.data.batch = 2
    c.optim.lr = 1e-3


def heads(c: ConfigDict) -> None:
    """Sets small networks on whole heads at 2 mm, as in prediction: position in the head distinguishes left from right. For many small
    structures."""
    small(c)
    c.steps = 1000
    c.data.crop = (96, 96, 96)
    c.data.batch = 1
    c.segmentation.loss = "log"
    c.augment.affine.chance = 0.5
    c.augment.affine.translation = (12.0, 12.0, 12.0)


def any_scan(c: ConfigDict) -> None:
    """Sets whole heads at 2 mm of any contrast: most scans are synthetic, and all are augmented beyond the range of real scanners."""
    heads(c)
    c.synth.share = 0.7
    c.synth.lesions.chance = 0.3
    c.synth.strip.chance = 0.25
    c.synth.face.chance = 0.15
    c.synth.air_noise.chance = 0.05
    c.augment.affine.chance = 0.9
    c.augment.affine.rotation = (25.0, 25.0, 25.0)
    c.augment.affine.scaling = (0.15, 0.15, 0.15)
    c.augment.affine.translation = (16.0, 16.0, 16.0)
    c.augment.elastic.chance = 0.6
    c.augment.elastic.octaves = 2
    c.augment.contrast.chance = 0.5
    c.augment.bias.chance = 0.6
    c.augment.bias.log = 0.6
    c.augment.blur.chance = 0.3
    c.augment.noise.chance = 0.5
    c.augment.noise.sigma = 0.08
    c.augment.low_resolution.chance = 0.4
    c.augment.low_resolution.mm = 7.0
    c.augment.field_of_view.chance = 0.1


def narrow(c: ConfigDict) -> None:
    """Sets what small networks share, pretrained or fine-tuned: 64³ crops at 2 mm, and the encoder's small sizes."""
    c.eval_every = 0.1
    c.save_every = 100
    c.data.spacing = 2.0
    c.data.size = (96, 96, 96)
    c.data.crop = (64, 64, 64)
    of_encoder(c, "small")


def of_encoder(c: ConfigDict, recipe: str) -> None:
    """Applies the encoder's own changes in a recipe, if any."""
    if change := ENCODERS[c.encoder].recipes.get(recipe):
        change(c)
