"""Flags on label maps whose faults are known: each fault its flag and no other, in numbers counted by hand."""

import json
from itertools import permutations, product

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainseg_jax.data.labels import parse_table, read_table
from brainseg_jax.data.nifti import Scan, reorient
from brainseg_jax.qc.findings import ALL, ENTROPY, KINDS, WORST, Z, cohort_of, examine, flags, measure, z_scores

LINES = (
    *("1\tLeft cortex\t2\tcortex\t3", "2\tRight cortex\t1\tcortex\t42"),
    *("3\tLeft ventricle\t4\tcsf\t4", "4\tRight ventricle\t3\tcsf\t43"),
)
TABLE = parse_table("\n".join(("id\tname\tpartner\ttissue\tfreesurfer", *LINES, "5\tStem\t5\tother\t16")), "five")
NAMES = [s.name for s in TABLE.structures]
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def sound():
    """40³ voxels of 2 mm with nothing wrong: two halves with a ventricle in each, and a stem below."""
    classes = np.zeros((40, 40, 40), np.uint8)
    classes[8:20, 8:32, 12:32] = 1
    classes[20:32, 8:32, 12:32] = 2
    classes[14:18, 14:26, 18:26] = 3
    classes[22:26, 14:26, 18:26] = 4
    classes[18:22, 14:20, 6:12] = 5
    return classes


def found(classes, affine=AFFINE, **given):
    return {(flag.kind, flag.structure): flag for flag in examine(classes, affine, TABLE, **given).flags}


def cohort(**changes):
    """Thirty people like `sound`, each structure with an sd of a tenth."""
    ml = measure(sound(), AFFINE, 6).ml
    return {name: [ml[n], ml[n] / 10, 30] for n, name in enumerate(NAMES, 1)} | changes


# ---- measures


def test_measures_by_hand():
    classes = sound()
    classes[0, 0:2, 0] = 3  # two voxels in a corner of the image, at the edges of three faces
    affine = np.array([[2.0, 0, 0, -10], [0, 1.5, 0, 0], [0, 0, 3, 5], [0, 0, 0, 1]])
    got = measure(classes, affine, 6)
    voxels = np.array([12 * 24 * 20 * 2 + 4 * 6 * 6 + 2, *[12 * 24 * 20 - 4 * 12 * 8] * 2, 4 * 12 * 8 + 2, 4 * 12 * 8, 4 * 6 * 6])
    assert got.ml == pytest.approx(voxels * 0.009)
    assert got.centre[5] == pytest.approx((19.5 * 2 - 10, 16.5 * 1.5, 8.5 * 3 + 5))
    assert got.pieces.tolist() == [2, 1, 1, 2, 1, 1]
    assert got.outside == pytest.approx([2 / voxels[0], 0, 0, 2 / voxels[3], 0, 0])
    # Left, right, back, front, bottom, top: 2 voxels of 1.5 × 3 mm, 1 of 2 × 3 mm, 2 of 2 × 1.5 mm.
    assert got.edge[3] == pytest.approx([0.09, 0, 0.06, 0, 0.06, 0])
    assert not got.edge[[1, 2, 4, 5]].any()
    with pytest.raises(ValueError, match="classes 0 to 5 where 0 to 4"):
        measure(classes, affine, 5)


@pytest.mark.parametrize("codes", ["LPS", "PSR", "IAL"])
def test_measures_do_not_depend_on_the_order_of_voxels(rng, codes):
    """A cut at the top is at the top, and the left on the left, whichever way the axes run."""
    classes = (ndimage.gaussian_filter(rng.normal(size=(6, 12, 14, 10)), (0, 2, 2, 2))).argmax(axis=0).astype(np.uint8)
    affine = np.array([[2.0, 0, 0, -10], [0, 1.5, 0, 0], [0, 0, 3, 5], [0, 0, 0, 1]])
    turned = reorient(Scan(classes, affine), codes)
    for one, other in zip(measure(classes, affine, 6), measure(turned.voxels, turned.affine, 6), strict=True):
        assert one == pytest.approx(other, nan_ok=True)


