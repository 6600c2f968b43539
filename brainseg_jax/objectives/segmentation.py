"""The segmentation objective: Dice and cross entropy of a label table's classes, on crops (the paper, section III-B).

The parameters are those of the network (`encoders.segmenter`), {"encoder", "decoder", "head"}: a fine-tuning checkpoint is a network, and
`params["encoder"]` is what pretraining provides.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from brainseg_jax.models.segmenter import Segmenter
from brainseg_jax.objectives.losses import dice_cross_entropy, dice_of_present_cross_entropy, log_dice_of_present_cross_entropy

LOSSES: dict[str, Callable] = {
    "paper": dice_cross_entropy,
    "present": dice_of_present_cross_entropy,
    "log": log_dice_of_present_cross_entropy,
}


class Segmentation(nn.Module):
    """Objective: `batch["image"] [b x y z c]`, `batch["label"] [b x y z]` in class numbers → (mean loss, metrics).

    `loss` names an entry of LOSSES. Needs the random stream `drop_path` where the encoder has it.
    """

    network: Segmenter
    loss: str = "present"

    labels = True
    metrics = ("loss", "dice")  # of evaluation, on whole volumes, beside each structure's Dice
    streams = ("drop_path",)

    def setup(self) -> None:
        nn.share_scope(self, self.network)

    def __call__(self, batch: dict[str, jax.Array], train: bool = False) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
        label = batch["label"].astype(jnp.int32)
        features, head = self.network.before_head(batch["image"], train)
        losses = LOSSES[self.loss](features, label, head)
        weight = batch.get("weight", jnp.ones(losses.shape))
        total, count = jnp.sum(losses * weight), jnp.sum(weight)
        return total / jnp.maximum(count, 1), {"loss": (total, count)}

    def logits(self, image: Float[jax.Array, "b x y z c"]) -> Float[jax.Array, "b x y z k"]:
        """The network's logits, for prediction."""
        return self.network(image)
