"""Label tables: laws that hold for all of them, values written down by hand, what a table of the user's may say, and real label maps."""

import itertools
import os
import tomllib
from pathlib import Path

import numpy as np
import pytest

from brainseg_jax.core.errors import InputError
from brainseg_jax.data import labels as lab
from brainseg_jax.data.labels import SCHEMES, TISSUES, Table, grouping, lookup, missing, parse_table, read_table, swap, voxel_ids
from brainseg_jax.data.nifti import read_labels
from brainseg_jax.data.sample import template

ROOT = Path(__file__).parents[2]
IXI = Path(os.environ.get("BRAINSEG_IXI2MM", "ixi2mm"))
TABLES = {scheme: read_table(scheme) for scheme in SCHEMES}
# neurite-OASIS: FreeSurfer ids in the order of the ids 1 to 35.
OASIS = [2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 26, 28, 30, 31]
OASIS += [41, 42, 43, 44, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60, 62, 63]
# SynthSeg 2.0 in the order of its posteriors.
SYNTHSEG = [2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 26, 24, 28]
SYNTHSEG += [41, 42, 43, 44, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60]
# FreeSurfer's tissue types (surfa's tissue_type_recoder) on the 35.
TISSUES_OF_35 = {
    1: {2, 21},
    2: {6, 25, 7, 8, 9, 10, 14, 15, 16, 26, 27, 28, 29, 30, 31, 32},
    3: {1, 5, 13, 17, 20, 24, 33},
    4: {3, 4, 11, 12, 18, 19, 22, 23, 34, 35},
}
# MALP-EM, right and left of each, into the 35.
MALPEM = {1: 11, 2: 12, 3: 32, 4: 16, 5: 31, 6: 15, 7: 13, 8: 27, 9: 8, 10: 25, 11: 6, 12: 24, 13: 5, 16: 20, 17: 1, 19: 30, 20: 14}
MALPEM |= {21: 23, 22: 4, 23: 22, 24: 3, 25: 29, 26: 10, 27: 28, 28: 9, 29: 26, 30: 7, 31: 33, 32: 17, 33: 34, 34: 18}
MALPEM |= dict.fromkeys(range(41, 139, 2), 21) | dict.fromkeys(range(42, 139, 2), 2)
# Of the freesurfer table, what the 35 structures have no place for.
NONE_OF_35 = {24, 72, 80, 81, 82, 85, 91, 92}


def by_id(table):
    return {s.id: s for s in table.structures}


def pairs():
    """(source, target) of all shipped tables between which there is a grouping."""
    for source, target in itertools.product(TABLES.values(), repeat=2):
        try:
            yield source, target, grouping(source, target)
        except InputError:
            continue


GROUPINGS = {(source.name, target.name): groups for source, target, groups in pairs()}


def user(*lines, columns="id name partner freesurfer"):
    return parse_table("\n".join("\t".join(line.split(" ")) for line in (columns, *lines)), "mine.tsv")


def test_the_tables_are_those_in_the_package():
    files = {path.stem for path in (ROOT / "brainseg_jax" / "data" / "tables").iterdir()}
    assert files == set(SCHEMES)
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["brainseg_jax"]
    assert "data/tables/*.tsv" in patterns
    sizes = {scheme: len(table.structures) for scheme, table in TABLES.items()}
    # aseg's 44 with hypointensities and chiasm, 2 basal forebrains, 6 of the callosum, 3 of the vermis, 72 parcels; SynthSeg's 32 + 68.
    expected = {"seg35": 35, "seg33": 33, "intracranial": 35, "seg4": 4, "brain": 1, "freesurfer": 127, "malpem": 138}
    # 40 of aseg and basal forebrain, 6 that label maps of whole heads have beside, 11 outside the brain, 6 by brightness.
    expected |= {"synthseg": 100, "dlmuse": 148, "head": 66}
    assert sizes == expected


every_table = pytest.mark.parametrize("table", TABLES.values(), ids=SCHEMES)


