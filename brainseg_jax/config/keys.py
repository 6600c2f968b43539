"""All config keys, a line each: default, rule, meaning. Files in configs/ change some, the command line any.

Keys of an encoder and its decoders are in models/*_spec.py. Keys are a file format: config.json and the cards of checkpoints hold them. A
new key's default is the behaviour from before the key.
"""

from typing import Any

from ml_collections import ConfigDict

from brainseg_jax.core.config_key import (
    Group,
    below_one,
    factors,
    flatten,
    fraction,
    group,
    key,
    names,
    not_negative,
    number,
    one_of,
    patterns,
    positive,
    switch,
    text,
    three,
)
from brainseg_jax.models.encoders import ENCODERS

ATTENDING = ",".join(spec.name for spec in ENCODERS.values() if spec.attends)
LABELLED = "objective=segmentation"

EXPERIMENT = group(
    "Objective, network and length of training: one of steps and epochs is 0.",
    seed=key(0, not_negative, "seed of everything random: initial weights, masks, crops, augmentation"),
    objective=key("mae", one_of("mae", "ssl", "segmentation"), "the task: pretraining of a ViT, of a Swin, or fine-tuning"),
    encoder=key("vit", one_of(*ENCODERS), "the network that is trained"),
    decoder=key("unetr", one_of(*(d for spec in ENCODERS.values() for d in spec.decoders)), "the network from its maps to logits"),
    channels=key(1, positive, 'images of a subject: T1 and FLAIR are 2; the manifest\'s column image names as many, with ";" between'),
    classes=key(36, not_negative, "classes of a segmentation, background included; 0: as many as the label table has", acts_with=LABELLED),
    dtype=key("auto", one_of("auto", "float32", "bfloat16"), "type to compute in; auto: float32 on a CPU, else bfloat16"),
    attention=key("auto", one_of("auto", "xla", "cudnn", "pallas"), "kernel; the last two: GPUs", f"encoder={ATTENDING}", resumable=True),
    remat=key(False, switch, "recompute blocks in the backward pass: less memory, about a third more computing"),
    steps=key(0, not_negative, "batches to train on"),
    epochs=key(0.0, not_negative, "passes over the training volumes, each giving data.crops_per_volume crops"),
    log_every=key(10, positive, "steps between lines of the log", resumable=True),
    eval_every=key(0.25, fraction, "share of the run between evaluations, with checkpoint and picture; there is one at its end"),
    eval_volumes=key(64, positive, "validation volumes used at most; each gives its central crop"),
    save_every=key(0, not_negative, "steps between further checkpoints; 0: only at evaluations", resumable=True),
    best=key("loss", text, "the evaluation metric, smallest is best, whose best checkpoint is kept beside the latest"),
    patience=key(0, not_negative, "evaluations without a better `best` after which the run ends early; 0: it never does"),
)

INIT = group(
    "Initial weights of fine-tuning.",
    checkpoint=key("", text, "folder of a pretraining's checkpoint, or of `brainseg convert`; empty: from scratch"),
    parts=key(("encoder",), names, "parts loaded from it, each completely: encoder, decoder, head"),
    channels=key("refuse", one_of("refuse", "repeat"), "where their number differs; repeat: the mean first kernel, scaled to one sum"),
)

DATA = group(
    "The scans, their standardisation and split, and reading of crops.",
    manifest=key("", text, "a CSV or TSV of scans (`brainseg prepare` makes one); empty: the embedded sample cohort"),
    subjects=key(12, positive, "subjects of the sample cohort", acts_with="data.manifest="),
    splits=key("", text, "a split file to reuse; empty: the manifest's own, or one is made and written into the run folder"),
    split_rule=key("subject", one_of("subject", "paper"), "how a split is made: by subject, or by image as the paper did"),
    fractions=key((0.7, 0.1, 0.2), three(number), "train, val, test, by subject", acts_with="data.split_rule=subject"),
    split_seed=key(0, not_negative, "seed of split and sample cohort; separate from `seed`, so that another seed has the same split"),
    spec=key("default", one_of("default", "paper"), "standardisation: ours, or the published one"),
    spacing=key(1.0, positive, "mm between voxels of the standardised volume"),
    size=key((192, 192, 192), three(positive), "voxels of the standardised volume"),
    dtype=key("uint8", one_of("uint8", "float16"), "type of the cached volume"),
    cache=key("", text, "folder of standardised volumes; empty: $XDG_CACHE_HOME/brainseg_jax or ~/.cache/brainseg_jax", resumable=True),
    labels=key("", text, "label table, whose structures are the classes: a name in data/tables/, or a TSV file", acts_with=LABELLED),
    missing_labels=key("refuse", one_of("refuse", "background"), "structures a scan's labels lack: refuse it, or background", LABELLED),
    target=key("", text, "a data set of the manifest: others are sources and give all labels; empty: all targets", acts_with=LABELLED),
    num_labelled=key(-1, number, "labelled training scans of the target, by split_seed, more including fewer; -1: all", acts_with=LABELLED),
    channel_names=key((), names, 'names of the images, e.g. ("T1w", "FLAIR"), for predict to ask for; empty: no names'),
    max_failures=key(0.1, fraction, "share of scans that may be unusable before the run stops", resumable=True),
    crop=key((160, 160, 160), three(positive), "voxels the model sees"),
    crops_per_volume=key(1, positive, "crops from a volume each time it is read"),
    batch=key(1, positive, "crops in a step, over all devices"),
    threads=key(4, positive, "threads that read ahead, in each process", resumable=True),
    workers=key(0, not_negative, "processes that read ahead; 0: threads only", resumable=True),
)

