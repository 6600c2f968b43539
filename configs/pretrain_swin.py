"""Cut-out, rotation and contrast for a 3-D Swin-T on brain MRI.

brainseg train --config=configs/pretrain_swin.py
    The full-size model on the embedded sample cohort: one anatomy, augmented, for trying the software.
brainseg train --config=configs/pretrain_swin.py:full --config.data.manifest=people.tsv
    Our recipe for a cohort of scans.
brainseg train --config=configs/pretrain_swin.py:paper --config.data.manifest=people.tsv
    The paper's recipe as its code has it.
brainseg train --config=configs/pretrain_swin.py:2mm --config.data.manifest=people.tsv
    Whole heads at 2 mm in one crop of 96³: for scans of that resolution, or a CPU.
brainseg train --config=configs/pretrain_swin.py:small --config.data.manifest=people.tsv
    A Swin of 12 channels on 64³ crops at 2 mm: an hour or two of two CPU cores.
"""

from ml_collections import ConfigDict

from brainseg_jax.config.keys import base
from brainseg_jax.config.recipes import narrow
from brainseg_jax.config.resolve import recipe


def get_config(variant: str = "trial") -> ConfigDict:
    recipes = {"trial": trial, "full": full, "paper": paper, "2mm": two_millimetres, "small": small}
    change = recipe(variant, recipes, "configs/pretrain_swin.py")
    config = base()
    config.objective = "ssl"
    config.encoder = "swin"
    config.decoder = "swin_unetr"
    config.data.crop = (96, 96, 96)
    change(config)
    return config


def trial(c: ConfigDict) -> None:
    c.steps = 30
    c.log_every = 1
    c.data.batch = 2  # contrast needs another crop
    c.optim.lr = 1e-4
    c.optim.warmup = 0.2
    c.mesh.data = 1


def full(c: ConfigDict) -> None:
    c.epochs = 400.0
    c.eval_every = 0.02
    c.save_every = 500
    c.data.batch = 32
    c.data.crops_per_volume = 4
    c.remat = True


def paper(c: ConfigDict) -> None:
    # The code's values; the paper's text says AdamW at 1e-4 with 1e-5, and 120,000 iterations.
    c.steps = 300_000
    c.eval_every = 0.005
    c.save_every = 500
    c.best = "reconstruction"
    c.data.spec = "paper"
    c.data.dtype = "float16"
    c.data.split_rule = "paper"
    c.data.batch = 16  # 4 GPUs × 2 volumes × 2 crops
    c.data.crops_per_volume = 2
    c.augment.chance = 0.1
    c.swin.merging = "legacy"  # MONAI's of that time
    c.ssl.cutout = "paper"
    c.ssl.heads = "tokens"
    c.optim.warmup = 1 / 30  # 10,000 steps
    c.optim.b2 = 0.999
    c.optim.weight_decay = 1e-5
    c.optim.decay = (".*",)  # all parameters alike
    c.optim.clip = 0.0


def two_millimetres(c: ConfigDict) -> None:
    c.epochs = 40.0
    c.eval_every = 0.05
    c.data.spacing = 2.0
    c.data.size = (96, 96, 96)
    c.data.batch = 4


def small(c: ConfigDict) -> None:
    narrow(c)
    c.steps = 1000
    c.data.batch = 8