@every_table
def test_ids_names_and_abbreviations_are_unique(table):
    for field in ("id", "name", "abbreviation"):
        values = [getattr(s, field) for s in table.structures]
        assert len(set(values)) == len(values) and all(values)


@every_table
def test_partners_are_involutive_and_their_names_say_so(table):
    structures = by_id(table)
    other = {"Left": "Right", "Right": "Left"}
    for s in table.structures:
        partner = structures[s.partner]
        assert partner.partner == s.id
        side, _, rest = s.name.partition(" ")
        assert partner.name == (f"{other[side]} {rest}" if side in other else s.name)
        assert partner.abbreviation == (f"{other[side][0]}-{s.abbreviation[2:]}" if side in other else s.abbreviation)
        assert partner.tissue == s.tissue
        assert "left" not in rest.lower() and "right" not in rest.lower()


@every_table
def test_freesurfer_ids_are_in_its_table_and_partners_too(table):
    structures, freesurfer = by_id(table), by_id(TABLES["freesurfer"])
    for s in table.structures:
        assert {freesurfer[id].partner for id in s.freesurfer} == set(structures[s.partner].freesurfer)
        # What has one FreeSurfer id is that structure or lies in it: tissue and side agree.
        for id in s.freesurfer if len(s.freesurfer) == 1 else ():
            assert freesurfer[id].tissue == s.tissue
            assert (freesurfer[id].partner == id) == (s.partner == s.id)


@every_table
def test_classes_are_counted_in_order_and_lead_back_to_ids(table):
    ids = voxel_ids(table)
    assert ids.tolist() == [0, *(s.id for s in table.structures)]
    np.testing.assert_array_equal(lookup(ids, table, table), np.arange(len(ids)))
    labels = np.random.default_rng(0).choice(ids, (5, 4, 3))
    np.testing.assert_array_equal(ids[lookup(labels, table, table)], labels)
    assert parse_table(lab.table_text(table), table.name) == table


@every_table
def test_swap_is_a_permutation_that_undoes_itself(table):
    classes, mirrored = np.arange(len(table.structures) + 1), swap(table)
    assert mirrored[0] == 0
    np.testing.assert_array_equal(mirrored[mirrored], classes)
    ids = voxel_ids(table)
    assert [by_id(table)[id].partner for id in ids[1:]] == ids[mirrored][1:].tolist()


@every_table
def test_what_could_be_otherwise_has_its_reason(table):
    if (table.name, "seg35") in GROUPINGS:
        for id, group in GROUPINGS[table.name, "seg35"].items():
            assert len(group) == 1 or by_id(table)[id].note, id


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "brain"])
def test_tissues_are_the_four_structures_and_make_the_brain(scheme):
    for s in TABLES[scheme].structures:
        number = TISSUES.index(s.tissue) + 1
        assert GROUPINGS[scheme, "seg4"][s.id] == ((number,) if number <= 4 else ())
        assert GROUPINGS[scheme, "brain"][s.id] == ((1,) if number <= 4 else ())


@pytest.mark.parametrize(("source", "target"), [pytest.param(*pair, id="-".join(pair)) for pair in GROUPINGS])
def test_groupings_are_total_and_commute_with_partners(source, target):
    groups, structures, targets = GROUPINGS[source, target], by_id(TABLES[source]), by_id(TABLES[target])
    assert groups.keys() == structures.keys()
    for id, group in groups.items():
        assert sorted(targets[part].partner for part in group) == list(groups[structures[id].partner])
        if len(group) == 2:
            assert structures[id].partner == id and targets[group[0]].partner == group[1]


def test_every_way_to_a_coarser_table_is_the_same():
    """Fine → 35 → 4 is fine → 4 wherever the 35 have a place for it, and so for all tables."""
    ways = 0
    coarser = ("freesurfer", "synthseg", "seg35", "seg33", "seg4", "brain")
    for a, (b, c) in itertools.product(SCHEMES, itertools.combinations(coarser, 2)):
        for id, group in GROUPINGS[a, b].items() if (a, b) in GROUPINGS else ():
            if group:
                through = {part for middle in group for part in GROUPINGS[b, c][middle]}
                assert through == set(GROUPINGS[a, c][id]), (a, b, c, id)
                ways += 1
    assert ways > 5000


