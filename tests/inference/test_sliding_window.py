"""Whole volumes by windows: MONAI's sliding_window_inference is what every blend is held against, at full size."""

from math import prod

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from peers import peer

from brainseg_jax.core.errors import InputError
from brainseg_jax.inference import sliding_window
from brainseg_jax.inference.sliding_window import Flip, Model, segment, slabs
from brainseg_jax.models.encoders import segmenter
from brainseg_jax.models.segmenter import Segmenter

torch = peer("torch")
compute_importance_map = peer("monai.data.utils:compute_importance_map")
dense_patch_slices = peer("monai.data.utils:dense_patch_slices")
sliding_window_inference = peer("monai.inferers:sliding_window_inference")
_get_scan_interval = peer("monai.inferers.utils:_get_scan_interval")


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, image, train=False):
        return (jnp.mean(image, axis=(1, 2, 3), keepdims=True),)


class Decoder(nn.Module):
    """What a voxel gets depends on its neighbours, on where it lies in the window, and on all of the window."""

    width: int
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, image, features, train=False):
        ramp = jnp.linspace(0, 1, prod(image.shape[1:4])).reshape(1, *image.shape[1:4], 1).astype(image.dtype)
        x = jnp.concatenate([image, jnp.broadcast_to(features[0], image.shape), ramp + 0 * image], axis=-1)
        return jnp.tanh(nn.Conv(self.width, (3, 3, 3), dtype=self.dtype, param_dtype=x.dtype)(x))


@pytest.fixture
def model(rng):
    """A random model: `model(window, width, classes)`, in the widest type there is."""

    def make(window, width=3, classes=5, channels=1, dtype=None):
        dtype = dtype or jnp.zeros(()).dtype
        network = Segmenter(Encoder(), Decoder(width, dtype), classes, dtype)
        shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *window, channels)))["params"]
        return Model(network, jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes), window)

    return make


def monai(model, volume, overlap, blend, axis=None):
    """MONAI's logits of the whole volume, or of its mirror image mirrored back."""

    @jax.jit
    def logits(images):
        return model.network.apply({"params": model.params}, images)

    def predict(windows):
        return torch.tensor(np.moveaxis(np.asarray(logits(np.moveaxis(windows.numpy(), 1, -1))), -1, 1))

    flipped = (lambda v: v) if axis is None else (lambda v: np.flip(v, axis))
    image = torch.tensor(np.moveaxis(flipped(volume), -1, 0)[None].copy())
    # MONAI makes its own weights in single precision.
    weight = torch.tensor(sliding_window.blend_weights(model.window, blend), dtype=image.dtype)
    found = sliding_window_inference(image, model.window, 2, predict, overlap=overlap, mode=blend, roi_weight_map=weight)
    return flipped(np.moveaxis(found[0].numpy(), 0, -1))


def softmax(logits):
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def blended(*args, **settings):
    rows, parts = zip(*slabs(*args, **settings), strict=True)
    assert [(r.start, r.stop) for r in rows] == [(i, min(i + 8, args[1].shape[0])) for i in range(0, args[1].shape[0], 8)]
    return np.concatenate(parts)


@pytest.mark.parity
def test_starts_are_monais():
    assert sliding_window.window_starts(192, 160, 0.5) == [0, 32]
    assert sliding_window.window_starts(192, 96, 0.5) == [0, 48, 96]
    assert sliding_window.window_starts(10, 10, 0.5) == [0]
    for overlap in (0, 0.25, 0.5, 0.7, 0.9, 0.99):
        for window in range(1, 13):
            for size in range(window, 30):
                steps = _get_scan_interval((size,), (window,), 1, (overlap,))
                theirs = [s[0].start for s in dense_patch_slices((size,), (window,), steps)]
                assert sliding_window.window_starts(size, window, overlap) == theirs, (overlap, window, size)


@pytest.mark.parity
@pytest.mark.parametrize("window", [(8, 8, 8), (5, 12, 32)])
@pytest.mark.parametrize("blend", ["constant", "gaussian"])
def test_importance_is_monais(window, blend, close):
    theirs = compute_importance_map(window, blend)
    close(sliding_window.blend_weights(window, blend), theirs.numpy())
    assert blend == "constant" or theirs.min() == np.float32(1e-3), "the floor is in use"


CASES = [
    # size, window, overlap, blend, batch, width (of 5 classes)
    ((13, 17, 11), (5, 8, 7), 0, "constant", 1, 3),
    ((13, 17, 11), (5, 8, 7), 0.25, "gaussian", 3, 3),
    ((13, 17, 11), (5, 8, 7), 0.5, "constant", 4, 7),
    ((21, 9, 9), (8, 4, 9), 0.7, "gaussian", 5, 3),
    ((21, 9, 9), (8, 4, 9), 0.5, "gaussian", 1, 7),
    ((6, 19, 9), (9, 8, 12), 0.5, "gaussian", 2, 3),  # shorter than the window on two axes
    ((6, 3, 5), (9, 8, 12), 0.25, "constant", 2, 5),  # on all
    ((25, 6, 5), (12, 8, 8), 0.7, "constant", 1, 7),  # on two, and rows in several slabs
]


