"""A residual U-Net, nnU-Net's ResEnc: skull stripping, 4 structures, 33 structures, or a table of your own (config/recipes.py).

Nothing pretrains it: it is trained from scratch, or goes on from another U-Net of this package.

brainseg train --config=configs/finetune_unet.py:four
    The full-size network on the embedded sample cohort: one anatomy, augmented, for trying the software.
brainseg train --config=configs/finetune_unet.py:thirtythree,full --config.data.manifest=people.tsv
    Our recipe for a cohort.
brainseg train --config=configs/finetune_unet.py:skull,paper --config.data.manifest=people.tsv \
        --config.data.target=ADNI --config.data.num_labelled=100
    The data, loss and optimizer of the paper's code, which has no U-Net: to compare with the other two networks under its recipe.
brainseg train --config=configs/finetune_unet.py:four,2mm --config.data.manifest=people.tsv
    Whole heads at 2 mm in one crop of 96³: for scans of that resolution, or a CPU.
brainseg train --config=configs/finetune_unet.py:four,small --config.data.manifest=people.tsv
    A small network on 64³ crops at 2 mm: an hour or two of two CPU cores.
brainseg train --config=configs/finetune_unet.py:thirtythree,heads --config.data.manifest=people.tsv
    The same on whole heads, for many small structures, left and right: three hours.

Tasks are skull, four and thirtythree; any other by --config.data.labels=mine.tsv.
"""

from ml_collections import ConfigDict

from brainseg_jax.config.recipes import finetuning


def get_config(variant: str = "four") -> ConfigDict:
    return finetuning(variant, "configs/finetune_unet.py", network, as_published)


def network(c: ConfigDict) -> None:
    c.encoder = "resenc"
    c.decoder = "unet"
    c.data.crop = (160, 160, 160)


def as_published(c: ConfigDict) -> None:
    """Nothing: the paper trains no U-Net."""