def test_tables_that_group_and_those_that_cannot():
    fine = ("seg35", "seg33", "intracranial", "freesurfer", "malpem", "synthseg", "dlmuse", "head")
    coarse = ("seg35", "seg33", "intracranial", "seg4", "brain", "freesurfer", "synthseg", "head")
    expected = {(s, t) for s in fine for t in coarse} | {("seg4", "brain")} | {(s, s) for s in SCHEMES}
    assert set(GROUPINGS) == expected
    with pytest.raises(InputError, match=r"'Cortex' of label table seg4 does not tell 'Left cerebral cortex' from 'Right cerebral cortex'"):
        grouping(TABLES["seg4"], TABLES["seg35"])
    with pytest.raises(InputError, match="'Brain' of label table brain does not tell 'Cortex' from"):
        grouping(TABLES["brain"], TABLES["seg4"])
    with pytest.raises(InputError, match="'Left frontal white matter' from 'Left occipital white matter' of dlmuse; use labels that do"):
        grouping(TABLES["seg35"], TABLES["dlmuse"])


def test_classes_of_whole_heads_become_those_of_any_task_voxel_by_voxel():
    for (source, target), groups in GROUPINGS.items():
        if source == "head":
            assert max(map(len, groups.values())) == 1, target


def test_seg35_by_hand():
    table, freesurfer = TABLES["seg35"], by_id(TABLES["freesurfer"])
    assert [s.id for s in table.structures] == list(range(1, 36))
    assert [s.freesurfer for s in table.structures] == [(id,) for id in OASIS]
    for s in table.structures:
        same = freesurfer[s.freesurfer[0]]
        assert (s.name, s.abbreviation, s.colour, s.tissue) == (same.name, same.abbreviation, same.colour, same.tissue)
    names = {1: "Left cerebral white matter", 13: "Brain stem", 19: "Left choroid plexus", 30: "Right hippocampus", 33: "Right ventral DC"}
    assert {id: by_id(table)[id].name for id in names} == names
    assert (by_id(table)[14].name, by_id(table)[14].partner, by_id(table)[14].colour) == ("Left hippocampus", 30, "#dcd814")
    for tissue, ids in TISSUES_OF_35.items():
        assert {id for id, group in GROUPINGS["seg35", "seg4"].items() if group == (tissue,)} == ids
    assert set(GROUPINGS["seg35", "brain"].values()) == {(1,)}


def test_seg33_is_seg35_without_choroid_plexus():
    assert [s for s in TABLES["seg35"].structures if s.id not in (19, 35)] == list(TABLES["seg33"].structures)
    assert [s.id for s in missing(TABLES["seg33"], TABLES["seg35"])] == [19, 35]
    # As the paper's code has it: 19 and 35 become background.
    classes = lookup(np.arange(36), TABLES["seg35"], TABLES["seg33"])
    assert classes.tolist() == [*range(19), 0, *range(19, 34), 0]


def test_malpem_by_hand():
    groups = GROUPINGS["malpem", "seg35"]
    assert {id: group[0] for id, group in groups.items() if len(group) == 1} == MALPEM
    assert {id for id, group in groups.items() if not group} == {14, 15, 18, 35, 39, 40}
    assert {id: groups[id] for id in (36, 37, 38)} == dict.fromkeys((36, 37, 38), (6, 25))
    names = {3: "Right accumbens area", 4: "Left accumbens area", 39: "Left basal forebrain", 40: "Right basal forebrain"}
    names |= {41: "Right anterior cingulate gyrus", 138: "Left transverse temporal gyrus"}
    assert {id: by_id(TABLES["malpem"])[id].name for id in names} == names
    four, brain = GROUPINGS["malpem", "seg4"], GROUPINGS["malpem", "brain"]
    assert [four[id] for id in (14, 15, 18, 35, 36, 39, 40, 41)] == [(), (), (4,), (3,), (2,), (2,), (2,), (1,)]
    assert {id for id, group in brain.items() if not group} == {14, 15}
    assert missing(TABLES["malpem"], TABLES["seg33"]) == ()


