"""Every key an experiment has, each with its meaning and default; files in configs/ change some of them, the command line any of them."""

import difflib
import importlib.util
import json
import math
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from brainseg_jax.core.errors import InputError


def base() -> ConfigDict:
    """The default experiment: MAE of a 3-D ViT-B on the embedded sample cohort."""
    c = ConfigDict()
    c.seed = 0  # of everything random: initial weights, masks, crops, augmentation
    c.objective = "mae"  # what is learned: a name in objectives/
    c.encoder = "vit"  # what learns it: a name in models/
    c.decoder = "unetr"  # for segmentation, what turns its features into logits: a name in models/
    c.channels = 1  # images of a subject: T1 and FLAIR are 2; the manifest names as many in its column image, separated by ";"
    c.classes = 36  # of a segmentation, background included; 0: as many as the label table has
    c.dtype = "auto"  # compute in float32 or bfloat16; auto: bfloat16 on an accelerator, float32 on a CPU. Parameters are float32
    c.attention = "auto"  # kernel of a ViT's attention: "xla", "cudnn" or "pallas", both for GPUs; auto: a CPU's own form, else XLA's
    c.remat = False  # recompute blocks in the backward pass: less memory, about a third more computing

    # What fine-tuning begins with.
    c.init = ConfigDict()
    c.init.checkpoint = ""  # the folder of a pretraining run's checkpoint, or one of converters.convert; empty: from scratch
    c.init.parts = ("encoder",)  # what is taken of it, wholly or not at all: encoder, decoder, head
    c.init.channels = "refuse"  # another number of channels, or "repeat" the first layers' mean kernel over ours, scaled to the same sum

    # How long. One of the two is 0.
    c.steps = 0
    c.epochs = 0.0  # passes over the training volumes, each giving data.crops_per_volume crops

    c.data = ConfigDict()
    c.data.manifest = ""  # a CSV or TSV of scans (scripts/prepare_data.py makes one); empty: the embedded sample cohort
    c.data.subjects = 12  # of the sample cohort
    c.data.splits = ""  # a split file to reuse; empty: the manifest's own split, or one is made and written into the run folder
    c.data.split_rule = "subject"  # how one is made: by subject, or by image as the paper did ("paper")
    c.data.fractions = (0.7, 0.1, 0.2)  # train, val, test, by subject; the paper's rule has its own
    c.data.split_seed = 0  # of the split and of the sample cohort; apart from `seed`, so that another seed meets the same people
    c.data.spec = "default"  # standardisation: "default", or "paper" for the published one
    c.data.spacing = 1.0  # mm, of the standardised volume
    c.data.size = (192, 192, 192)  # its voxels
    c.data.dtype = "uint8"  # of the cached volume: uint8 or float16
    c.data.cache = ""  # folder for standardised volumes; empty: $XDG_CACHE_HOME/brainseg_jax or ~/.cache/brainseg_jax
    c.data.labels = ""  # for segmentation, the label table whose structures are the classes: a name in data/tables/, or a TSV file
    c.data.missing_labels = (
        "refuse"  # structures of it that a scan's labels do not tell apart: "refuse" the scan, or take them as "background"
    )
    c.data.target = ""  # a data set of the manifest: the others are sources, which give all their masks; empty: all are targets
    c.data.num_labelled = -1  # training scans of the target with labels that are used, drawn by split_seed, more including fewer; -1: all
    c.data.channel_names = ()  # what the images are, e.g. ("T1w", "FLAIR"), for predict to ask for; empty: not said
    c.data.max_failures = 0.1  # share of scans that may be unusable before the run stops
    c.data.crop = (160, 160, 160)  # voxels the model sees
    c.data.crops_per_volume = 1  # crops taken from a volume each time it is read
    c.data.batch = 1  # crops in a step, over all devices
    c.data.threads = 4  # that read ahead, in each process
    c.data.workers = 0  # processes that read ahead; 0: threads only

    # Augmentation of training crops, on the device. Every chance is for each crop anew; 0: never. Affine and elastic deformations move what
    # lies around a crop in its volume into it.
    c.augment = ConfigDict()
    c.augment.scale = 0.1  # values times 1 ± this at most
    c.augment.shift = 0.1  # values plus or minus this at most
    c.augment.chance = 0.2  # of each of the two
    c.augment.mirror = ConfigDict()
    c.augment.mirror.sides = 0.0  # chance that left and right change places; labels become their partners of the label table
    c.augment.mirror.others = 0.0  # chance of each other axis, e.g. of heads upside down
    c.augment.affine = ConfigDict()
    c.augment.affine.chance = 0.0
    c.augment.affine.rotation = (10.0, 10.0, 10.0)  # degrees about each axis of the array at most
    c.augment.affine.scaling = (0.1, 0.1, 0.1)  # factor of each axis, from 1 / (1 + this) to 1 + this
    c.augment.affine.shear = (0.05, 0.05, 0.05)  # of each axis along the next one
    c.augment.affine.translation = (5.0, 5.0, 5.0)  # mm
    c.augment.elastic = ConfigDict()
    c.augment.elastic.chance = 0.0
    c.augment.elastic.mm = 8.0  # largest displacement along each axis; a fifth of it is usual
    c.augment.elastic.nodes = 32.0  # mm between the nodes of the displacement; 2.5 times the largest one and more, so that nothing folds
    c.augment.elastic.octaves = 1  # scales of it: each further one has half the distance of nodes and a quarter of the mm
    c.augment.contrast = ConfigDict()
    c.augment.contrast.chance = 0.0  # of each of the two
    c.augment.contrast.gamma = 0.4  # values to a power from 1 / (1 + this) to 1 + this
    c.augment.contrast.curve = 0.8  # values along a rising curve; how much its slope may change, at most 1
    c.augment.bias = ConfigDict()
    c.augment.bias.chance = 0.0
    c.augment.bias.log = 0.5  # values times exp(± this) at most, smooth in space; a fifth of it is usual
    c.augment.bias.nodes = 60.0  # mm between the nodes of the field
    c.augment.blur = ConfigDict()
    c.augment.blur.chance = 0.0
    c.augment.blur.mm = 1.0  # largest standard deviation
    c.augment.noise = ConfigDict()
    c.augment.noise.chance = 0.0
    c.augment.noise.kind = "gaussian"  # or "rician", the magnitude of a complex signal
    c.augment.noise.sigma = 0.05  # largest standard deviation
    c.augment.low_resolution = ConfigDict()
    c.augment.low_resolution.chance = 0.0
    c.augment.low_resolution.mm = 5.0  # largest thickness of a slice
    c.augment.field_of_view = ConfigDict()
    c.augment.field_of_view.chance = 0.0
    c.augment.field_of_view.share = 0.25  # largest part of an axis that is missing at one end

    # Scans made from label maps, of training crops (data/synthesis/generator.py). Rows of labels only are made always; they do not count as
    # data.num_labelled, which leaves out those of a person whose scans it leaves out. Chances are of made scans.
    c.synth = ConfigDict()
    c.synth.share = 0.0  # of crops with an image that are made from their labels instead
    c.synth.spread = 0.1  # largest standard deviation of a tissue
    c.synth.air = 0.2  # largest mean of the air
    c.synth.prior = ConfigDict()
    c.synth.prior.table = ""  # a TSV of what tissues look like in a sequence (data/synthesis/priors.py); empty: anything, in every scan
    c.synth.prior.share = 0.5  # of made scans that look so, where there is a table
    c.synth.texture = ConfigDict()
    c.synth.texture.share = 0.5  # of a tissue's variance that may be smooth
    c.synth.texture.mm = 5.0  # between the nodes of the smooth part
    c.synth.lesions = ConfigDict()
    c.synth.lesions.chance = 0.0  # of hyper- or hypointensities of the white matter; labels stay what they are
    c.synth.lesions.share = 0.1  # of the white matter at most
    c.synth.lesions.mm = 8.0  # between the nodes of the field that they are the summits of
    c.synth.strip = ConfigDict()
    c.synth.strip.chance = 0.0  # of a head without its skull
    c.synth.strip.mm = 5.0  # that may be left around the brain
    c.synth.face = ConfigDict()
    c.synth.face.chance = 0.0  # of a head without its face
    c.synth.face.mm = 15.0  # that may be left before the brain
    c.synth.air_noise = ConfigDict()
    c.synth.air_noise.chance = 0.0  # of air from black to white, voxel by voxel, as in MP2RAGE

    c.vit = ConfigDict()
    c.vit.patch = 16
    c.vit.width = 768
    c.vit.depth = 12
    c.vit.heads = 12
    c.vit.hidden = 3072  # of the MLP
    c.vit.positions = "sincos"  # fixed; "separable": learned, per slice and per place in it (the paper); "table": one per token (MONAI)
    c.vit.class_token = True
    c.vit.qkv_bias = True
    c.vit.eps = 1e-6  # of layer norm
    c.vit.features = (3, 6, 9)  # blocks, from 0, whose outputs a decoder gets beside the last one (MONAI); (2, 5, 8): the paper's code
    c.vit.drop_path = 0.0  # largest chance to leave out a branch of a block while training; it grows linearly with depth

    c.unetr = ConfigDict()
    c.unetr.width = 16  # channels at full resolution (MONAI's feature_size)

    c.swin = ConfigDict()
    c.swin.width = 48  # channels of the first stage (MONAI's feature_size), also of Swin UNETR's decoder at full resolution
    c.swin.depths = (2, 2, 2, 2)  # blocks in each stage
    c.swin.heads = (3, 6, 12, 24)
    c.swin.window = 7
    c.swin.merging = "merging"  # order of patch merging: MONAI 1.5's; "legacy": 0.9-1.4's, of all published weights; "mergingv2"
    c.swin.v2 = False  # a residual convolution block before each stage (Swin UNETR v2)
    c.swin.qkv_bias = True
    c.swin.drop_path = 0.0  # as vit.drop_path

    # A residual U-Net, encoder "resenc" and decoder "unet"; the defaults are nnU-Net's ResEnc with its six stages.
    c.unet = ConfigDict()
    c.unet.features = (32, 64, 128, 256, 320, 320)  # channels of each stage, the first at full resolution, each further one at half of it
    c.unet.blocks = (1, 3, 4, 6, 6, 6)  # residual blocks in each stage of the encoder
    c.unet.decoder_blocks = (1, 1, 1, 1, 1)  # convolutions in each stage of the decoder, from coarse to fine: one number fewer

    c.mae = ConfigDict()
    c.mae.mask_ratio = 0.85  # share of patches hidden from the encoder
    c.mae.width = 512  # of the decoder
    c.mae.depth = 4
    c.mae.heads = 16
    c.mae.normalize_targets = False  # predict each patch standardised by its own mean and variance

    c.ssl = ConfigDict()
    c.ssl.cutout = "share"  # boxes of noise or another crop until ssl.share of a view is overwritten; "paper": see objectives/ssl.py
    c.ssl.share = 0.3
    c.ssl.heads = "pooled"  # rotation and contrast read the mean of the deepest map; "tokens": its first and second voxel (published)
    c.ssl.decoder = "vae"  # of the reconstruction, by published names: "vae" convolves and interpolates, "deconv" convolves transposed
    c.ssl.embedding = 512  # length of the vector that contrast compares
    c.ssl.temperature = 0.5  # of contrast; its negatives are all other crops of the step, so a batch of 1 has none
    c.ssl.weights = (1.0, 1.0, 1.0)  # of rotation, contrast and reconstruction in the loss

    c.segmentation = ConfigDict()
    # Cross entropy, and Dice over the classes that a crop has ("present"), its logarithm, for small ones ("log"), or over all ("paper").
    c.segmentation.loss = "present"
    c.segmentation.overlap = 0.5  # of neighbouring windows where a whole volume is segmented, as a share of a window
    c.segmentation.blend = "gaussian"  # how overlapping windows are weighted: "gaussian" or "constant" (the paper)

    c.optim = ConfigDict()
    c.optim.lr = 4e-4  # learning rate after warm-up
    c.optim.warmup = 0.05  # share of the run in which it rises from 0, linearly; then it falls to 0 along half a cosine
    c.optim.b1 = 0.9
    c.optim.b2 = 0.95
    c.optim.weight_decay = 0.05
    c.optim.decay = (r".*kernel",)  # which parameters decay, as regular expressions of their paths
    c.optim.clip = 1.0  # largest global norm of the gradient; 0: no clipping
    c.optim.lr_multipliers = ()  # (pattern, factor) pairs: parameters that learn slower or, with factor 0, not at all
    c.optim.layer_decay = 1.0  # each block of the encoder learns by this factor slower than the next deeper one; 1: all alike
    c.optim.unfreeze = 0.0  # share of the run in which the encoder is frozen; then its blocks are freed, the deepest first
    c.optim.accumulate = 1  # parts a batch is cut into, one after the other, to save memory

    # Devices: mesh.data copies of the state, each cut into mesh.fsdp parts. -1: all that are left.
    c.mesh = ConfigDict()
    c.mesh.data = -1
    c.mesh.fsdp = 1

    c.log_every = 10  # steps between lines
    c.eval_every = 0.25  # share of the run between evaluations (with checkpoint and picture); at its end there is always one
    c.eval_volumes = 64  # validation volumes used at most; each gives its central crop
    c.save_every = 0  # steps between further checkpoints; 0: only at evaluations
    c.best = "loss"  # the evaluation metric, smallest is best, whose best checkpoint is kept beside the latest
    c.patience = 0  # evaluations without a better one of it after which the run ends early; 0: it never does
    return c