def test_pieces_touch_by_a_corner():
    classes = np.zeros((4, 4, 4), np.uint8)
    classes[0, 0, 0] = classes[1, 1, 1] = classes[3, 3, 3] = 1
    got = measure(classes, AFFINE, 2)
    assert (got.pieces[1], got.outside[1]) == (2, pytest.approx(1 / 3))
    assert np.isnan(measure(classes, AFFINE, 3).outside[2])


# ---- flags


def test_a_sound_map_has_no_flags():
    assert found(sound()) == {}
    assert found(sound(), cohort=cohort(), entropy=0.1) == {}
    assert examine(sound(), AFFINE, TABLE).score == 0


def test_nothing_is_worse_than_anything():
    nothing = examine(np.zeros((9, 9, 9), np.uint8), AFFINE, TABLE)
    (flag,) = nothing.flags
    assert (flag.kind, flag.structure, flag.words) == ("empty", ALL, "Nothing was segmented.")
    one = np.zeros((9, 9, 9), np.uint8)
    one[4, 4, 4] = 1
    assert nothing.score > examine(one, AFFINE, TABLE).score > 0
    assert np.isnan(examine(one, AFFINE, TABLE).z).all()


def test_absent_unless_the_cohort_does_not_have_it_either():
    classes = sound()
    classes[classes == 5] = 0
    assert found(classes)["absent", "Stem"].words == "Stem is absent."
    assert ("absent", "Stem") in found(classes, cohort=cohort())
    without = cohort()
    del without["Stem"]
    assert found(classes, cohort=without) == {}
    assert ("absent", "Stem") not in found(classes, cohort=cohort(Stem=[0.02, 0.05, 30]))


def test_an_exchanged_pair_and_an_exchanged_head():
    classes = sound()
    one = np.array([0, 1, 2, 4, 3, 5], np.uint8)[classes]
    flag = found(one)["sides", "Left ventricle"]
    assert len(found(one)) == 1
    assert (flag.severity, flag.value) == (WORST, pytest.approx(-16))
    assert flag.words == "Left ventricle lies 16 mm to the right of its partner."
    both = np.array([0, 2, 1, 4, 3, 5], np.uint8)[classes]
    assert found(both)["sides", ALL].words == "Left and right are exchanged: 2 of 2 pairs lie on the wrong sides."
    assert len(found(both)) == 1


def test_a_turned_head_has_its_left_on_the_left():
    for axes in (("x", 80), ("y", 70), ("z", -75), ("zy", (40, 40))):
        turned = np.eye(4)
        turned[:3, :3] = Rotation.from_euler(*axes, degrees=True).as_matrix() * 2
        assert found(sound(), turned) == {}
    # All ways of storing voxels, and the same in a mirror.
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        stored = np.eye(4)
        stored[:3, :3] = 2 * np.eye(3)[:, order] * signs
        classes = np.flip(sound().transpose(order), [a for a in range(3) if signs[a] < 0])
        stored[:3, 3] = [2 * 39 * (s < 0) for s in np.array(signs)[np.argsort(order)]]
        assert found(np.ascontiguousarray(classes), stored) == {}, (order, signs)


def test_names_without_sides_have_none():
    table = parse_table("id\tname\tpartner\n1\thippocampus one\t2\n2\thippocampus two\t1\n", "two")
    classes = np.zeros((9, 9, 9), np.uint8)
    classes[1:4, 3:6, 3:6], classes[5:8, 3:6, 3:6] = 2, 1
    assert [f.kind for f in examine(classes, AFFINE, table).flags] == ["pieces"]
    right_first = parse_table("id\tname\tpartner\n1\tRight hippocampus\t2\n2\tLeft hippocampus\t1\n", "two")
    assert [f.kind for f in examine(classes, AFFINE, right_first).flags] == ["pieces"]


