"""Fine-tuning of Swin UNETR: skull stripping, 4 structures, 33 structures, or a label table of your own (brainseg_jax/config/recipes.py).

brainseg train --config=configs/finetune_swin_unetr.py:four
    The full-size network on the embedded sample cohort: one anatomy, augmented, for trying the software.
brainseg train --config=configs/finetune_swin_unetr.py:thirtythree,full --config.data.manifest=people.tsv \
        --config.init.checkpoint=runs/pretrain_swin_full/checkpoints/STEP
    Our recipe for a cohort, from pretraining; without the last flag from scratch.
brainseg train --config=configs/finetune_swin_unetr.py:skull,paper --config.data.manifest=people.tsv \
        --config.data.target=ADNI --config.data.num_labelled=100 --config.init.checkpoint=…
    The paper's recipe as its code has it: all masks of the other data sets, 100 of the target.
brainseg train --config=configs/finetune_swin_unetr.py:four,2mm --config.data.manifest=people.tsv
    Whole heads at 2 mm in one crop of 96³: for scans of that resolution, or a CPU.
brainseg train --config=configs/finetune_swin_unetr.py:four,small --config.data.manifest=people.tsv
    A small network on 64³ crops at 2 mm: an hour or two of two CPU cores.
brainseg train --config=configs/finetune_swin_unetr.py:thirtythree,heads --config.data.manifest=people.tsv
    The same on whole heads, for many small structures, left and right: three hours.

Tasks are skull, four and thirtythree; any other by --config.data.labels=mine.tsv.
"""

from ml_collections import ConfigDict

from brainseg_jax.config.recipes import finetuning


def get_config(variant: str = "four") -> ConfigDict:
    return finetuning(variant, "configs/finetune_swin_unetr.py", network, as_published)


def network(c: ConfigDict) -> None:
    c.encoder = "swin"
    c.decoder = "swin_unetr"
    c.data.crop = (96, 96, 96)


def as_published(c: ConfigDict) -> None:
    c.swin.merging = "legacy"  # MONAI's of that time