@pytest.mark.parity
@pytest.mark.parametrize(("size", "window", "overlap", "blend", "batch", "width"), CASES)
def test_blend_is_monais(x64, rng, close, model, size, window, overlap, blend, batch, width):
    volume, net = rng.normal(size=(*size, 2)), model(window, width, channels=2)
    logits = blended(net, volume, overlap=overlap, blend=blend, batch=batch)
    close(logits, monai(net, volume, overlap, blend), "float64")


@pytest.mark.optimised
@pytest.mark.parity
@pytest.mark.parametrize("case", CASES[3:6])
def test_blend_is_monais_in_single_precision(rng, close, model, case):
    size, window, overlap, blend, batch, width = case
    volume, net = rng.normal(size=(*size, 1)).astype(np.float32), model(window, width)
    logits = blended(net, volume, overlap=overlap, blend=blend, batch=batch)
    assert logits.dtype == np.float32
    close(logits, monai(net, volume, overlap, blend))


@pytest.mark.parity
def test_labels_and_volumes_are_those_of_the_whole_map(x64, rng, close, model):
    volume, net, seen = rng.normal(size=(21, 9, 11, 1)), model((8, 6, 8)), []
    found = segment([net], volume, overlap=0.5, blend="gaussian", batch=4, each=lambda rows, p: seen.append((rows, np.asarray(p))))
    logits = monai(net, volume, 0.5, "gaussian")
    assert found.labels.dtype == np.uint8
    assert (found.labels == logits.argmax(axis=-1)).all()
    assert len(np.unique(found.labels)) > 2
    close(found.volumes, softmax(logits).sum(axis=(0, 1, 2)), "float64")
    assert [rows for rows, _ in seen] == [slice(0, 8), slice(8, 16), slice(16, 21)]
    close(np.concatenate([p for _, p in seen]), softmax(logits), "float64")


def test_of_one_model_the_logits_decide():
    """Where probabilities round to the same, the larger logit still wins."""
    logits = jnp.array([0.0, 1e-9, 0.0]).reshape(1, 1, 1, 3)
    labels, _, probabilities = sliding_window._decide([logits], np.arange(3)[None])
    assert len(np.unique(probabilities)) == 1
    assert labels.item() == 1


@pytest.mark.parity
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirror_images_and_ensembles_are_averaged(x64, rng, close, model, axis):
    """Against whole maps: two networks with other windows, each of whose starts is another in the mirror."""
    size, partners = (21, 13, 11), np.array([0, 2, 1, 4, 3])
    volume, nets = rng.normal(size=(*size, 1)), [model((8, 5, 8)), model((9, 16, 4), width=7)]
    found = segment(nets, volume, overlap=0.25, blend="gaussian", batch=2, flip=Flip(axis, partners))
    views = [softmax(monai(net, volume, 0.25, "gaussian")) for net in nets]
    views += [softmax(monai(net, volume, 0.25, "gaussian", axis))[..., partners] for net in nets]
    mean = sum(views) / 4
    assert (found.labels == mean.argmax(axis=-1)).all()
    close(found.volumes, mean.sum(axis=(0, 1, 2)), "float64")


@pytest.mark.parity
def test_more_than_256_classes_are_kept_apart(rng, model):
    volume, net = rng.normal(size=(6, 6, 6, 1)).astype(np.float32), model((6, 6, 6), classes=300)
    found = segment([net], volume)
    assert found.labels.dtype == np.uint16
    assert (found.labels == monai(net, volume, 0.5, "constant").argmax(axis=-1)).all()
    assert found.labels.max() > 255


def test_half_precision_is_summed_in_single(rng, close, model):
    volume, net = rng.normal(size=(21, 9, 9, 1)).astype(np.float32), model((8, 8, 8))
    half = Model(Segmenter(Encoder(), Decoder(3, jnp.bfloat16), 5, jnp.bfloat16), net.params, net.window)
    logits = blended(half, volume, overlap=0.7)
    assert logits.dtype == np.float32
    close(logits, blended(net, volume, overlap=0.7), "bfloat16")


def sharded(params):
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "fsdp"))
    return jax.tree.map(lambda a: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*(None,) * (a.ndim - 1), "fsdp"))), params)


@pytest.mark.parity
@pytest.mark.parametrize("spread", [False, True])
def test_compiled_once(rng, close, model, spread):
    """Whatever the batch leaves over, for one volume after the other, and for parameters that lie on a mesh."""
    net = model((8, 8, 8), width=4, classes=6)
    used = Model(net.network, sharded(net.params), net.window) if spread else net
    add = sliding_window._compiled_add(sliding_window._beside(used.params))
    before = add._cache_size()
    for _ in range(2):
        volume = rng.normal(size=(21, 20, 20, 1)).astype(np.float32)
        close(blended(used, volume, overlap=0.5, batch=5), monai(net, volume, 0.5, "gaussian"))
    assert add._cache_size() == before + 1