def test_touching_the_edge():
    """The field of view ends within the brain, at the top and on the right."""
    cut = np.ascontiguousarray(sound()[:29, :, :30])
    got = found(cut)
    assert set(got) == {("edge", "Left cortex"), ("edge", "Right cortex")}
    left, right = got["edge", "Left cortex"], got["edge", "Right cortex"]
    assert left.value == pytest.approx(12 * 24 * 0.04)
    assert left.words == "Left cortex touches the image's edge (top), 11.5 cm²."
    assert right.value == pytest.approx((9 * 24 + 24 * 18) * 0.04)
    assert "(right and top)" in right.words
    assert right.severity == WORST
    one = sound()
    one[20, 20, 32:40] = 2
    assert found(one)["edge", "Right cortex"].severity == 1


def test_pieces():
    classes = sound()
    classes[18:22, 14:16, 6:7] = 0
    classes[18:22, 14:15, 6:7] = 5  # a gap of a voxel in the lowest plane of the stem's 6
    assert found(classes) == {}
    classes[18:22, 15, 6:12] = 0  # and now through all of it, but for what is beside
    flag = found(classes)["pieces", "Stem"]
    assert flag.value == pytest.approx(24 / 120)
    assert flag.words == "Stem is in 2 pieces; 20.0% of it lies outside the largest."
    assert flag.severity == WORST
    ventricle = sound()
    ventricle[14:18, 18:20, 18:26] = 1
    assert found(ventricle) == {}  # a ventricle may be in two pieces
    far = sound()
    far[36:38, 36:38, 2:12] = 2
    assert set(found(far)) == {("pieces", ALL)}  # 40 voxels are 0.7 % of the right cortex and 0.34 % of all
    assert found(far)["pieces", ALL].words == "The segmentation is in 2 pieces; 0.3% of it lies outside the largest."
    far[36:38, 34:38, 2:20] = 2
    assert set(found(far)) == {("pieces", ALL), ("pieces", "Right cortex")}


def test_what_is_many_structures_may_be_in_many_pieces():
    table = read_table("seg4")  # its grey matter is ten nuclei
    classes = np.zeros((20, 20, 20), np.uint8)
    classes[2:18, 2:18, 2:18] = 3
    classes[4:6, 4:6, 4:6] = classes[12:14, 4:6, 4:6] = 2
    kinds = {(flag.kind, flag.structure) for flag in examine(classes, AFFINE, table).flags}
    assert kinds == {("absent", "Cortex"), ("absent", "CSF")}


def test_asymmetry_without_and_with_a_cohort():
    classes = sound()
    classes[8:13, 8:32, 12:32] = 0  # 5 of 12 planes of the left
    left, right = (classes == 1).sum(), (classes == 2).sum()
    flag = found(classes)["asymmetry", "Left cortex"]
    assert flag.value == pytest.approx(2 * (left - right) / (left + right))
    assert flag.severity == pytest.approx(-flag.value / 0.45)
    assert flag.words == f"Left cortex has {left * 0.008:.3g} ml and its partner {right * 0.008:.3g} ml: they differ by 57% of their mean."
    # Of a cohort whose left is always the smaller, and of one where nobody is like that.
    usual = {"Left cortex : Right cortex": [-0.55, 0.02, 50]}
    assert found(classes, cohort=cohort(**usual)).keys().isdisjoint({("asymmetry", "Left cortex")})
    assert ("asymmetry", "Left cortex") in found(sound(), cohort=cohort(**usual))
    ventricle = sound()
    ventricle[14:16, 14:26, 18:26] = 1  # two thirds of the mean are usual in ventricles
    assert found(ventricle) == {}