def test_dlmuse_by_hand():
    groups = GROUPINGS["dlmuse", "seg35"]
    some = {4: 11, 11: 12, 23: 32, 30: 16, 31: 31, 32: 15, 35: 13, 38: 25, 39: 6, 40: 24, 41: 5, 47: 30, 48: 14, 49: 23, 50: 4, 51: 22}
    some |= {52: 3, 56: 10, 58: 9, 60: 7, 62: 17, 81: 20, 82: 1, 88: 1, 89: 20, 90: 1, 91: 20, 94: 1, 100: 21, 101: 2, 206: 21, 207: 2}
    assert {id: groups[id] for id in some} == {id: (group,) for id, group in some.items()}
    assert {id for id, group in groups.items() if not group} == {1, 46, 69, 75, 76}
    assert [groups[id] for id in (71, 72, 73, 95)] == [(6, 25), (6, 25), (6, 25), (1, 20)]
    assert [GROUPINGS["dlmuse", "seg4"][id] for id in (1, 46, 69, 71, 75, 95)] == [(4,), (4,), (3,), (2,), (2,), (3,)]
    assert set(GROUPINGS["dlmuse", "brain"].values()) == {(1,)}
    assert [s.name for s in missing(TABLES["dlmuse"], TABLES["seg33"])] == ["Left vessel", "Right vessel"]
    assert [by_id(TABLES["dlmuse"])[id].name for id in (75, 76)] == ["Left basal forebrain", "Right basal forebrain"]


def test_malpem_and_dlmuse_have_the_same_gyri():
    """The 49 of one protocol on either side, right before left: even ids of DLMUSE and odd ones of MALP-EM are on the right."""
    gyri = {
        scheme: {(s.abbreviation, s.name, s.tissue): (s.id + odd) % 2 for s in TABLES[scheme].structures if s.id >= first}
        for scheme, first, odd in (("dlmuse", 100, 0), ("malpem", 41, 1))
    }
    assert gyri["dlmuse"] == gyri["malpem"] and len(gyri["dlmuse"]) == 98
    assert all(name.startswith("Left" if left else "Right") for (_, name, _), left in gyri["dlmuse"].items())


def test_freesurfer_by_hand():
    table, groups = by_id(TABLES["freesurfer"]), GROUPINGS["freesurfer", "seg35"]
    assert all(s.freesurfer == (s.id,) for s in table.values())
    assert {id for id, group in groups.items() if not group} == NONE_OF_35
    assert all(groups[1000 + k] == (2,) and groups[2000 + k] == (21,) and table[1000 + k].partner == 2000 + k for k in range(36))
    assert [groups[id] for id in (77, 78, 79, 192, *range(251, 256), 630)] == [(1, 20), (1,), (20,), *[(1, 20)] * 6, (6, 25)]
    colours = {3: "#cd3e4e", 10: "#00760e", 24: "#3c3c3c", 85: "#eaa91e", 255: "#0000ff", 1035: "#ffc020", 2024: "#3c14dc"}
    assert {id: table[id].colour for id in colours} == colours
    assert (table[1024].name, table[2034].name) == ("Left cortex, precentral", "Right cortex, transverse temporal")
    # What is part of something is part of it all the way: no circles, and the whole is a row.
    for s in table.values():
        assert all(whole in table and s.id not in table[whole].part_of for whole in s.part_of)


def test_synthseg_is_a_bridge_but_for_five():
    assert {s.id for s in TABLES["synthseg"].structures if s.id < 1000} == set(SYNTHSEG)
    parcels = [*range(1001, 1004), *range(1005, 1036)]
    assert {s.id for s in TABLES["synthseg"].structures if s.id > 1000} == {*parcels, *(id + 1000 for id in parcels)}
    there, back = GROUPINGS["seg35", "synthseg"], GROUPINGS["synthseg", "seg35"]
    lost = {OASIS[id - 1] for id, group in there.items() if not group} | {id for id, group in back.items() if not group}
    assert lost == {24, 30, 31, 62, 63}
    assert all(back[group[0]] == (id,) for id, group in there.items() if group)