AUGMENT = group(
    "Augmentation of training crops, on the device. Chances are drawn for each crop; 0: never. Affine and elastic deformations move "
    "the surroundings of a crop into it.",
    scale=key(0.1, not_negative, "values times 1 ± this at most"),
    shift=key(0.1, not_negative, "values plus or minus this at most"),
    chance=key(0.2, fraction, "chance of each of the two"),
    mirror=group(
        "Reflection.",
        sides=key(0.0, fraction, "chance that left and right change places; labels become their partners of the label table"),
        others=key(0.0, fraction, "chance of a flip along each other axis, e.g. heads upside down"),
    ),
    affine=group(
        "Affine deformation: rotation, scaling, shear and translation.",
        chance=key(0.0, fraction, "chance of it"),
        rotation=key((10.0, 10.0, 10.0), three(not_negative), "largest angle about each axis of the array, degrees"),
        scaling=key((0.1, 0.1, 0.1), three(below_one), "factor of each axis, from 1 / (1 + this) to 1 + this"),
        shear=key((0.05, 0.05, 0.05), three(below_one), "largest shear of each axis along the next one"),
        translation=key((5.0, 5.0, 5.0), three(not_negative), "largest shift along each axis, mm"),
    ),
    elastic=group(
        "Elastic deformation: smooth displacements.",
        chance=key(0.0, fraction, "chance of it"),
        mm=key(8.0, not_negative, "largest displacement along each axis, mm; a fifth of it is usual"),
        nodes=key(32.0, positive, "mm between the displacement's nodes; 2.5 times the largest one and more, so that nothing folds"),
        octaves=key(1, positive, "scales of it: each further one has half the distance of nodes and a quarter of the mm"),
    ),
    contrast=group(
        "Contrast: a gamma and a random monotonic curve.",
        chance=key(0.0, fraction, "chance of each of the two"),
        gamma=key(0.4, not_negative, "values to a power from 1 / (1 + this) to 1 + this"),
        curve=key(0.8, fraction, "values along a rising curve; how much its slope may change"),
    ),
    bias=group(
        "Bias field of the coil.",
        chance=key(0.0, fraction, "chance of it"),
        log=key(0.5, not_negative, "values times exp(± this) at most, smooth in space; a fifth of it is usual"),
        nodes=key(60.0, positive, "mm between the nodes of the field"),
    ),
    blur=group(
        "Gaussian blur.",
        chance=key(0.0, fraction, "chance of it"),
        mm=key(1.0, not_negative, "largest standard deviation, mm"),
    ),
    noise=group(
        "Noise.",
        chance=key(0.0, fraction, "chance of it"),
        kind=key("gaussian", one_of("gaussian", "rician"), "rician: noise of the magnitude of a complex signal"),
        sigma=key(0.05, not_negative, "largest standard deviation"),
    ),
    low_resolution=group(
        "Thick slices.",
        chance=key(0.0, fraction, "chance of them"),
        mm=key(5.0, positive, "largest thickness of a slice, mm"),
    ),
    field_of_view=group(
        "A head that is partly outside the image.",
        chance=key(0.0, fraction, "chance of it"),
        share=key(0.25, below_one, "largest share of an axis that is missing at one end"),
    ),
)

SYNTH = group(
    "Training crops synthesised from label maps (data/synthesis/generator.py). Rows with labels only are always synthesised; they do not "
    "count as data.num_labelled, which leaves out those of a subject whose scans it leaves out. Chances are of synthetic scans.",
    acts_with=LABELLED,
    share=key(0.0, fraction, "share of crops with an image that are synthesised from their labels instead"),
    spread=key(0.1, fraction, "largest standard deviation of a tissue"),
    air=key(0.2, fraction, "largest mean of the air"),
    prior=group(
        "Intensities of tissues.",
        table=key("", text, "a TSV of tissue intensities in a sequence (data/synthesis/priors.py); empty: random in every scan"),
        share=key(0.5, fraction, "share of synthetic scans with the table's intensities"),
    ),
    texture=group(
        "Texture of tissues.",
        share=key(0.5, fraction, "share of a tissue's variance that may be smooth"),
        mm=key(5.0, positive, "mm between the nodes of the smooth part"),
    ),
    lesions=group(
        "Hyper- or hypointensities of the white matter; labels do not change.",
        chance=key(0.0, fraction, "chance of them"),
        share=key(0.1, fraction, "largest share of the white matter"),
        mm=key(8.0, positive, "mm between the nodes of the random field whose peaks they are"),
    ),
    strip=group(
        "Skull-stripping.",
        chance=key(0.0, fraction, "chance of it"),
        mm=key(5.0, positive, "mm that may be left around the brain"),
    ),
    face=group(
        "Defacing.",
        chance=key(0.0, fraction, "chance of it"),
        mm=key(15.0, positive, "mm that may be left before the brain"),
    ),
    air_noise=group(
        "Uniform noise in the air, as in MP2RAGE.",
        chance=key(0.0, fraction, "chance of it"),
    ),
)