# Keys are a file format: config.json and the cards of checkpoints hold them. A new key's default is what was done before there was the key.
FORMAT = 1  # of cards and run records; they say it since there is more than one form. Raise it when an older version would misread them
# The old name of a key: the name it has now. The command line, config files, cards and records may say either.
RENAMED = {
    "optim.peak": "optim.lr",
    "optim.rates": "optim.lr_multipliers",
    "data.masks": "data.num_labelled",
    "data.lacking": "data.missing_labels",
    "augment.cut.chance": "augment.field_of_view.chance",
    "augment.cut.share": "augment.field_of_view.share",
    "ssl.cut": "ssl.cutout",
}

# Keys that may differ when a run is resumed: they change what is printed and where things lie, not what is computed.
RESUMABLE = (
    "attention",
    "log_every",
    "save_every",
    "data.cache",
    "data.threads",
    "data.workers",
    "data.max_failures",
    "mesh.data",
    "mesh.fsdp",
)

CHOICES = {
    "objective": ("mae", "ssl", "segmentation"),
    "encoder": ("vit", "swin", "resenc"),
    "decoder": ("unetr", "swin_unetr", "unet"),
    "dtype": ("auto", "float32", "bfloat16"),
    "attention": ("auto", "xla", "cudnn", "pallas"),
    "data.spec": ("default", "paper"),
    "data.split_rule": ("subject", "paper"),
    "data.dtype": ("uint8", "float16"),
    "data.missing_labels": ("refuse", "background"),
    "init.channels": ("refuse", "repeat"),
    "segmentation.loss": ("present", "log", "paper"),
    "segmentation.blend": ("gaussian", "constant"),
    "augment.noise.kind": ("gaussian", "rician"),
    "vit.positions": ("sincos", "separable", "table"),
    "swin.merging": ("legacy", "merging", "mergingv2"),
    "ssl.cutout": ("share", "paper"),
    "ssl.heads": ("pooled", "tokens"),
    "ssl.decoder": ("vae", "deconv"),
}
POSITIVE = (
    *("data.subjects", "data.spacing", "data.size", "data.crop", "data.crops_per_volume", "data.batch", "data.threads"),
    *("augment.elastic.nodes", "augment.elastic.octaves", "augment.bias.nodes", "augment.low_resolution.mm"),
    *("synth.texture.mm", "synth.lesions.mm", "synth.strip.mm", "synth.face.mm"),
    *("vit.patch", "vit.width", "vit.depth", "vit.heads", "vit.hidden", "mae.width", "mae.depth", "mae.heads"),
    *("channels", "unetr.width", "swin.width", "swin.depths", "swin.heads", "swin.window", "ssl.embedding", "ssl.temperature"),
    *("unet.features", "unet.blocks", "unet.decoder_blocks"),
    *("optim.lr", "optim.accumulate", "log_every", "eval_volumes", "vit.eps"),
)
NOT_NEGATIVE = (
    *("seed", "steps", "epochs", "data.split_seed", "data.workers", "augment.scale", "augment.shift"),
    *("augment.affine.rotation", "augment.affine.scaling", "augment.affine.shear", "augment.affine.translation", "augment.elastic.mm"),
    *("augment.contrast.gamma", "augment.bias.log", "augment.blur.mm", "augment.noise.sigma"),
    *("classes", "optim.weight_decay", "optim.clip", "save_every", "ssl.weights", "patience"),
)
FRACTIONS = (
    *("augment.mirror.sides", "augment.mirror.others", "augment.affine.chance", "augment.elastic.chance", "augment.contrast.chance"),
    *("augment.contrast.curve", "augment.bias.chance", "augment.blur.chance", "augment.noise.chance", "augment.low_resolution.chance"),
    *("augment.field_of_view.chance", "augment.field_of_view.share"),
    *(
        "synth.share",
        "synth.prior.share",
        "synth.spread",
        "synth.air",
        "synth.texture.share",
        "synth.lesions.chance",
        "synth.lesions.share",
    ),
    *("synth.strip.chance", "synth.face.chance", "synth.air_noise.chance"),
    *("data.max_failures", "augment.chance", "mae.mask_ratio", "ssl.share", "vit.drop_path", "swin.drop_path"),
    *("segmentation.overlap", "optim.warmup", "optim.layer_decay", "optim.unfreeze", "eval_every"),
)
BELOW_ONE = ("optim.b1", "optim.b2", "augment.affine.scaling", "augment.affine.shear", "augment.field_of_view.share")
TRIPLES = {"data.size": int, "data.crop": int, "data.fractions": (int, float), "ssl.weights": (int, float)} | dict.fromkeys(
    ("augment.affine.rotation", "augment.affine.scaling", "augment.affine.shear", "augment.affine.translation"), (int, float)
)
# Keys, or groups of them, and what another key has to be for them to do something.
ACTS_WITH = (
    (("vit.",), "encoder", ("vit",)),
    (("swin.",), "encoder", ("swin",)),
    (("unet.",), "encoder", ("resenc",)),
    (("attention",), "encoder", ("vit", "swin")),
    (("mae.",), "objective", ("mae",)),
    (("ssl.",), "objective", ("ssl",)),
    (("vit.drop_path",), "objective", ("segmentation",)),
    (("segmentation.", "unetr.", "synth.", "classes"), "objective", ("segmentation",)),
    (("data.labels", "data.missing_labels", "data.target", "data.num_labelled"), "objective", ("segmentation",)),
    (("unetr.",), "decoder", ("unetr",)),
    (("data.subjects",), "data.manifest", ("",)),
    (("data.fractions",), "data.split_rule", ("subject",)),
)
# Objectives that are made for one encoder.
MADE_FOR = {"mae": "vit", "ssl": "swin"}
# The decoder that takes an encoder's maps.
DECODER_OF = {"vit": "unetr", "swin": "swin_unetr", "resenc": "unet"}