def test_the_papers_32_channels_are_an_exclusion():
    """[:18] + [20:34] of 36 channels, background among them: all but what SynthSeg's labels lack."""
    lacking = {s.id for s in missing(TABLES["synthseg"], TABLES["seg35"])}
    assert [c for c in range(36) if c not in lacking] == [*range(36)[:18], *range(36)[20:34]]
    assert [s.id for s in missing(TABLES["synthseg"], TABLES["seg33"])] == [18, 34]


@pytest.mark.parametrize("scheme", ["seg35", "seg33", "freesurfer", "synthseg"])
def test_freesurfer_ids_of_classes_lead_back(scheme):
    ids = lab.freesurfer_ids(TABLES[scheme])
    np.testing.assert_array_equal(lookup(ids, TABLES["freesurfer"], TABLES[scheme]), np.arange(len(ids)))


def test_freesurfer_ids_where_a_structure_is_several_or_none():
    assert lab.freesurfer_ids(TABLES["dlmuse"])[[0, 1, 2, -1]].tolist() == [0, 24, 14, 3]
    with pytest.raises(InputError, match="'Cortex' of label table seg4 has 2 FreeSurfer ids, not one; write the table's own ids"):
        lab.freesurfer_ids(TABLES["seg4"])
    with pytest.raises(InputError, match="'Right cerebral exterior' of label table malpem has no FreeSurfer ids"):
        lab.freesurfer_ids(TABLES["malpem"])


def test_lookup_by_hand(rng):
    labels = np.array([[0, 17, 53], [1024, 2035, 24], [16, 41, 85]])
    classes = lookup(labels, TABLES["freesurfer"], TABLES["seg33"])
    # seg33 counts in the order of its rows: 20 and later are one less without 19.
    assert classes.tolist() == [[0, 14, 29], [2, 20, 0], [13, 19, 0]]
    assert classes.dtype == np.uint8
    assert lookup(labels, TABLES["freesurfer"], TABLES["seg4"]).tolist() == [[0, 2, 2], [1, 1, 4], [3, 3, 3]]
    for dtype in (np.int16, np.uint16, np.int32, np.int64, np.uint64, np.float32, np.float64):
        np.testing.assert_array_equal(lookup(labels.astype(dtype), TABLES["freesurfer"], TABLES["seg33"]), classes)
    assert lookup(np.array([[[True, False]]]), TABLES["brain"], TABLES["brain"]).tolist() == [[[1, 0]]]
    assert lookup(np.zeros((0, 2), np.uint8), TABLES["brain"], TABLES["brain"]).shape == (0, 2)


def test_more_than_255_structures_are_counted_in_16_bits():
    table = user(*(f"{id} s{id} {id} {id}" for id in range(1, 301)))
    classes = lookup(np.arange(301), table, table)
    assert classes.dtype == np.uint16 and classes.tolist() == list(range(301))


def mirror(table, labels):
    partner = np.zeros(max(s.id for s in table.structures) + 1, int)
    partner[[s.id for s in table.structures]] = [s.partner for s in table.structures]
    return partner[labels[::-1]]


@pytest.mark.parametrize("scheme", ["freesurfer", "malpem", "dlmuse"])
def test_a_mirror_image_has_its_classes_swapped(scheme, rng):
    """Without what lies on the midline of a two-sided structure: there two sides may be equally near."""
    table = TABLES[scheme]
    sure = [id for id, group in GROUPINGS[scheme, "seg35"].items() if len(group) < 2]
    labels = rng.choice([0, *sure], (7, 6, 5))
    expected = swap(TABLES["seg35"])[lookup(labels, table, TABLES["seg35"])[::-1]]
    np.testing.assert_array_equal(lookup(mirror(table, labels), table, TABLES["seg35"]), expected)
    assert (expected != lookup(labels[::-1], table, TABLES["seg35"])).any()