MAE = group(
    "Pretraining by masked autoencoding.",
    acts_with="objective=mae",
    mask_ratio=key(0.85, fraction, "share of patches hidden from the encoder"),
    width=key(512, positive, "width of the decoder"),
    depth=key(4, positive, "blocks of the decoder"),
    heads=key(16, positive, "attention heads of the decoder"),
    normalize_targets=key(False, switch, "predict each patch standardised by its own mean and variance"),
)

SSL = group(
    "Pretraining by cut-out, rotation and contrast.",
    acts_with="objective=ssl",
    cutout=key("share", one_of("share", "paper"), "boxes of noise or another crop until ssl.share of a view is so; see objectives/ssl.py"),
    share=key(0.3, fraction, "share of a view that is overwritten"),
    heads=key("pooled", one_of("pooled", "tokens"), "what heads read: the deepest map's mean, or its first and second voxel (paper)"),
    decoder=key("vae", one_of("vae", "deconv"), "of the reconstruction: convolves and interpolates, or convolves transposed"),
    embedding=key(512, positive, "length of the vector that contrast compares"),
    temperature=key(0.5, positive, "temperature of contrast; its negatives are all other crops of the step, so a batch of 1 has none"),
    weights=key((1.0, 1.0, 1.0), three(not_negative), "weights of rotation, contrast and reconstruction in the loss"),
)

SEGMENTATION = group(
    "Fine-tuning. The loss is cross entropy plus Dice over the classes that a crop has (present), its logarithm, for small structures "
    "(log), or Dice over all classes (paper).",
    acts_with=LABELLED,
    loss=key("present", one_of("present", "log", "paper"), "which Dice stands beside cross entropy"),
    overlap=key(0.5, fraction, "overlap of neighbouring windows where a whole volume is segmented, as a share of a window"),
    blend=key("gaussian", one_of("gaussian", "constant"), "how overlapping windows are weighted; constant: the paper"),
)

OPTIM = group(
    "AdamW and its schedule.",
    lr=key(4e-4, positive, "learning rate after warm-up"),
    warmup=key(0.05, fraction, "share of the run in which it rises from 0, linearly; then it falls to 0 along half a cosine"),
    b1=key(0.9, below_one, "AdamW's decay of the mean of gradients"),
    b2=key(0.95, below_one, "AdamW's decay of the mean of their squares"),
    weight_decay=key(0.05, not_negative, "weight decay, decoupled"),
    decay=key((r".*kernel",), patterns, "parameters with weight decay"),
    clip=key(1.0, not_negative, "largest global norm of the gradient; 0: no clipping"),
    lr_multipliers=key((), factors, "parameters that learn slower or, with factor 0, not at all"),
    layer_decay=key(1.0, fraction, "each block of the encoder learns by this factor slower than the next deeper one; 1: all alike"),
    unfreeze=key(0.0, fraction, "share of the run in which the encoder is frozen; then its blocks are freed, the deepest first"),
    accumulate=key(1, positive, "parts a batch is cut into, one after the other, to save memory"),
)

MESH = group(
    "Devices: mesh.data copies of the state, each cut into mesh.fsdp parts.",
    data=key(-1, number, "copies of the state; -1: as many as there are devices left", resumable=True),
    fsdp=key(1, number, "parts each copy is cut into; -1: as many as there are devices left", resumable=True),
)

OF_MODELS = {name: keys for spec in ENCODERS.values() for name, keys in spec.keys.items()}
OF_OBJECTIVES = {"mae": MAE, "ssl": SSL, "segmentation": SEGMENTATION}
GROUPS = {"init": INIT, "data": DATA, "augment": AUGMENT, "synth": SYNTH} | OF_MODELS | OF_OBJECTIVES | {"optim": OPTIM, "mesh": MESH}
KEYS = flatten(EXPERIMENT.keys | GROUPS)


def base() -> ConfigDict:
    """The default experiment: MAE of a 3-D ViT-B on the embedded sample cohort."""

    def defaults(keys: dict[str, Any]) -> dict[str, Any]:
        return {name: defaults(entry.keys) if isinstance(entry, Group) else entry.default for name, entry in keys.items()}

    return ConfigDict(defaults(EXPERIMENT.keys | GROUPS))


def get_key(c: ConfigDict, name: str) -> Any:
    """The value of a dotted key."""
    for part in name.split("."):
        c = c[part]
    return c


def flat(c: ConfigDict) -> dict[str, Any]:
    """All values by their dotted keys."""
    values = {}
    for name, value in c.items():
        values |= {f"{name}.{k}": v for k, v in flat(value).items()} if isinstance(value, ConfigDict) else {name: value}
    return values
