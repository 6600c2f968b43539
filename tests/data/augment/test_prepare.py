"""Augmentation of batches: each change by its own chance, labels with their image, the same on any devices; none for held-out volumes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from brainseg_jax.config.keys import base
from brainseg_jax.core.errors import InputError
from brainseg_jax.data.augment.intensity import intensity
from brainseg_jax.data.augment.prepare import as_float, enlarged_crop, prepare_eval, prepare_train, sometimes
from brainseg_jax.data.labels import lookup, read_table
from brainseg_jax.data.labels import swap as partners
from brainseg_jax.data.loader import crop_box
from brainseg_jax.data.synthesis.generator import generator
from brainseg_jax.parallel.sharding import batch_sharding, make_mesh, replicated
from brainseg_jax.planning.hlo import facts

SWAP = np.array([0, 2, 1, 3])
OFF = {"chance": 0.0}
CHANCES = (
    *("mirror.sides", "mirror.others", "affine.chance", "elastic.chance", "contrast.chance", "bias.chance"),
    *("blur.chance", "noise.chance", "low_resolution.chance", "field_of_view.chance"),
)
MOVING = ("mirror.sides", "mirror.others", "affine.chance", "elastic.chance", "field_of_view.chance")


def prepared(changes, swap=SWAP):
    """`prepare_train` of a config whose keys under `augment` are changed, compiled."""
    c = base()
    c.data.spacing = 4.0  # so that deformations of a few mm are small beside small volumes
    c.update_from_flattened_dict({f"augment.{key}": value for key, value in changes.items()})
    return jax.jit(prepare_train(c, swap))


def made(rng, b, n):
    """A batch whose images are their labels in grey: 0, 51, 102 and 153 for classes 0 to 3."""
    labels = rng.integers(0, 4, (b, n, n, n)).astype(np.uint8)
    return {"image": jnp.asarray(labels[..., None] * 51), "label": jnp.asarray(labels), "weight": jnp.ones(b)}


def test_stored_intensities_become_floats():
    np.testing.assert_allclose(as_float(jnp.array([0, 51, 255], jnp.uint8).reshape(1, 3, 1, 1, 1)).ravel(), [0, 0.2, 1], rtol=1e-6)
    half = as_float(jnp.array([0.25, 1.0], jnp.float16).reshape(1, 2, 1, 1, 1))
    assert half.dtype == jnp.float32 and half.ravel().tolist() == [0.25, 1.0]


def test_chance_zero_is_off_and_held_out_batches_are_never_changed(rng):
    batch = made(rng, 2, 3)
    for prepare in (prepared(OFF), prepare_eval):
        out = prepare(jax.random.key(0), batch)
        np.testing.assert_allclose(out["image"], np.asarray(batch["image"]) / 255, rtol=1e-6)
        np.testing.assert_array_equal(out["label"], batch["label"])
        assert set(out) == set(batch)


@pytest.mark.parametrize(("changes", "factor", "offset"), [({"scale": 0.0}, False, True), ({"shift": 0.0}, True, False)])
def test_limits_of_zero_turn_one_off(changes, factor, offset):
    image = jnp.tile(jnp.array([0, 255], jnp.uint8).reshape(1, 2, 1, 1, 1), (40, 1, 1, 1, 1))
    out = np.asarray(prepared({"chance": 1.0} | changes)(jax.random.key(0), {"image": image})["image"]).reshape(40, 2)
    assert (np.ptp(out[:, 1] - out[:, 0]) > 0.01) == factor and (np.ptp(out[:, 0]) > 0.01) == offset


def test_unless_asked_for_only_intensities_are_scaled_and_shifted(rng):
    """What runs without the newer changes drew and draw, to the bit."""
    image, key = made(rng, 20, 4)["image"], jax.random.key(5)
    out = jax.jit(prepare_train(base()))(key, {"image": image})
    assert set(out) == {"image"}
    np.testing.assert_array_equal(out["image"], jax.jit(lambda i: intensity(key, as_float(i), 0.1, 0.1, 0.2))(image))


@pytest.mark.parametrize("chance", CHANCES)
def test_each_happens_to_each_sample_by_its_own_chance(rng, chance):
    """To 30 % of 600 samples, 180 ± 11, of those that two changes share 51 %; and to each in its own way, but for mirrors."""
    one = made(rng, 1, 8)
    batch = jax.tree.map(lambda a: jnp.tile(a, (600, *[1] * (a.ndim - 1))), one)
    # Cuts that are deep enough to be seen.
    out = np.asarray(prepared(OFF | {chance: 0.3, "field_of_view.share": 1.0})(jax.random.key(0), batch)["image"])
    other = (out != np.asarray(jax.jit(as_float)(one["image"]))).any((1, 2, 3, 4))
    expected = 600 * (1 - 0.7 ** {"mirror.others": 2, "contrast.chance": 2}.get(chance, 1))
    assert abs(other.sum() - expected) < 55
    ways = len({sample.tobytes() for sample in out[other]})
    assert ways <= 3 if chance.startswith("mirror") else ways > 60  # many of these cuts leave nothing


def test_a_change_leaves_the_draws_of_others_as_they_are(rng):
    batch, key = made(rng, 8, 6), jax.random.key(1)
    mirrored, noisy, noisy_too = (
        prepared(changes)(key, batch)
        for changes in (OFF | {"mirror.sides": 0.5}, OFF | {"noise.chance": 0.5}, {"mirror.sides": 0.5, "noise.chance": 0.5, "chance": 1.0})
    )
    np.testing.assert_array_equal(mirrored["label"], noisy_too["label"])
    was = np.asarray(mirrored["image"])
    noise = np.asarray(noisy["image"] != as_float(batch["image"])).any((1, 2, 3, 4))
    # After noise come scale and shift, which leave equal what was equal: only noise makes many values of four.
    values = np.array([len(np.unique(sample)) for sample in np.asarray(noisy_too["image"])])
    assert 0 < noise.sum() < 8 and len(np.unique(was)) == 4
    np.testing.assert_array_equal(values > 4, noise)


def test_what_does_not_happen_is_not_computed(rng):
    computed = []

    def brighten(key, image, labels):
        jax.debug.callback(lambda: computed.append(1))
        return image + 1, labels

    half = sometimes(0.5, brighten)
    image = jnp.asarray(rng.random((40, 2, 2, 2, 1), np.float32))
    each = jax.jit(lambda *samples: jax.lax.map(lambda sample: half(*sample, None)[0], samples))
    out = each(jax.random.split(jax.random.key(0), 40), image)
    jax.effects_barrier()
    happened = np.asarray(out != image).any((1, 2, 3, 4))
    assert len(computed) == happened.sum() and 8 < happened.sum() < 32
    np.testing.assert_array_equal(out, image + happened[:, None, None, None, None].astype(np.float32))
    assert sometimes(0.0, brighten) is None


@pytest.mark.parametrize("spec", ["default", "paper"])
def test_mirrors_swap_sides_by_the_table_and_left_stays_left(rng, spec):
    c = base()
    c.data.spec, c.augment.chance, c.augment.mirror.sides = spec, 0.0, 1.0
    labels = np.where(np.arange(6)[None, :, None, None] < 3, rng.integers(0, 2, (2, 6, 4, 5)), 2 * rng.integers(0, 2, (2, 6, 4, 5)))
    batch = {"image": jnp.asarray(labels[..., None], jnp.float16), "label": jnp.asarray(labels, jnp.int32)}
    out = jax.jit(prepare_train(c, SWAP))(jax.random.key(0), batch)
    np.testing.assert_array_equal(out["image"], labels[:, ::-1, ..., None])
    np.testing.assert_array_equal(out["label"], SWAP[labels[:, ::-1]])
    left, right = np.asarray(out["label"] == 1), np.asarray(out["label"] == 2)
    assert left[:, :3].any() and right[:, 3:].any() and not left[:, 3:].any() and not right[:, :3].any()


def test_labels_without_partners_cannot_be_mirrored_images_can(rng):
    batch = made(rng, 1, 4)
    prepare = prepared(OFF | {"mirror.sides": 1.0}, swap=None)
    with pytest.raises(InputError, match=r"left/right partners"):
        prepare(jax.random.key(0), batch)
    out = prepare(jax.random.key(0), {"image": batch["image"]})
    np.testing.assert_array_equal(out["image"], as_float(batch["image"])[:, ::-1])
    others = prepared(OFF | {"mirror.others": 1.0}, swap=None)(jax.random.key(0), batch)
    np.testing.assert_array_equal(others["label"], batch["label"][:, :, ::-1, ::-1])


ALL = OFF | dict.fromkeys(CHANCES, 0.5) | {"noise.kind": "rician"}


def test_moved_labels_stay_with_their_image_and_none_appear(rng):
    """Blocks of class 3, white: above 7/8 the nearest voxel is one of it, below 1/8 it is not."""
    labels = np.kron(3 * rng.integers(0, 2, (8, 4, 4, 4)), np.ones((1, 5, 5, 5), int)).astype(np.uint8)
    batch = {"image": jnp.asarray(labels[..., None] * 85), "label": jnp.asarray(labels)}
    out = prepared(OFF | dict.fromkeys(MOVING, 1.0))(jax.random.key(0), batch)
    image, carried = np.asarray(out["image"])[..., 0], np.asarray(out["label"])
    assert carried.dtype == np.uint8 and set(np.unique(carried)) == {0, 3} and not np.array_equal(carried, labels)
    white, black = image > 0.875 + 1e-5, image < 0.125 - 1e-5
    assert (carried[white] == 3).all() and (carried[black] == 0).all()
    assert white.mean() > 0.1 and (white | black).mean() > 0.6


def test_what_is_deformed_is_the_volume_and_not_the_crop(rng):
    """Crops made of patches are what they are when each comes with all of its volume, at the volume's ends too."""
    c = base()
    c.data.spacing, c.data.size, c.data.crop = 4.0, (40, 36, 32), (8, 10, 12)
    c.augment.chance, c.augment.affine.chance, c.augment.elastic.chance, c.augment.mirror.sides = 0.0, 0.7, 0.7, 0.5
    size, crop, small = np.array(c.data.size), np.array(c.data.crop), np.array(enlarged_crop(c))
    assert (small > crop + 8).all() and (small < size).all()
    prepare = jax.jit(prepare_train(c, np.arange(256)))

    def crops(boxes, places):
        batch = {"image": jnp.asarray(boxes[..., None]), "label": jnp.asarray(boxes), "place": jnp.asarray(places, jnp.int32)}
        return prepare(jax.random.key(2), batch)

    volume = rng.integers(0, 256, size).astype(np.uint8)
    starts = np.concatenate([rng.integers(0, size - crop + 1, (14, 3)), [[0, 0, 0], size - crop]])
    corners = np.clip(starts - (small - crop) // 2, 0, size - small)
    boxes = np.stack([crop_box(volume, corner, enlarged_crop(c)) for corner in corners.tolist()])
    found, whole = crops(boxes, starts - corners), crops(np.broadcast_to(volume, (16, *size)), starts)
    assert set(found) == {"image", "label"} and found["image"].shape == (16, *crop, 1)
    np.testing.assert_array_equal(found["label"], whole["label"])
    np.testing.assert_allclose(found["image"], whole["image"], atol=1e-5)
    plain = np.stack([crop_box(volume, start, c.data.crop) for start in starts.tolist()])
    as_they_were = sum(any(map(np.array_equal, (label, label), (p, p[::-1]))) for label, p in zip(found["label"], plain, strict=True))
    assert 0 < as_they_were < 6  # about one of eleven


def test_no_outside_enters_a_crop_from_within_a_volume():
    c = base()
    c.data.spacing, c.data.size, c.data.crop = 4.0, (40, 40, 40), (8, 8, 8)
    c.augment.chance, c.augment.affine.chance, c.augment.elastic.chance = 0.0, 1.0, 1.0
    prepare = jax.jit(prepare_train(c))
    box, place = jnp.full((16, *enlarged_crop(c), 1), 255, jnp.uint8), (jnp.array(enlarged_crop(c), jnp.int32) - 8) // 2
    np.testing.assert_allclose(prepare(jax.random.key(2), {"image": box, "place": jnp.tile(place, (16, 1))})["image"], 1, atol=1e-6)
    # Into a crop without its surroundings much of it comes.
    alone = prepare(jax.random.key(2), {"image": box[:, :8, :8, :8]})["image"]
    assert (np.asarray(alone) < 0.5).mean() > 0.05


def test_patches_are_crops_where_nothing_is_deformed_and_no_larger_than_volumes():
    c = base()
    c.data.size, c.data.crop = (96, 96, 96), (64, 64, 96)
    c.augment.mirror.sides = c.augment.noise.chance = 1.0
    assert enlarged_crop(c) == (64, 64, 96)
    c.augment.elastic.chance = 0.1
    assert enlarged_crop(c) == (80, 80, 96)
    c.augment.affine.chance = 0.1
    assert enlarged_crop(c) == (96, 96, 96)


@pytest.mark.slow
def test_the_same_happens_however_a_batch_lies_on_devices(rng, close):
    """And no device tells another anything."""
    batch, key = made(rng, 8, 10), jax.random.key(3)
    results = {}
    for data, fsdp in ((1, 1), (2, 1), (2, 2)):
        mesh = make_mesh(data, fsdp, jax.devices()[: data * fsdp])
        rows, everywhere = batch_sharding(mesh), replicated(mesh)
        placed = jax.device_put(batch, rows)
        c = base()
        c.update_from_flattened_dict({f"augment.{name}": value for name, value in ALL.items()})
        with jax.set_mesh(mesh):
            compiled = jax.jit(prepare_train(c, SWAP), in_shardings=(everywhere, rows)).lower(key, placed).compile()
        assert not facts(compiled.as_text()).collectives
        assert all(place.is_equivalent_to(rows, 4) for place in jax.tree.leaves(compiled.output_shardings))
        results[data, fsdp] = jax.tree.map(np.asarray, compiled(jax.device_put(key, everywhere), placed))
    for other in results.values():
        np.testing.assert_array_equal(other["label"], results[1, 1]["label"])
        close(other["image"], results[1, 1]["image"])
    assert not np.array_equal(results[1, 1]["label"], batch["label"])


# ---- with scans that are made of labels

HEAD, TARGET = read_table("head"), read_table("seg4")
WHITE, CORTEX = (int(lookup(np.array([id]), HEAD, HEAD)[0]) for id in (2, 3))


def config_of(changes, synth):
    c = base()
    c.data.spacing = 4.0
    c.update_from_flattened_dict({f"augment.{name}": value for name, value in (OFF | changes).items()})
    c.update_from_flattened_dict({f"synth.{name}": value for name, value in synth.items()})
    return c


def both_ways(changes, synth, batch, key):
    """What comes out of a batch with a head's labels where scans may be made of it, and where the same is all real."""
    c = config_of(changes, synth)
    making = generator(c, TARGET)
    plain = {name: part for name, part in batch.items() if name != "labels_only"} | {"label": jnp.asarray(making.classes)[batch["label"]]}
    swap = partners(TARGET)
    return tuple(jax.tree.map(np.asarray, jax.jit(prepare_train(c, swap, m))(key, b)) for m, b in ((making, batch), (None, plain)))


def scans(rng, b, n, alone=0):
    """Noise with labels of white matter and cortex in blocks; the first ones have labels only."""
    labels = np.kron(rng.choice([0, WHITE, CORTEX], (b, 2, 2, 2)), np.ones((1, n // 2, n // 2, n // 2), int)).astype(np.uint8)
    image = rng.integers(0, 256, (b, n, n, n, 1)).astype(np.uint8)
    return {"image": jnp.asarray(image), "label": jnp.asarray(labels), "labels_only": jnp.arange(b) < alone}


def other(a, b):
    """Of which samples the images differ by more than the order of sums, which is the compiler's in each of two programs."""
    return (np.abs(a["image"] - b["image"]) > 1e-4).any((1, 2, 3, 4))


def test_real_scans_come_out_as_they_do_where_none_is_made(rng):
    """And labels of all of them likewise; those of labels only are made, and of the others about half."""
    changes = dict.fromkeys(CHANCES, 0.5)
    ours, real = both_ways(changes, {"share": 0.5}, scans(rng, 40, 8, alone=10), jax.random.key(4))
    assert set(ours) == {"image", "label"}
    np.testing.assert_array_equal(ours["label"], real["label"])
    made = other(ours, real)
    assert made[:10].sum() > 7 and 6 < made[10:].sum() < 24  # of a few a cut leaves nothing


def test_whether_a_scan_is_made_has_nothing_to_do_with_how_it_is_augmented(rng):
    """Of 400 a quarter is made and deformed, a quarter neither."""
    batch = scans(rng, 400, 4)
    for chance in ("affine.chance", "elastic.chance", "mirror.sides"):
        ours, real = both_ways({chance: 0.5}, {"share": 0.5}, batch, jax.random.key(4))
        made, changed = other(ours, real), other(real, {"image": np.asarray(jax.jit(as_float)(batch["image"]))})
        table = [(made & changed).sum(), (made & ~changed).sum(), (~made & changed).sum(), (~made & ~changed).sum()]
        assert min(table) > 60 and max(table) < 140, (chance, table)


def test_a_made_scan_is_deformed_with_its_labels(rng):
    """Without spread every voxel well inside a structure has the one value that its mean becomes."""
    batch = scans(rng, 6, 16, alone=6)
    ours, _ = both_ways({"affine.chance": 1.0, "elastic.chance": 1.0}, {"share": 0.5, "spread": 0.0}, batch, jax.random.key(4))
    white, cortex = (int(generator(config_of({}, {}), TARGET).classes[id]) for id in (WHITE, CORTEX))
    values, inner = [], 0
    for image, label, was in zip(ours["image"], ours["label"], batch["label"], strict=True):
        assert not np.array_equal(label > 0, was > 0)
        for structure in (white, cortex):
            inside = ndimage.binary_erosion(label == structure, np.ones((3, 3, 3)), border_value=0)
            inner += inside.sum()
            if inside.any():
                np.testing.assert_allclose(image[inside], image[inside].flat[0], atol=1e-5)
                values.append(image[inside].flat[0])
    assert inner > 500 and len({round(float(value), 3) for value in values}) > 3


def test_made_scans_are_finite_and_within_bounds_before_intensities_change(rng):
    synth = dict.fromkeys(("lesions.chance", "strip.chance", "face.chance", "air_noise.chance"), 0.5)
    ours, _ = both_ways(dict.fromkeys(MOVING, 0.5), synth | {"share": 1.0}, scans(rng, 30, 8, alone=15), jax.random.key(1))
    assert np.isfinite(ours["image"]).all() and ours["image"].min() >= 0 and ours["image"].max() <= 1 and ours["image"].std() > 0.1


@pytest.mark.slow
def test_the_same_scans_are_made_however_a_batch_lies_on_devices(rng, close):
    batch, key, results = scans(rng, 8, 10, alone=3), jax.random.key(3), []
    c = config_of(ALL, {"share": 0.5, "lesions.chance": 0.5, "strip.chance": 0.5, "face.chance": 0.5})
    for data, fsdp in ((1, 1), (2, 2)):
        mesh = make_mesh(data, fsdp, jax.devices()[: data * fsdp])
        placed, everywhere = jax.device_put(batch, batch_sharding(mesh)), replicated(mesh)
        prepare = prepare_train(c, partners(TARGET), generator(c, TARGET))
        with jax.set_mesh(mesh):
            compiled = jax.jit(prepare, in_shardings=(everywhere, batch_sharding(mesh))).lower(key, placed).compile()
        assert not facts(compiled.as_text()).collectives
        results.append(jax.tree.map(np.asarray, compiled(jax.device_put(key, everywhere), placed)))
    np.testing.assert_array_equal(results[0]["label"], results[1]["label"])
    close(results[0]["image"], results[1]["image"])