def check(c: ConfigDict) -> None:
    """Raises InputError, naming the key and what it may be, for a value that cannot work."""
    for key, choices in CHOICES.items():
        if get_key(c, key) not in choices:
            raise InputError(f"{key} is {get_key(c, key)!r}; use one of {', '.join(choices)}")
    for key, kind in TRIPLES.items():
        value = get_key(c, key)
        if len(value) != 3 or not all(isinstance(v, kind) for v in value):
            raise InputError(f"{key} is {value}; give three numbers, e.g. {get_key(base(), key)}")
    for key, patterns in (
        ("optim.decay", c.optim.decay),
        ("optim.lr_multipliers", [rule[0] for rule in lr_multipliers(c.optim.lr_multipliers)]),
    ):
        for pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise InputError(f"{key} has {pattern!r}: {error}; give regular expressions of parameters' paths") from None
    for keys, good, rule in (
        (POSITIVE, lambda v: 0 < v < math.inf, "must be greater than 0, and finite"),
        (NOT_NEGATIVE, lambda v: 0 <= v < math.inf, "must not be negative, and finite"),
        (FRACTIONS, lambda v: 0 <= v <= 1, "is a share: from 0 to 1"),
        (BELOW_ONE, lambda v: 0 <= v < 1, "must be at least 0 and less than 1"),
    ):
        for key in keys:
            value = get_key(c, key)
            if not all(good(v) for v in (value if isinstance(value, tuple) else (value,))):
                raise InputError(f"{key} is {value}; it {rule}")
    names = tuple(c.data.channel_names)
    if names and not (all(isinstance(name, str) for name in names) and len(set(names)) == len(names) == c.channels):
        raise InputError(f"data.channel_names is {names}; give a name for each of channels {c.channels}, or none")
    if bad := [rule for rule in lr_multipliers(c.optim.lr_multipliers) if not 0 <= rule[1] < math.inf]:
        raise InputError(f"optim.lr_multipliers has {bad[0]!r}; the factor must not be negative, and finite, e.g. 0.1")
    if c.optim.warmup == 1:
        raise InputError("optim.warmup is 1, which leaves nothing to cool down; use a share below 1")
    if (c.steps > 0) == (c.epochs > 0):
        raise InputError(f"steps is {c.steps} and epochs is {c.epochs}; set one of them, and the other to 0")
    if any(n > size for n, size in zip(c.data.crop, c.data.size, strict=True)):
        raise InputError(f"data.crop {c.data.crop} is larger than data.size {c.data.size}; make the crop smaller or the size larger")
    if any(n % c.vit.patch for n in c.data.crop) and c.encoder == "vit":
        nearest = tuple(max(1, n // c.vit.patch) * c.vit.patch for n in c.data.crop)
        raise InputError(f"data.crop {c.data.crop} is no multiple of vit.patch {c.vit.patch}; use e.g. {nearest}")
    for width, heads in (("vit.width", "vit.heads"), ("mae.width", "mae.heads")):
        if get_key(c, width) % get_key(c, heads):
            raise InputError(f"{width} {get_key(c, width)} does not divide by {heads} {get_key(c, heads)}; choose another number of heads")
    if c.encoder == "swin" and c.attention in ("cudnn", "pallas"):
        raise InputError(f"attention is {c.attention!r}, which takes no biases, and a Swin's windows have them; use auto")
    if c.attention == "cudnn" and c.dtype == "float32":
        raise InputError("attention is 'cudnn', a GPU's kernel in 16 bits, and dtype is float32; use dtype=bfloat16, or attention=auto")
    if c.encoder == "swin" and len(c.swin.depths) != len(c.swin.heads):
        raise InputError(f"swin.depths {c.swin.depths} and swin.heads {c.swin.heads}: give a number each for every stage")
    for stage, heads in enumerate(c.swin.heads if c.encoder == "swin" else ()):
        if (width := c.swin.width * 2**stage) % heads:
            raise InputError(
                f"swin.width {c.swin.width} makes stage {stage + 1} {width} wide, which does not divide by its {heads} of swin.heads; "
                "use e.g. 12, 24, 36 or 48"
            )
    for parts in ("data.crops_per_volume", "optim.accumulate"):
        if c.data.batch % get_key(c, parts):
            raise InputError(f"data.batch {c.data.batch} does not divide by {parts} {get_key(c, parts)}; change one of the two")
    tokens = 1
    for n in c.data.crop:
        tokens *= n // c.vit.patch
    if c.objective == "mae" and not 1 <= int(tokens * (1 - c.mae.mask_ratio) + 1e-6) < tokens:
        raise InputError(f"mae.mask_ratio {c.mae.mask_ratio} of {tokens} patches leaves none visible or none hidden; use e.g. 0.75")
    if c.encoder != MADE_FOR.get(c.objective, c.encoder):
        raise InputError(f"encoder is {c.encoder}; objective {c.objective} is made for encoder {MADE_FOR[c.objective]}")
    elastic = c.augment.elastic
    if elastic.mm > (most := 0.4 / sum(0.5**i for i in range(elastic.octaves))) * elastic.nodes:
        times = f" with {elastic.octaves} octaves" if elastic.octaves > 1 else ""
        raise InputError(
            f"augment.elastic.mm {elastic.mm}{times} would fold heads; use at most {most:.2g} × augment.elastic.nodes {elastic.nodes}"
        )
    if c.augment.low_resolution.chance and c.augment.low_resolution.mm <= c.data.spacing:
        raise InputError(
            f"augment.low_resolution.mm {c.augment.low_resolution.mm} is not above data.spacing {c.data.spacing}; use more, or chance=0"
        )
    if c.best.endswith(("accuracy", "top1")) or c.best.startswith("dice"):
        raise InputError(f"best is {c.best!r}, and the smallest is kept; use a loss, e.g. loss")
    if c.objective == "ssl":
        check_ssl(c)
    if c.objective == "segmentation":
        check_segmentation(c)


def check_idle(c: ConfigDict) -> None:
    """Raises InputError, naming the reason, for a key that was changed from its default and does nothing in this experiment."""
    defaults = flat(base())
    for key, why in idle_keys(c).items():
        if get_key(c, key) != defaults[key]:
            raise InputError(f"{key} does nothing with {why}; leave it out")


def idle_keys(c: ConfigDict) -> dict[str, str]:
    """The keys that do nothing in this experiment, each with the value of another key that is the reason."""
    rules = [(keys, other, get_key(c, other)) for keys, other, wanted in ACTS_WITH if get_key(c, other) not in wanted]
    of = lambda key, group: key == group or (group.endswith(".") and key.startswith(group))  # noqa: E731
    return {key: f"{other}={value}" for keys, other, value in rules for key in flat(c) if any(of(key, group) for group in keys)}


def check_ssl(c: ConfigDict) -> None:
    """What self-supervised pretraining of the Swin asks of a config besides; raises InputError."""
    x, y, z = c.data.crop
    multiple = 2 ** (len(c.swin.depths) + 1)
    if y != z:
        raise InputError(f"data.crop {c.data.crop}: ssl turns crops in the plane of the last two axes, which must be equal: {(x, z, z)}")
    if x % multiple or y % multiple or x * y == multiple**2:
        raise InputError(f"data.crop {c.data.crop}: ssl takes multiples of {multiple}, more than one; use e.g. {(2 * multiple,) * 3}")
    if c.data.batch == 1 and c.ssl.weights[1]:
        raise InputError("data.batch 1 leaves contrast no other crop to tell apart; use 2 or more, or ssl.weights=(1.0, 0.0, 1.0)")
    if c.ssl.cutout == "share" and c.ssl.share > 0.75:
        raise InputError(f"ssl.share {c.ssl.share} takes too many boxes to draw; use at most 0.75")
    if c.optim.accumulate > 1:
        raise InputError(
            f"optim.accumulate {c.optim.accumulate} would give contrast as many small batches, with fewer negatives; use 1, and remat=True "
            "to save memory"
        )


def check_segmentation(c: ConfigDict) -> None:
    """What fine-tuning asks of a config besides; raises InputError."""
    if not c.data.labels:
        raise InputError("data.labels is empty; name the label table of the task, e.g. --config.data.labels=seg4, or a TSV file")
    if c.decoder != DECODER_OF[c.encoder]:
        fitting = ", or ".join(f"{encoder} with {decoder}" for encoder, decoder in DECODER_OF.items())
        raise InputError(f"encoder {c.encoder} and decoder {c.decoder} do not fit; use {fitting}")
    if c.encoder == "vit":
        check_features(c)
    if c.encoder == "vit" and c.vit.patch != 16:
        raise InputError(f"vit.patch is {c.vit.patch}; UNETR's decoder doubles four times, so use 16")
    if c.encoder == "swin" and len(c.swin.depths) != 4:
        raise InputError(f"swin.depths {c.swin.depths}: Swin UNETR's decoder takes four stages; give four numbers, and four swin.heads")
    multiple = 2 ** (len(c.swin.depths) + 1)
    if c.encoder == "swin" and any(n % multiple for n in c.data.crop):
        nearest = tuple(max(1, n // multiple) * multiple for n in c.data.crop)
        raise InputError(f"data.crop {c.data.crop} is no multiple of {multiple}, which Swin UNETR takes; use e.g. {nearest}")
    if c.encoder == "resenc":
        check_unet(c)
    if c.synth.share and c.data.spec != "default":
        raise InputError(f"data.spec is {c.data.spec!r}, and scans that are made are scaled as by default; use synth.share=0, or default")
    if c.synth.share and c.channels > 1:
        raise InputError(
            f"synth.share is {c.synth.share} and channels is {c.channels}; scans are made of one channel, so use synth.share=0"
        )
    if c.data.num_labelled < -1:
        raise InputError(f"data.num_labelled is {c.data.num_labelled}; give a number of scans, or -1 for all")
    if not c.init.parts or set(c.init.parts) - {"encoder", "decoder", "head"} or len(set(c.init.parts)) < len(c.init.parts):
        raise InputError(f"init.parts is {tuple(c.init.parts)}; use some of encoder, decoder, head, each once")
    for key, bad in (("segmentation.overlap", 1), ("optim.unfreeze", 1), ("optim.layer_decay", 0)):
        if get_key(c, key) == bad:
            raise InputError(f"{key} is {bad}, which is just outside what it may be; use e.g. {get_key(base(), key)}")


def check_unet(c: ConfigDict) -> None:
    """What a U-Net asks of its sizes, and of the crop; raises InputError."""
    u, stages = c.unet, len(c.unet.features)
    for key in ("features", "blocks", "decoder_blocks"):
        if not all(isinstance(n, int) for n in u[key]):
            raise InputError(f"unet.{key} is {u[key]}; give whole numbers, e.g. {base().unet[key]}")
    if stages < 2 or len(u.blocks) != stages:
        raise InputError(
            f"unet.features {u.features} and unet.blocks {u.blocks}: give a number each for every stage, and two stages or more"
        )
    if len(u.decoder_blocks) != stages - 1:
        raise InputError(
            f"unet.decoder_blocks is {u.decoder_blocks}; the decoder has a stage fewer than the {stages} of unet.features: give "
            f"{stages - 1} numbers, e.g. {(1,) * (stages - 1)}"
        )
    multiple = 2 ** (stages - 1)
    if any(n % multiple for n in c.data.crop) or set(c.data.crop) == {multiple}:
        nearest = tuple(max(1, n // multiple) * multiple for n in c.data.crop)
        nearest = nearest if set(nearest) != {multiple} else (2 * multiple,) * 3
        raise InputError(
            f"data.crop {c.data.crop}: a U-Net of {stages} stages takes multiples of {multiple}, and more than one of them, as instance "
            f"norm makes nothing of a single voxel; use e.g. {nearest}, or fewer stages"
        )


def check_features(c: ConfigDict) -> None:
    """Raises InputError unless vit.features are three blocks before the last one, in their order: UNETR's decoder has three skips."""
    depth, features = c.vit.depth, tuple(c.vit.features)
    if depth < 4:
        raise InputError(f"vit.depth is {depth}; UNETR's decoder takes the outputs of three blocks and the last one: use 4 or more")
    if len(features) != 3 or features != tuple(sorted({f for f in features if f in range(depth - 1)})):
        usual = tuple((depth - 1) * i // 4 for i in (1, 2, 3))
        raise InputError(
            f"vit.features is {features}; UNETR's decoder takes three blocks, counted from 0 and in their order, before the last one of "
            f"vit.depth {depth}: use e.g. {usual}"
        )


def recipe(variant: str, recipes: dict[str, Callable[[ConfigDict], None]], file: str) -> Callable[[ConfigDict], None]:
    """The recipe of a config file's variant; InputError, with their names, if there is none of this name."""
    if variant not in recipes:
        raise InputError(f"{file} has no variant {variant!r}; use one of {', '.join(recipes)}")
    return recipes[variant]


def of_file(name: str) -> ConfigDict:
    """The experiment of FILE.py or FILE.py:VARIANT, as --config takes it.

    Raises InputError for a file or a variant that there is not, for a file that fails, with the line, and for what is no experiment.
    """
    file, _, variant = name.partition(":")
    if not Path(file).is_file() or Path(file).suffix != ".py":
        raise InputError(f"{file}: no such config; it is a Python file, e.g. configs/pretrain_vit.py")
    try:
        spec = importlib.util.spec_from_file_location(Path(file).stem, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise InputError(f"{file}: has no function get_config, which makes the experiment; write it as in configs/pretrain_vit.py")
        made = module.get_config(variant) if variant else module.get_config()
    except InputError:
        raise
    except Exception as error:  # a config is a program, and may fail as any
        what = " ".join(f"{type(error).__name__}: {getattr(error, 'msg', error)}".split())[:300]
        raise InputError(f"{file}: {_line_of(file, error)}{what}; correct the file") from None
    if not isinstance(made, ConfigDict):
        raise InputError(
            f"{file}: its get_config gives {type(made).__name__} and no ConfigDict; begin it with c = base(), end it with return c"
        )
    with made.unlocked():
        for old, new in RENAMED.items():
            if old in flat(made):
                made.update_from_flattened_dict({new: get_key(made, old)})
                _delete(made, old)
    keys, known = flat(made).keys(), flat(base()).keys()
    if strange := sorted(keys - known):
        raise InputError(f"{file}: its get_config sets {strange[0]}: {unknown_key(strange[0])}")
    if lacking := sorted(known - keys):
        raise InputError(f"{file}: its get_config gives no {lacking[0]}; begin it with c = base(), which has every key")
    return made


def _delete(c: ConfigDict, key: str) -> None:
    """Takes a dotted key away, and groups that hold nothing then."""
    group, _, name = key.rpartition(".")
    del (get_key(c, group) if group else c)[name]
    if group and not len(get_key(c, group)):
        _delete(c, group)


def _line_of(file: str, error: Exception) -> str:
    """Where in a file an error arose, as the beginning of a text; "" where that is not known."""
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    places += [(error.filename, error.lineno)] if isinstance(error, SyntaxError) else []
    lines = [line for name, line in places if name and line and Path(name).absolute() == Path(file).absolute()]
    return f"line {lines[-1]}: " if lines else ""


def lr_multipliers(rates: Any) -> list[tuple[str, float]]:
    """The (pattern, factor) pairs of optim.lr_multipliers; InputError if they are something else."""
    for rule in rates:
        if not isinstance(rule, tuple) or len(rule) != 2 or not isinstance(rule[1], int | float):
            raise InputError(f"optim.lr_multipliers has {rule!r}; give (pattern, factor) pairs, e.g. (('encoder/.*', 0.1),)")
    return list(rates)


def get_key(c: ConfigDict, key: str) -> Any:
    """The value under a dotted key."""
    for part in key.split("."):
        c = c[part]
    return c


def unknown_key(key: str) -> str:
    """What is wrong with a dotted key, in a few words, or "" if there is such a key."""
    keys = list(flat(base()))
    if RENAMED.get(key, key) in keys:
        return ""
    close = difflib.get_close_matches(key, keys, n=1) or [k for k in keys if k.rpartition(".")[2] == key.rpartition(".")[2]]
    return f"there is no such key{f' (did you mean {close[0]}?)' if close else ''}; all are in brainseg_jax/config/keys.py"


def flat(c: ConfigDict) -> dict[str, Any]:
    """Every value under its dotted key."""
    out = {}
    for key, value in c.items():
        out |= {f"{key}.{k}": v for k, v in flat(value).items()} if isinstance(value, ConfigDict) else {key: value}
    return out


def with_sources(c: ConfigDict, overridden: set[str], file: str) -> dict[str, dict[str, Any]]:
    """Every value with where it came from: the command line, the config file, or the default. Ready for JSON."""
    defaults = flat(base())
    resolved = {}
    for key, value in flat(c).items():
        source = "command line" if key in overridden else "default" if value == defaults[key] else file
        resolved[key] = {"value": value, "from": source}
    return json.loads(json.dumps(resolved))


def known_entries(resolved: Any, place: str) -> dict[str, dict[str, Any]]:
    """The entries of `with_sources`, as a card or config.json keeps them, by today's names of their keys.

    Raises InputError, beginning with `place`, for what is none, for a key that nobody knows, and for the form of a newer version.
    """
    if not isinstance(resolved, dict) or not resolved:
        raise InputError(f"{place}: holds no config; use another one, or bring it back from a backup")
    check_format(resolved.get("format", FORMAT), place)
    found, keys = {}, flat(base())
    for name, entry in resolved.items():
        key = RENAMED.get(name, name)
        if name == "format":
            continue
        if key not in keys:
            raise InputError(
                f"{place}: has the key {key!r}, and {unknown_key(key)}; use the version of brainseg_jax that wrote it, or a newer one"
            )
        if not isinstance(entry, dict) or "value" not in entry:
            raise InputError(f"{place}: has no value under {key!r}; it is damaged, bring it back from a backup")
        found[key] = entry
    # Records of before held what was computed in as if it had been asked for.
    if (entry := found.get("dtype")) and entry.get("from") == "default" and entry["value"] != (asked := base().dtype):
        found["dtype"] = {"used": entry["value"]} | entry | {"value": asked}
    return found


def used_value(resolved: dict[str, dict[str, Any]], key: str) -> Any:
    """What a run used, where it was asked to choose by the place ("auto"); else what it was asked for."""
    return resolved[key].get("used", resolved[key]["value"])


def check_format(number: Any, place: str) -> None:
    """Raises InputError, beginning with `place`, for a card or record in the form of a version that came later."""
    if not isinstance(number, int) or number > FORMAT:
        raise InputError(f"{place}: is of format {number!r}, and this brainseg_jax reads up to {FORMAT}; use the version that wrote it")


def from_resolved(resolved: Any, place: str = "config") -> ConfigDict:
    """The config that `with_sources` wrote down; a key that it lacks has its default. Raises InputError as `known`."""
    c = base()
    for key, entry in known_entries(resolved, place).items():
        try:
            c.update_from_flattened_dict({key: as_tuple(entry["value"])})
        except (TypeError, ValueError):
            raise InputError(
                f"{place}: {key} is {entry['value']!r}, where something like {get_key(c, key)!r} is meant; is it damaged?"
            ) from None
    return c


def of_card(card: dict[str, Any], place: Path | str) -> ConfigDict:
    """The config of a checkpoint's card. Raises InputError, beginning with the checkpoint, for a card without one, or that is unknown."""
    check_format(card.get("format", FORMAT), str(place))
    return from_resolved(card.get("config"), f"{place}: its card")


def as_tuple(value: Any) -> Any:
    """JSON knows no tuples: its lists become tuples again."""
    return tuple(as_tuple(v) for v in value) if isinstance(value, list) else value


def differing_keys(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> list[str]:
    """Keys whose difference makes another experiment, as "key: old → new", by what was used.

    Where one lacks a key, as old records do, it has its default. Keys that do nothing make none.
    """
    defaults = json.loads(json.dumps(flat(base())))
    value = lambda resolved, key: used_value(resolved, key) if key in resolved else defaults.get(key)  # noqa: E731
    keys = sorted((old.keys() | new.keys()) - set(RESUMABLE) - set(idle_keys(from_resolved(new))))
    return [f"{key}: {value(old, key)} → {value(new, key)}" for key in keys if value(old, key) != value(new, key)]