def test_the_midline_goes_to_the_nearer_side(rng):
    """Against all distances, for callosum and vermis at once; without white matter near, the callosum is background."""
    shape = (30, 12, 11)
    labels = np.where(rng.random(shape) < 0.05, rng.choice([81, 82, 38, 39, 47, 48], shape), 0)
    labels = np.where((labels == 0) & (rng.random(shape) < 0.2), rng.choice([95, 71], shape), labels)
    classes = lookup(labels, TABLES["dlmuse"], TABLES["seg35"])
    for midline, left, right in ((95, 1, 20), (71, 6, 25)):
        here = np.argwhere(labels == midline)
        away = {k: np.linalg.norm(here[:, None] - np.argwhere((classes == k) & (labels != midline)), axis=2).min(1) for k in (left, right)}
        taken = classes[labels == midline]
        sure = away[left] != away[right]
        assert set(taken) == {left, right} and sure.sum() > 100
        np.testing.assert_array_equal(taken[sure], np.where(away[left] < away[right], left, right)[sure])
    rest = (labels != 95) & (labels != 71)
    groups = GROUPINGS["dlmuse", "seg35"]
    assert classes[rest].tolist() == [groups[id][0] if id else 0 for id in labels[rest]]
    # The nearer side may lie outside of what is on the midline, but not further than NEAR.
    row = np.array([82, 0, 0, 95, 95, 95, 0, 0, 81, 0])
    assert lookup(row, TABLES["dlmuse"], TABLES["seg35"]).tolist() == [1, 0, 0, 1, 1, 20, 0, 0, 20, 0]
    far = np.zeros((60, 4, 4), int)
    far[:2], far[50:] = 95, 81
    assert set(lookup(far, TABLES["dlmuse"], TABLES["seg35"])[:50].ravel()) == {0}
    assert set(lookup(far, TABLES["dlmuse"], TABLES["seg4"])[:2].ravel()) == {3}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([4, 5, 5, 207]), r"x\.nii: label table dlmuse does not have 5 \(2 voxels\); name the label table that they follow"),
        (np.array([-1, 4]), r"does not have -1 \(1 voxel\);"),
        (np.array([208, 2035, 70000, 0]), r"does not have 208 \(1 voxel\), 2035 \(1 voxel\), 70000 \(1 voxel\);"),
        (np.arange(11), r"does not have 2 \(1 voxel\), .* 7 \(1 voxel\) and 3 more;"),
        (np.array([4, 2.5]), r"x\.nii: 2\.5 is no label; save the labels as integers"),
        (np.array([4, np.nan]), r"nan is no label"),
        (np.array([4, np.inf]), r"inf is no label"),
    ],
)
def test_lookup_refuses(labels, message):
    with pytest.raises(InputError, match=message):
        lookup(labels, TABLES["dlmuse"], TABLES["seg35"], "x.nii")


def test_a_table_of_the_users(tmp_path):
    path = tmp_path / "mine.tsv"
    text = "\ufeffname\tid\tpartner\tfreesurfer\r\nLeft thing\t3\t9\t17/18\r\nRight thing\t9\t3\t53/54\r\n\r\nPons\t4\t4\t\r\n"
    path.write_bytes(text.encode())
    table = read_table(path)
    left, right, pons = table.structures
    assert table.name == str(path) and (left.id, right.id, left.freesurfer) == (3, 9, (17, 18))
    assert (left.abbreviation, left.tissue, left.note, left.part_of, pons.freesurfer) == ("Left thing", "other", "", (), ())
    assert left.colour == right.colour != pons.colour
    assert swap(table).tolist() == [0, 2, 1, 3] and voxel_ids(table).tolist() == [0, 3, 9, 4]
    # As a target: of any shipped table that tells its structures apart. As a source: where all of a structure goes to one place.
    assert lookup(np.array([14, 15, 30, 1]), TABLES["seg35"], table).tolist() == [1, 1, 2, 0]
    assert [s.name for s in missing(TABLES["dlmuse"], table)] == ["Pons"]
    assert grouping(table, TABLES["seg4"]) == {3: (2,), 9: (2,), 4: ()}
    with pytest.raises(InputError, match=r"'Left thing' of .*mine\.tsv does not tell 'Left hippocampus' from 'Left amygdala' of seg33"):
        grouping(table, TABLES["seg33"])
    with pytest.raises(InputError, match="'Subcortical grey matter' of label table seg4 does not tell 'Left thing' from 'Right thing'"):
        grouping(TABLES["seg4"], table)
    assert read_table(path) == table and grouping(table, Table("elsewhere", table.structures)) == {3: (3,), 9: (9,), 4: (4,)}