def test_volumes_against_the_cohort():
    """z of the logarithm: twice and half the mean are equally far, and a larger head alone is no reason."""
    ml = measure(sound(), AFFINE, 6).ml
    spread = 0.1 * np.sqrt(1 + 1 / 30)
    sigma = np.sqrt(np.log1p(spread**2))
    z, scaled = z_scores(ml, TABLE, cohort())
    assert z[1:] == pytest.approx(np.full(5, sigma / 2))
    assert scaled == pytest.approx(z)
    z, scaled = z_scores(2 * ml, TABLE, cohort())
    assert z[1:] == pytest.approx(np.full(5, np.log(2) / sigma + sigma / 2))
    assert scaled[1:] == pytest.approx(np.full(5, sigma / 2))
    # All together: the sum of sds is a tenth of the sum of means, and a cohort that knows it is believed.
    assert z[0] == scaled[0] == pytest.approx(z[1])
    z, _ = z_scores(2 * ml, TABLE, cohort(**{ALL: [ml[0], ml[0], 30]}))
    assert 0 < z[0] < 2

    larger = 1.4 * np.eye(4) * 2
    assert set(found(sound(), larger, cohort=cohort())) == {("volume", ALL)}
    thin = sound()
    thin[14:16, 14:26, 18:26], thin[24:26, 14:26, 18:26] = 1, 2
    got = found(thin, cohort=cohort())
    assert set(got) == {("volume", "Left ventricle"), ("volume", "Right ventricle")}
    flag = got["volume", "Left ventricle"]
    assert flag.value == pytest.approx(np.log(0.5) / sigma + sigma / 2, abs=0.01)
    assert flag.severity == pytest.approx(-flag.value / Z)
    assert flag.words == "Left ventricle is small for this brain: 1.54 ml, z = −6.8."


def test_a_cohort_of_few_people_says_nothing():
    few = {name: [mean * 3, sd, 19] for name, (mean, sd, _) in cohort().items()}
    assert found(sound(), cohort=few) == {}
    assert found(sound(), cohort={}) == {}


def test_a_cohort_of_people(rng):
    """What `cohort_of` says is what NumPy does, goes through JSON, and flags about as many of the people as lie beyond 3 sd."""
    ml = measure(sound(), AFFINE, 6).ml[1:] * rng.normal(1, 0.1, (200, 1)) * np.exp(rng.normal(0, [0.05, 0.05, 0.4, 0.4, 0.05], (200, 5)))
    ml = np.concatenate([ml.sum(axis=1, keepdims=True), ml], axis=1)
    usual = json.loads(json.dumps(cohort_of(ml, TABLE, entropy=rng.normal(0.2, 0.02, 200).tolist())))
    assert set(usual) == {ALL, ENTROPY, *NAMES, "Left cortex : Right cortex", "Left ventricle : Right ventricle"}
    assert usual["Stem"] == pytest.approx([ml[:, 5].mean(), ml[:, 5].std(ddof=1), 200])
    asymmetry = 2 * (ml[:, 1] - ml[:, 2]) / (ml[:, 1] + ml[:, 2])
    assert usual["Left cortex : Right cortex"] == pytest.approx([asymmetry.mean(), asymmetry.std(ddof=1), 200])
    z = np.array([z_scores(person, TABLE, usual)[0] for person in ml])
    assert np.abs(z.mean(axis=0)).max() < 0.1
    assert z.std(axis=0) == pytest.approx(np.ones(6), abs=0.12)
    assert (np.abs(z) > 3).mean() < 0.01
    ml[:, 5] = 0
    assert "Stem" not in cohort_of(ml, TABLE)


def test_an_unsure_network():
    assert found(sound(), entropy=0.6)["entropy", ALL].severity == pytest.approx(1.2)
    assert found(sound(), entropy=0.6, cohort=cohort(**{ENTROPY: [0.6, 0.1, 40]})) == {}
    flag = found(sound(), entropy=0.3, cohort=cohort(**{ENTROPY: [0.1, 0.01, 40]}))["entropy", ALL]
    assert (flag.severity, flag.words) == (WORST, "The network is unsure inside the brain: 0.30 nats a voxel on average.")
    assert found(sound(), entropy=0.01, cohort=cohort(**{ENTROPY: [0.1, 0.01, 40]})) == {}


def test_the_worst_comes_first_and_every_kind_is_explained():
    classes = sound()
    classes[8:13, 8:32, 12:32] = 0
    classes[classes == 5] = 0
    got = flags(measure(classes, AFFINE, 6), TABLE)
    assert [flag.kind for flag in got] == ["absent", "asymmetry"]
    assert examine(classes, AFFINE, TABLE).score == pytest.approx(sum(flag.severity for flag in got))
    assert {flag.kind for flag in got} < set(KINDS)
