"""Conversion of weights to and from PyTorch: `python -m converters.convert IN OUT`.

`rules` is the engine; `unetr`, `swin_unetr` and `paper` are tables; `torchfile` reads .pt and .pth files. Only `certify` needs PyTorch, to
compare with MONAI's networks.
"""

import brainseg_jax  # noqa: F401  (for its handling of Ctrl-C in commands)
