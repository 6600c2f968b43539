"""Scans made from label maps, part by part: against NumPy, SciPy and numbers known in advance; what is taken away is what is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from brainseg_jax.config.keys import base
from brainseg_jax.core.errors import InputError
from brainseg_jax.data.augment.random_fields import smooth_noise
from brainseg_jax.data.augment.spatial import coordinates, resample
from brainseg_jax.data.labels import SCHEMES, grouping, lookup, read_table
from brainseg_jax.data.synthesis import generator
from brainseg_jax.data.synthesis.generator import Tissues, paint_means, random_appearance
from brainseg_jax.data.synthesis.priors import Prior

# Air, a left and a right structure of one tissue, white matter, skin.
TISSUES = Tissues(np.array([0, 1, 1, 2, 3]), np.array([0, 1, 1, 1, 0], bool), np.array([0, 0, 0, 1, 0], bool))
PRIOR = Prior(np.array([[0.1, 0.4, 0.8, 0.6], [0, 0, 0, 0]]), np.array([[0.01, 0.02, 0.03, 0.04], [0, 0, 0, 0]]))
KEY = jax.random.key(3)


def ball(size=32, radius=9.0, centre=None):
    """A brain: a ball of voxels."""
    at = np.indices((size,) * 3).reshape(3, -1).T - (np.full(3, (size - 1) / 2) if centre is None else centre)
    return jnp.asarray((np.linalg.norm(at, axis=1) < radius).reshape((size,) * 3))


def test_tissues_follow_from_the_label_table():
    table = read_table("head")
    tissues, classes = generator.tissues_of(table), {s.id: n for n, s in enumerate(table.structures, 1)}
    assert tissues.of[classes[17]] == tissues.of[classes[53]] != tissues.of[classes[18]] and (tissues.of == 0).sum() == 1
    assert {*tissues.of.tolist()} == {*range(tissues.count)}
    assert {id for id, n in classes.items() if not tissues.brain[n]} == {24, *range(502, 531), *range(601, 607)} & classes.keys()
    assert {id for id, n in classes.items() if tissues.white[n]} == {2, 41, 25, 57}


def test_a_tissue_looks_alike_on_both_sides_and_otherwise_in_every_scan():
    means, spreads = jax.vmap(lambda key: random_appearance(key, TISSUES, 0.1, 0.2))(jax.random.split(KEY, 2000))
    painted = paint_means(jnp.arange(5)[:, None, None], TISSUES, means[0])[:, 0, 0, 0]
    np.testing.assert_array_equal(painted, np.asarray(means[0])[[0, 1, 1, 2, 3]])
    assert means.min() >= 0 and 0.95 < means[:, 1:].max() <= 1 and 0.19 < means[:, 0].max() <= 0.2
    assert spreads.min() >= 0 and 0.095 < spreads.max() <= 0.1
    assert abs(np.corrcoef(means[:, 1], means[:, 2])[0, 1]) < 0.1


def test_a_prior_is_followed_as_often_as_is_asked():
    means, spreads = jax.vmap(lambda key: random_appearance(key, TISSUES, 0.1, 1.0, PRIOR, 0.25))(jax.random.split(KEY, 2000))
    usual = np.isclose(means, PRIOR.means[0], atol=1e-6).all(axis=1)
    np.testing.assert_array_equal(usual, np.isclose(spreads, PRIOR.spreads[0], atol=1e-6).all(axis=1))
    assert abs(usual.sum() - 500) < 80
    wide = PRIOR._replace(means=np.array([[0.5] * 4, [0.1] * 4]))
    drawn, _ = jax.vmap(lambda key: random_appearance(key, TISSUES, 0.1, 1.0, wide, 1.0))(jax.random.split(KEY, 4000))
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [0.5, 0.1], atol=0.005)


def test_of_what_a_prior_does_not_tell_a_tissue_looks_like_anything():
    half = Prior(*(np.where([True, False, True, True], values, np.nan) for values in PRIOR[:2]))
    means, spreads = jax.vmap(lambda key: random_appearance(key, TISSUES, 0.1, 1.0, half, 1.0))(jax.random.split(KEY, 500))
    np.testing.assert_allclose(means[:, [0, 2, 3]], np.broadcast_to(PRIOR.means[0, [0, 2, 3]], (500, 3)), atol=1e-6)
    assert means[:, 1].min() < 0.05 and means[:, 1].max() > 0.95 and np.isfinite(means).all() and np.isfinite(spreads).all()


def test_a_voxel_between_two_structures_gets_its_share_of_both():
    labels = jnp.asarray(np.repeat([1, 3], 4)[:, None, None] * np.ones((8, 6, 6), int))
    image = paint_means(labels, TISSUES, jnp.array([0.0, 0.2, 0.9, 0.5]))
    at = coordinates(jnp.eye(3), jnp.array([0.25, 0.0, 0.0]), jnp.zeros((8, 6, 6, 3)))
    image, labels = resample(image, labels, at)
    np.testing.assert_allclose(image[3, 3, 3, 0], 0.75 * 0.2 + 0.25 * 0.9, atol=1e-6)
    assert labels[3, 3, 3] == 1 and labels[4, 3, 3] == 3


def test_the_spread_of_smooth_noise_is_what_it_is_scaled_by():
    fields = smooth_noise(KEY, jnp.zeros((48, 48, 48, 1)), 4.0, 40)
    np.testing.assert_allclose(fields.std(), generator.SPREAD, rtol=0.02)


def test_texture_has_the_spread_that_is_asked_fine_or_smooth():
    means, spreads = jnp.full((40, 40, 40, 1), 0.5), jnp.full((40, 40, 40, 1), 0.05)
    fine = np.asarray(generator.add_texture(KEY, means, spreads, 5.0, 0.0))[..., 0] - 0.5
    np.testing.assert_allclose([fine.mean(), fine.std()], [0, 0.05], atol=0.001)
    assert abs(np.corrcoef(fine[1:].ravel(), fine[:-1].ravel())[0, 1]) < 0.02
    keys = jax.random.split(KEY, 20)
    smooth = np.stack([generator.add_texture(key, means, spreads, 5.0, 1.0)[..., 0] - 0.5 for key in keys])
    np.testing.assert_allclose(smooth.std(), 0.05, rtol=0.1)
    alike = [np.corrcoef(field[1:].ravel(), field[:-1].ravel())[0, 1] for field in smooth]
    assert max(alike) > 0.8 and min(alike) < 0.4
    still = generator.add_texture(KEY, means, 0 * spreads, 5.0, 1.0)
    np.testing.assert_array_equal(still, means)


def test_lesions_lie_in_white_matter_and_are_as_many_as_may_be():
    white, image = ball(radius=12.0), jnp.full((32, 32, 32, 1), 0.5)
    shares = []
    for key in jax.random.split(KEY, 60):
        change = np.abs(np.asarray(generator.add_lesions(key, image, white, 4.0, 0.1))[..., 0] - 0.5)
        assert not change[~np.asarray(white)].any()
        changed = change > change.max() / 2
        shares.append(changed[np.asarray(white)].mean())
    np.testing.assert_allclose(np.mean(shares), 0.05, atol=0.02)


def test_a_skull_is_taken_off_at_a_surface_like_the_brains():
    """Where the brain is a half-space its border moves as a whole, by what is drawn, and stays as soft as is asked."""
    brain = jnp.asarray(np.indices((40, 30, 30))[0] < 20)
    margins, widths = [], []
    for key in jax.random.split(KEY, 200):
        image, left = generator.strip_skull(key, jnp.ones((40, 30, 30, 1)), brain, 4.0, 2.0)
        profile = np.asarray(image[:, 15, 15, 0])
        assert (np.asarray(left) == (np.asarray(image)[..., 0] > 0.5)).all() and (np.diff(profile) <= 1e-6).all()
        margins.append(profile.sum() - 20)
        widths.append(((profile > 0.01) & (profile < 0.99)).sum())
    np.testing.assert_allclose([min(margins), max(margins), np.mean(margins)], [-1, 4, 1.5], atol=0.3)
    assert {*widths} <= {1, 2, 3}


def test_a_skull_is_taken_off_around_a_brain_like_one():
    brain = ball(32, 9.0)
    outside, inside = (ndimage.distance_transform_edt(a) for a in (~np.asarray(brain), np.asarray(brain)))
    for key in jax.random.split(KEY, 20):
        left = np.asarray(generator.strip_skull(key, jnp.ones((32, 32, 32, 1)), brain, 4.0, 1.0)[1])
        # A ball is bent: its blurred mask is lower than a half-space's.
        assert outside[left].max(initial=0) <= 4 + 0.5 and inside[~left].max(initial=0) <= 1 + 1.5


def test_a_face_is_taken_out_before_the_brain_and_below_whatever_the_axes():
    brain, image = ball(32, 7.0, (15, 14, 20)), jnp.ones((32, 32, 32, 1))
    out, left = generator.remove_face(KEY, image, brain, "RAS", 4.0)
    gone = ~np.asarray(left)
    np.testing.assert_array_equal(np.asarray(out)[..., 0] == 0, gone)
    assert not gone[np.asarray(brain)].any() and 0.02 < gone.mean() < 0.5
    assert gone[:, -1, 0].all() and not gone[:, 0, -1].any() and not gone[:, 0, :].all()
    for orientation, turn in {"RPS": lambda a: a[:, ::-1], "RAI": lambda a: a[:, :, ::-1], "RSA": lambda a: a.swapaxes(1, 2)}.items():
        _, other = generator.remove_face(KEY, image, jnp.asarray(turn(np.asarray(brain))), orientation, 4.0)
        assert (turn(np.asarray(other)) == ~gone).mean() > 0.999  # but for rounding on the plane
    gaps = [np.asarray(brain).sum() - np.asarray(brain & generator.remove_face(k, image, brain, "RAS", 4.0)[1]).sum() for k in
            jax.random.split(KEY, 30)]  # fmt: skip
    assert max(gaps) == 0


def test_noise_of_the_air_leaves_the_head_alone():
    head, image = ball(), jnp.full((32, 32, 32, 1), 0.3)
    out = np.asarray(generator.add_air_noise(KEY, image, head))[..., 0]
    np.testing.assert_array_equal(out[np.asarray(head)], np.float32(0.3))
    np.testing.assert_allclose([out[~np.asarray(head)].mean(), out[~np.asarray(head)].std()], [0.5, 12**-0.5], atol=0.01)


def test_a_made_scan_is_scaled_as_a_real_one(rng):
    head, image = np.asarray(ball()), rng.random((32, 32, 32), np.float32)
    few = (slice(None, None, 2),) * 3
    low, high = np.percentile(image[few], 2.0), np.percentile(image[few][head[few]], 99.5)
    out = generator.rescale(jnp.asarray(image)[..., None], jnp.asarray(head))
    np.testing.assert_allclose(out[..., 0], np.clip((image - low) / (high - low), 0, 1), atol=1e-5)
    flat = generator.rescale(jnp.full((8, 8, 8, 1), 0.4), jnp.ones((8, 8, 8), bool))
    nothing = generator.rescale(jnp.full((8, 8, 8, 1), 0.4), jnp.zeros((8, 8, 8), bool))
    assert np.isfinite(flat).all() and np.isfinite(nothing).all()


# ---- all of it, as a config says


HEADS = read_table("head")
CHANCES = ("lesions.chance", "strip.chance", "face.chance", "air_noise.chance")


def made_by(target="seg33", spacing=4.0, **changes):
    """A maker whose keys under `synth` are changed."""
    c = base()
    c.data.spacing = spacing
    c.update_from_flattened_dict({f"synth.{name}": value for name, value in changes.items()})
    return generator.generator(c, read_table(target))


def head_of_layers(n=16):
    """Classes of "head": skin around cortex around white matter, the latter two on either side."""
    at = np.indices((n, n, n)) - (n - 1) / 2
    radius, left = np.sqrt((at**2).sum(0)) * 16 / n, at[0] < 0
    ids = np.where(radius < 3, np.where(left, 2, 41), np.where(radius < 5, np.where(left, 3, 42), np.where(radius < 7, 604, 0)))
    return jnp.asarray(lookup(ids.astype(np.uint16), HEADS, HEADS))


def test_equal_keys_make_equal_scans_and_others_others_all_within_bounds():
    """With every change there is, by a half each; also of what has no brain, and of nothing."""
    whole = jax.jit(made_by(**dict.fromkeys(CHANCES, 0.5)).whole_scan)
    labels = head_of_layers()
    for map in (labels, jnp.where(labels == labels[8, 1, 8], labels, 0), 0 * labels):
        images = [np.asarray(whole(key, map)[0]) for key in jax.random.split(KEY, 12)]
        assert all(np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1 for image in images)
        assert images[0].shape == (16, 16, 16, 1) and images[0].dtype == np.float32
    images = [np.asarray(whole(key, labels)[0]) for key in jax.random.split(KEY, 12)]
    assert len({image.tobytes() for image in images}) == 12
    np.testing.assert_array_equal(whole(jax.random.split(KEY, 12)[3], labels)[0], images[3])


def test_labels_only_are_made_a_scan_of_always_and_others_by_their_share():
    keys = jax.random.split(KEY, 2000)

    def share_of(share, alone):
        return float(jax.vmap(lambda key: made_by(share=share).appearance(key, jnp.array(alone)).made)(keys).mean())

    assert share_of(1e-9, True) == 1 and share_of(1e-9, False) == 0 and share_of(1.0, False) == 1
    assert abs(share_of(0.5, False) - 0.5) < 0.04 and abs(share_of(0.2, False) - 0.2) < 0.03


@pytest.mark.parametrize("target", [name for name in SCHEMES if name not in ("malpem", "dlmuse", "head")])
def test_what_the_network_learns_of_a_heads_classes_is_what_it_would_without(target, rng):
    """By way of the table "head", whatever scan is made, labels become the classes that they are at once."""
    source, table, maker = read_table("freesurfer"), read_table(target), made_by(target)
    at_once, through = grouping(source, table), grouping(source, HEADS)
    plain = [s.id for s in source.structures if len(at_once[s.id]) < 2 and len(through[s.id]) == 1]
    if target in ("freesurfer", "synthseg"):  # these have the cortex in parcels, which a head has not
        plain = [id for id in plain if through[id] == (id,)]
    ids = rng.choice([0, *plain], (4, 40, 5)).astype(np.uint16)
    classes = jnp.asarray(lookup(ids, source, HEADS))
    image = jnp.zeros((4, 40, 5, 1))
    for look in (maker.appearance(KEY, jnp.array(True)), maker.appearance(KEY, jnp.array(False))):
        _, learned = maker.finish(KEY, look, image, classes)
        np.testing.assert_array_equal(learned, lookup(ids, source, table))
    assert len(plain) > 20
    outside = lookup(np.arange(601, 607).reshape(6, 1, 1), HEADS, HEADS)
    assert not np.asarray(maker.classes)[outside].any()


def test_a_target_that_a_head_does_not_tell_apart_is_refused():
    with pytest.raises(InputError, match="'Left cerebral cortex' of label table head does not tell"):
        made_by("malpem")


def test_without_spread_a_structure_is_its_mean_and_a_real_scan_is_left_as_it_is():
    maker, labels = made_by(share=0.5, spread=0.0, air=0.0), head_of_layers()
    real = jax.random.uniform(KEY, (16, 16, 16, 1))
    made = 0
    for key in jax.random.split(KEY, 8):
        look = maker.appearance(key, jnp.array(False))
        image, _ = maker.finish(key, look, maker.with_means(look, real, labels), labels)
        if not look.made:
            np.testing.assert_array_equal(image, real)
            continue
        made += 1
        means = np.asarray(look.means)[maker.tissues.of[np.asarray(labels)]]
        few = (slice(None, None, 2),) * 3
        low, high = np.percentile(means[few], 2.0), np.percentile(means[few][np.asarray(labels)[few] > 0], 99.5)
        np.testing.assert_allclose(image[..., 0], np.clip((means - low) / (high - low), 0, 1), atol=1e-5)
    assert 0 < made < 8
