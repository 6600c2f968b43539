"""Where every leaf of a preset's state lies on eight devices that are fully sharded, as text; from shapes only, nothing is allocated.

python tests/golden/placements.py    writes the files beside this one anew; look at what changed before you commit it.
"""

from pathlib import Path

import jax

from brainseg_jax.config.resolve import of_file
from brainseg_jax.objectives import OBJECTIVES
from brainseg_jax.parallel.sharding import make_mesh, state_sharding
from brainseg_jax.training.optim import optimizer
from brainseg_jax.training.program import sample_of
from brainseg_jax.training.step import init_params, init_state

HERE = Path(__file__).parent
PRESETS = {
    "pretrain_vit": "full",
    "pretrain_swin": "full",
    "finetune_unetr": "thirtythree,full",
    "finetune_swin_unetr": "thirtythree,full",
}


def placements(name: str) -> str:
    """A line for each leaf: its path, shape, and the axes of the mesh that its axes are cut over ("-": not cut)."""
    config = of_file(f"{HERE.parents[1] / 'configs' / name}.py:{PRESETS[name]}")
    config.classes = config.classes or 34
    config.dtype = "float32"
    objective, one = OBJECTIVES[config.objective](config), sample_of(config)
    params = jax.eval_shape(lambda: init_params(objective, one, 0))
    state = jax.eval_shape(lambda: init_state(init_params(objective, one, 0), optimizer(config.optim, 1000, params)))
    places = state_sharding(make_mesh(1, 8, jax.devices()), state)
    lines = [f"# {name}:{PRESETS[name]}, mesh (1, 8)"]
    for (path, leaf), place in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(places), strict=True):
        axes = [*place.spec, *[None] * (leaf.ndim - len(place.spec))]
        shape, cut = "×".join(map(str, leaf.shape)), " ".join(axis or "-" for axis in axes)
        lines.append("\t".join((jax.tree_util.keystr(path), shape or "scalar", cut or "-")))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    for name in PRESETS:
        (HERE / f"{name}.tsv").write_text(placements(name))