def test_a_structure_goes_nowhere_in_part():
    both = user("1 Hippocampi 1 17/53")
    with pytest.raises(InputError, match="'Subcortical grey matter' of label table seg4 does not tell 'Hippocampi' from the background of"):
        grouping(TABLES["seg4"], both)
    assert lookup(np.array([14, 30, 13]), TABLES["seg35"], both).tolist() == [1, 1, 0]


def test_what_has_no_freesurfer_id_may_be_part_of_what_has():
    table = user("1 Lesion 1  2/41", "2 L 3 2 ", "3 R 2 41 ", "4 Cyst 4  ", columns="id name partner freesurfer part_of")
    assert grouping(table, TABLES["seg35"]) == {1: (1, 20), 2: (1,), 3: (20,), 4: ()}
    with pytest.raises(InputError, match=r"'Lesion' of label table mine\.tsv does not tell"):  # nothing there to be near to
        grouping(user("1 Lesion 1  2/41", "2 L 2 17 ", columns="id name partner freesurfer part_of"), TABLES["seg35"])
    with pytest.raises(InputError, match=r"label table mine\.tsv has no FreeSurfer ids to get from mine\.tsv to brain; add that column"):
        grouping(user("1 A 1 "), TABLES["brain"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id\tname\tpartner\tcolor\n", r"mine\.tsv: column 'color' is unknown \(did you mean 'colour'\?\); known are id, name"),
        (" \n", r"mine\.tsv: the first line is empty; it names the columns, of id, name"),
        ("id,name,partner\n", r"column 'id,name,partner' is unknown .*; known are .*, separated by tabs"),
        ("id\tname\tpartner\tid\n", "column 'id' stands twice"),
        ("id\tname\n1\tA\n", "column 'partner' is missing; the first line names the columns"),
        ("id\tname\tpartner\n\n", "no structures; add at least one line"),
        ("id\tname\tpartner\n1\tA\t1\t\n", "line 2: 4 cells for 3 columns"),
        ("id\tname\tpartner\n1\tA\t1\n\n0\tB\t0\n", r"line 4: id '0' is no number from 1 to 65535; correct it \(0, the background"),
        ("id\tname\tpartner\n70000\tA\t70000\n", "line 2: id '70000' is no number"),
        ("id\tname\tpartner\n1.0\tA\t1\n", "line 2: id '1.0' is no number"),
        ("id\tname\tpartner\n1\tA\t\n", "line 2: partner '' is no number"),
        ("id\tname\tpartner\tfreesurfer\n1\tA\t1\t17;53\n", "line 2: freesurfer '17;53' is no number"),
        ("id\tname\tpartner\n1\t\t1\n", "line 2: the name is empty"),
        ("id\tname\tpartner\n1\tA\t1\n1\tB\t1\n", "line 3: 1 stands in line 2 too"),
        ("id\tname\tpartner\n1\tA\t1\n2\tA\t2\n", "line 3: 'A' stands in line 2 too"),
        ("id\tname\tpartner\n1\tA\t2\n2\tB\t2\n", "line 2: partner 2 is no line whose partner is 1; give each side the other's id"),
        ("id\tname\tpartner\n1\tA\t3\n", "line 2: partner 3 is no line"),
        ("id\tname\tpartner\tcolour\n1\tA\t1\tred\n", "line 2: colour 'red' cannot be read; write it as #rrggbb"),
        ("id\tname\tpartner\ttissue\n1\tA\t1\twhite mater\n", r"line 2: tissue 'white mater' is unknown \(did you mean 'white matter'\?\)"),
    ],
)
def test_tables_that_are_refused(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_table(text, "mine.tsv")
    assert "\n" not in str(caught.value)


def test_files_that_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"label table 'dlmus' is unknown \(did you mean 'dlmuse'\?\); use a \.tsv file or one of seg35"):
        read_table("dlmus")
    with pytest.raises(InputError, match=r"gone\.tsv: no such file"):
        read_table(tmp_path / "gone.tsv")
    (tmp_path / "a.tsv").write_bytes(b"id\tname\tpartner\n1\t\xff\t1\n")
    with pytest.raises(InputError, match=r"a\.tsv: is not UTF-8"):
        read_table(tmp_path / "a.tsv")
    (tmp_path / "folder.tsv").mkdir()
    with pytest.raises(InputError, match=r"folder\.tsv: cannot be read"):
        read_table(tmp_path / "folder.tsv")