def test_what_is_compiled_ahead_is_not_compiled_again(rng, model, monkeypatch):
    traced, features = [], sliding_window._features
    monkeypatch.setattr(sliding_window, "_features", lambda *args: traced.append(1) or features(*args))
    net, volume = model((6, 8, 8)), rng.normal(size=(11, 9, 8, 1)).astype(np.float32)
    settings = {"overlap": 0.25, "blend": "constant", "batch": 2, "flip": Flip(0, np.arange(5))}
    sliding_window.compile_ahead([net], jax.ShapeDtypeStruct(volume.shape, volume.dtype), **settings)
    assert len(traced) == 2
    segment([net], volume, **settings)
    segment([net], volume, **settings)
    assert len(traced) == 2


@pytest.mark.parametrize(("width", "classes"), [(4, 36), (20, 12)])
def test_no_map_of_all_classes_is_held(rng, model, width, classes):
    """What is summed is as thick as a window, and as wide as the smaller of map and logits."""
    size, window = (64, 32, 32), (16, 16, 16)
    volume, net = rng.normal(size=(*size, 1)).astype(np.float32), model(window, width, classes)
    before = {id(array) for array in jax.live_arrays()}
    largest = []

    def look(rows, probabilities):
        largest.append(max(array.nbytes for array in jax.live_arrays() if id(array) not in before))

    segment([net], volume, each=look)
    total = 4 * prod((window[0], *size[1:], min(width, classes)))
    slab = 4 * prod((8, *size[1:], classes))
    assert max(largest) <= max(total, slab) < 4 * prod(size) * classes / 3


def test_sums_are_added_to_in_place(rng, model):
    """Beside what the network itself needs, adding a window takes no copy of the sums and no logits of the whole window."""
    window, (width, classes) = (16, 16, 16), (4, 72)
    net, one = model(window, width, classes), jax.ShapeDtypeStruct((1, *window, 1), np.float32)
    total = jnp.zeros((16, 32, 32, width))
    add = sliding_window._compiled_add(sliding_window._beside(net.params))
    places, live = sliding_window._calls(np.array([[0, 16]]), 1)
    args = net.network, window, None, net.params, total, np.zeros((32, 32, 32, 1), np.float32), np.ones(window, np.float32), 0, 0
    added = add.lower(*args, places[0], live[0]).compile().memory_analysis()
    network = jax.jit(lambda p, x: net.network.apply({"params": p}, x, method="features")).lower(net.params, one).compile()
    alone = network.memory_analysis()
    assert added.alias_size_in_bytes == added.output_size_in_bytes == total.nbytes
    assert added.temp_size_in_bytes < 2 * (alone.temp_size_in_bytes + alone.output_size_in_bytes) < 4 * prod(window) * classes
    dropped = sliding_window._drop.lower(total, 8).compile().memory_analysis()
    assert dropped.alias_size_in_bytes == total.nbytes
    assert dropped.temp_size_in_bytes < total.nbytes / 4


@pytest.mark.optimised
@pytest.mark.parity
@pytest.mark.slow
def test_a_network_of_ours_is_blended(rng, close, small):
    window = (32, 16, 16)
    config = small(**{"decoder": "unetr", "data.crop": window, "classes": 7, "vit.patch": 16, "vit.depth": 10})
    network = segmenter(config)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *window, 1)))["params"]
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape, scale=0.1), s.dtype), shapes)
    volume, model = rng.normal(size=(40, 20, 24, 1)).astype(np.float32), Model(network, params, window)
    logits = blended(model, volume, batch=2)
    close(logits, monai(model, volume, 0.5, "gaussian"), times=5)
    assert (segment([model], volume).labels == logits.argmax(axis=-1)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overlap": 1.0}, "overlap from 0"),
        ({"overlap": -0.1}, "overlap from 0"),
        ({"batch": 0}, "batch of 1 or more"),
        ({"flip": Flip(3, np.arange(5))}, "axis 0, 1 or 2"),
        ({"flip": Flip(0, np.arange(4))}, "partner of each of the 5"),
        ({"flip": Flip(0, np.array([0, 2, 3, 1, 4]))}, "partner of each of the 5"),
        ({"models": []}, "at least one"),
    ],
)
def test_what_means_nothing_is_refused(rng, model, changes, message):
    settings = {"models": [model((4, 4, 4))], "volume": rng.normal(size=(4, 4, 4, 1)).astype(np.float32)} | changes
    with pytest.raises(InputError, match=message):
        segment(**settings)


def test_models_of_other_classes_are_refused(rng, model):
    nets = [model((4, 4, 4), classes=k) for k in (5, 6)]
    with pytest.raises(InputError, match="5 and 6 classes"):
        segment(nets, rng.normal(size=(4, 4, 4, 1)).astype(np.float32))
