"""The room for exchanging weights with PyTorch: `python -m converters.convert IN OUT`, and the tables it reads.

`rules` is the engine; `unetr`, `swin_unetr` and `paper` are tables; `torchfile` reads .pt and .pth files. Only `certify` needs PyTorch: it
compares with MONAI's networks where they are installed.
"""

import brainseg_jax  # noqa: F401  (what it does for its own commands holds for `convert`)