def centres(scan, classes):
    """Millimetres to the right of the origin, and ml, of each class."""
    where = np.nonzero(classes)
    right = scan.affine[0, :3] @ np.array(where) + scan.affine[0, 3]
    found = classes[where]
    voxels = np.bincount(found)
    return np.bincount(found, right) / np.maximum(voxels, 1), voxels * abs(np.linalg.det(scan.affine[:3, :3])) / 1000


def check_sides(table, middle):
    pairs = [(k, swap(table)[k]) for k, s in enumerate(table.structures, 1) if s.name.startswith("Left") and k < len(middle) and middle[k]]
    assert all(middle[left] < middle[right] for left, right in pairs)
    return len(pairs)


def test_the_sample_head_has_left_on_the_left():
    _, scan, mask = template()
    middle, volume = centres(scan, lookup(scan.voxels, TABLES["freesurfer"], TABLES["seg35"]))
    assert check_sides(TABLES["seg35"], middle) == 14
    assert 4.5 < volume[14] < 6 and 4.5 < volume[30] < 6 and 9 < volume[7] < 12  # hippocampi, thalamus
    np.testing.assert_array_equal(lookup(scan.voxels, TABLES["freesurfer"], TABLES["brain"]), mask.voxels > 0)


@pytest.mark.skipif(not IXI.is_dir(), reason="set BRAINSEG_IXI2MM to a folder with the IXI scans at 2 mm and their DLMUSE labels")
def test_dlmuse_on_real_heads():
    """Left is left for every pair of DLMUSE and of the 35; grouped volumes are those of grown-ups, the midline halved."""
    dlmuse, oasis = TABLES["dlmuse"], TABLES["seg35"]
    ranges = {"cerebral white matter": (150, 350), "cerebral cortex": (180, 350), "cerebellum cortex": (40, 90), "thalamus": (5, 11)}
    ranges |= {"hippocampus": (2.5, 5.5), "caudate": (2, 5), "putamen": (2.5, 6), "lateral ventricle": (1.5, 60), "amygdala": (0.6, 1.6)}
    for path in sorted((IXI / "labels").glob("*.nii.gz"))[::47]:
        scan = read_labels(path)
        middle, _ = centres(scan, lookup(scan.voxels, dlmuse, dlmuse, str(path)))
        assert len(middle) == 149 and check_sides(dlmuse, middle) == 69
        classes = lookup(scan.voxels, dlmuse, oasis)
        middle, volume = centres(scan, classes)
        assert check_sides(oasis, middle) == 14
        assert len(volume) == 34  # none of the right vessel and choroid plexus
        for k, s in enumerate(oasis.structures[:33], 1):
            low, high = ranges.get(s.name.partition(" ")[2], (0, np.inf))
            assert low <= volume[k] < high, (path.name, s.name, volume[k])
        for ids, left in (((95,), 1), ((71, 72, 73), 6)):
            assert 0.4 < np.mean(classes[np.isin(scan.voxels, ids)] == left) < 0.6
        brain = lookup(scan.voxels, dlmuse, TABLES["brain"])
        np.testing.assert_array_equal(brain, scan.voxels > 0)
        four = np.bincount(lookup(scan.voxels, dlmuse, TABLES["seg4"]).ravel())
        assert four[1:].sum() == brain.sum() and len(four) == 5
