"""Masked autoencoding of a 3-D ViT-B on brain MRI.

brainseg train --config=configs/pretrain_vit.py
    The full-size model on the embedded sample cohort: one anatomy, augmented, for trying the software.
brainseg train --config=configs/pretrain_vit.py:full --config.data.manifest=people.tsv
    Our recipe for a cohort of scans.
brainseg train --config=configs/pretrain_vit.py:paper --config.data.manifest=people.tsv
    The paper's recipe as its code has it.
brainseg train --config=configs/pretrain_vit.py:2mm --config.data.manifest=people.tsv
    Whole heads at 2 mm in one crop of 96³: for scans of that resolution, or a CPU.
"""

from ml_collections import ConfigDict

from brainseg_jax.config.keys import base
from brainseg_jax.config.resolve import recipe


def get_config(variant: str = "trial") -> ConfigDict:
    recipes = {"trial": trial, "full": full, "paper": paper, "2mm": two_millimetres}
    change = recipe(variant, recipes, "configs/pretrain_vit.py")
    config = base()
    change(config)
    return config


def trial(c: ConfigDict) -> None:
    c.steps = 150
    c.mesh.data = 1  # one crop a step needs one device, however many there are


def full(c: ConfigDict) -> None:
    c.epochs = 400.0
    c.eval_every = 0.02
    c.save_every = 500
    c.data.batch = 32
    c.data.crops_per_volume = 4
    c.remat = True


def paper(c: ConfigDict) -> None:
    # The code's values; the paper's text says AdamW at 1e-4 with 1e-5, three scans per GPU, and no mask ratio.
    c.epochs = 200.0
    c.eval_every = 0.05  # every 10 epochs, as the code saves
    c.save_every = 500
    c.data.spec = "paper"
    c.data.dtype = "float16"
    c.data.split_rule = "paper"
    c.data.batch = 80  # 4 GPUs × 5 volumes × 4 crops
    c.data.crops_per_volume = 4
    c.vit.positions = "separable"
    c.optim.warmup = 0.5
    c.optim.weight_decay = 5e-6
    # timm's groups: everything but biases and vectors.
    c.optim.decay = (r".*kernel", r".*(cls_token|cls_position|mask_token|spatial|temporal)")
    c.optim.clip = 0.0
    c.remat = True


def two_millimetres(c: ConfigDict) -> None:
    c.epochs = 80.0
    c.eval_every = 0.05
    c.data.spacing = 2.0
    c.data.size = (96, 96, 96)
    c.data.crop = (96, 96, 96)
    c.data.batch = 8
    c.mae.mask_ratio = 0.75
