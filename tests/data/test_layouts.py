"""Folder layouts become rows: on little trees of empty files with the real names."""

import os
import re
from pathlib import Path

import pytest

from brainseg_jax.core.errors import InputError
from brainseg_jax.data import layouts
from brainseg_jax.data.manifest import Row


def tree(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def short(rows, root):
    """Rows without what is the same in all of them: subject, session, image and labels below the root."""
    return [(row.subject, row.session, *(p.relative_to(root).as_posix() for p in (row.image, *row.labels))) for row in rows]


def test_neurite_oasis_gives_two_rows_a_session(tmp_path):
    files = ("orig.nii.gz", "norm.nii.gz", "seg35.nii.gz", "seg4.nii.gz", "aligned_orig.nii.gz", "aligned_seg35.nii.gz")
    tree(tmp_path, *(f"OASIS_OAS1_0001_MR1/{name}" for name in files), "OASIS_OAS1_0061_MR2/orig.nii.gz", "seg35_labels.txt")
    rows = layouts.oasis1(tmp_path)
    home = tmp_path / "OASIS_OAS1_0001_MR1"
    labels = (home / "seg35.nii.gz", home / "seg4.nii.gz")
    assert rows == (
        Row("OAS1_0001", "MR1", home / "orig.nii.gz", labels, ("seg35", "seg4"), "OASIS", ""),
        Row("OAS1_0001", "MR1", home / "norm.nii.gz", labels, ("seg35", "seg4"), "OASIS", ""),
        Row("OAS1_0061", "MR2", tmp_path / "OASIS_OAS1_0061_MR2" / "orig.nii.gz", (), (), "OASIS", ""),
    )


def test_oasis_from_freesurfer(tmp_path):
    tree(tmp_path, "disc1/OAS1_0002_MR1/mri/orig.mgz", "disc1/OAS1_0002_MR1/mri/aseg.mgz", "disc1/OAS1_0002_MR1/RAW/x_anon.img")
    (row,) = layouts.oasis1(tmp_path, dataset="O")
    assert short([row], tmp_path / "disc1/OAS1_0002_MR1/mri") == [("OAS1_0002", "MR1", "orig.mgz", "aseg.mgz")]
    assert (row.scheme, row.dataset) == (("freesurfer",), "O")


def test_the_raw_oasis_discs_are_refused(tmp_path):
    tree(tmp_path, "disc1/OAS1_0001_MR1/RAW/OAS1_0001_MR1_mpr-1_anon.img", "disc1/OAS1_0001_MR1/RAW/OAS1_0001_MR1_mpr-1_anon.hdr")
    with pytest.raises(InputError, match=r"OAS1_0001_MR1: Analyze .* left and right .* use neurite-OASIS"):
        layouts.oasis1(tmp_path)


def test_adni(tmp_path):
    scans = tmp_path / "2020-01-01" / "ADNI"
    name = "ADNI_002_S_0295_MR_MT1__GradWarp__N3m_Br_20081001114556321_S13408_I118671"
    tree(
        scans,
        f"002_S_0295/MT1__N3m/2006-04-18_08_20_30.0/S13408/{name}.nii",
        "003_S_0907/ADNI_003_S_0907_MR_MPR_I45108.nii.gz",
        "004_S_0001/ADNI_004_S_0001.nii.gz",
        "004_S_0001/._ADNI_004_S_0001.nii.gz",
        "template.nii.gz",
    )
    labels = tree(tmp_path / "labels", f"MALPEM-{name}.nii.gz", "MALPEM-ADNI_009_S_0009_MR.nii.gz")
    rows = layouts.adni(scans, labels)
    assert [(row.subject, row.session) for row in rows] == [("002_S_0295", "2006-04-18"), ("003_S_0907", "I45108"), ("004_S_0001", "")]
    assert [row.labels for row in rows] == [(labels / f"MALPEM-{name}.nii.gz",), (), ()]
    assert [row.scheme for row in rows] == [("malpem",), (), ()]
    assert {row.dataset for row in rows} == {"ADNI"}


def test_adni_labels_among_the_scans(tmp_path):
    tree(tmp_path, "ADNI_002_S_0295_MR.nii.gz", "seg/MALPEM-ADNI_002_S_0295_MR.nii.gz")
    expected = [("002_S_0295", "", "ADNI_002_S_0295_MR.nii.gz", "seg/MALPEM-ADNI_002_S_0295_MR.nii.gz")]
    assert short(layouts.adni(tmp_path), tmp_path) == short(layouts.adni(tmp_path, tmp_path / "seg"), tmp_path) == expected


def test_cc359(tmp_path):
    tree(
        tmp_path,
        "Original/CC0001_philips_15_55_M.nii.gz",
        "Original/CC0002_ge_3_61_F.nii.gz",
        "masks/CC0001_philips_15_55_M_staple.nii.gz",
        "masks/CC0002_ge_3_61_F_ss.nii.gz",
    )
    rows = layouts.cc359(tmp_path)
    assert short(rows, tmp_path) == [
        ("CC0001", "", "Original/CC0001_philips_15_55_M.nii.gz", "masks/CC0001_philips_15_55_M_staple.nii.gz"),
        ("CC0002", "", "Original/CC0002_ge_3_61_F.nii.gz", "masks/CC0002_ge_3_61_F_ss.nii.gz"),
    ]
    assert {(row.scheme, row.dataset) for row in rows} == {(("brain",), "CC359")}
    tree(tmp_path, "other/CC0001_philips_15_55_M_ss.nii.gz")
    with pytest.raises(InputError, match=r"CC0001\S+: 2 label files fit"):
        layouts.cc359(tmp_path)
    assert [len(row.labels) for row in layouts.cc359(tmp_path, tmp_path / "other")] == [1, 0]


def test_bids(tmp_path):
    root = tree(
        tmp_path / "study",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T1w.json",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_run-1_T1w.nii",
        "sub-02/ses-a/anat/sub-02_ses-a_run-2_T1w.nii",
        "derivatives/x/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
        "derivatives/x/sub-01/anat/sub-01_desc-aseg_dseg.nii.gz",
        "derivatives/x/sub-01/anat/sub-01_space-MNI152_dseg.nii.gz",
        "derivatives/x/sub-02/ses-a/anat/sub-02_ses-a_run-2_dseg.nii.gz",
    )
    rows = layouts.bids(root, root / "derivatives", scheme="freesurfer")
    assert short(rows, root) == [
        ("sub-01", "", "sub-01/anat/sub-01_T1w.nii.gz", "derivatives/x/sub-01/anat/sub-01_desc-aseg_dseg.nii.gz"),
        ("sub-02", "ses-a", "sub-02/ses-a/anat/sub-02_ses-a_run-1_T1w.nii"),
        (
            "sub-02",
            "ses-a",
            "sub-02/ses-a/anat/sub-02_ses-a_run-2_T1w.nii",
            "derivatives/x/sub-02/ses-a/anat/sub-02_ses-a_run-2_dseg.nii.gz",
        ),
    ]
    assert [row.scheme for row in rows] == [("freesurfer",), (), ("freesurfer",)]
    assert {row.dataset for row in rows} == {"study"}
    assert not any(row.labels for row in layouts.bids(root))
    tree(root, "derivatives/x/sub-01/anat/sub-01_dseg.nii.gz")
    with pytest.raises(InputError, match=r"sub-01_T1w\.nii\.gz: 2 label files fit \(sub-01_desc-aseg_dseg"):
        layouts.bids(root, root / "derivatives")


def test_nothing_in_hidden_folders_is_a_scan_and_links_to_nothing_are(tmp_path):
    """As DataLad has it: names are links to content in .git, of which some was not fetched."""
    root = tree(tmp_path / "set", ".git/annex/objects/aa/MD5E-0.nii.gz", "sub/.cache/x.nii", "seg/.git/y.nii", "seg/sub-01_seg.nii")
    (root / "sub-01.nii.gz").symlink_to(root / ".git/annex/objects/aa/MD5E-0.nii.gz")
    (root / "sub-02.nii.gz").symlink_to(root / ".git/annex/objects/bb/none.nii.gz")
    os.mkfifo(root / "pipe.nii")
    rows = layouts.folder(root, root / "seg")
    assert short(rows, root) == [("sub-01", "", "sub-01.nii.gz", "seg/sub-01_seg.nii"), ("sub-02", "", "sub-02.nii.gz")]
    hidden = (tmp_path / "set").rename(tmp_path / ".set")  # what is given itself may be hidden
    assert len(layouts.folder(hidden)) == 3


def test_contrast_enhanced_scans_are_taken_where_asked_for(tmp_path):
    root = tree(tmp_path / "study", "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_ce-gd_T1w.nii.gz")
    assert [row.image.name for row in layouts.bids(root)] == ["sub-1_T1w.nii.gz"]
    assert [row.image.name for row in layouts.bids(root, contrast_enhanced=True)] == ["sub-1_T1w.nii.gz", "sub-1_ce-gd_T1w.nii.gz"]
    assert layouts.enhanced(root) == [root / "sub-1/anat/sub-1_ce-gd_T1w.nii.gz"]


def test_folder(tmp_path):
    root = tree(tmp_path / "scans", "a1.nii.gz", "a10.nii", "site/a1_T1.mgz", "notes.txt", ".a2.nii.gz")
    labels = tree(tmp_path / "scans/seg", "a1_seg.nii.gz", "a10-seg.nii.gz", "a1_T1_seg.nii.gz", "a11.nii.gz")
    rows = layouts.folder(root, labels, scheme="s")
    assert short(rows, root) == [
        ("a1", "", "a1.nii.gz", "seg/a1_seg.nii.gz"),
        ("a10", "", "a10.nii", "seg/a10-seg.nii.gz"),
        ("a1_T1", "", "site/a1_T1.mgz", "seg/a1_T1_seg.nii.gz"),
    ]
    assert {(row.scheme, row.dataset) for row in rows} == {(("s",), "scans")}
    assert [row.subject for row in layouts.folder(root, labels, subject_regex=r"a(\d+)")] == ["1", "10", "1"]
    assert [row.subject for row in layouts.folder(root, labels, subject_regex=r"a\d", dataset="x")] == ["a1", "a1", "a1"]
    for regex, fault in ((r"P(\d+)", "fits nowhere"), (r"\d(", "correct the expression")):
        with pytest.raises(InputError, match=re.escape(f"--subject-regex '{regex}'") + f".*{fault}"):
            layouts.folder(root, labels, subject_regex=regex)
    with pytest.raises(InputError, match=r"a1\.nii\.gz: --subject-regex 'site/\(\.\*\)_' fits nowhere"):
        layouts.folder(root, labels, subject_regex="site/(.*)_")
    with pytest.raises(InputError, match="correct the expression"):
        layouts.folder(root, labels, subject_regex="(")
    tree(labels, "a1.nii.gz")
    with pytest.raises(InputError, match=r"a1\.nii\.gz: 2 label files fit \(a1\.nii\.gz, a1_seg\.nii\.gz\)"):
        layouts.folder(root, labels)


def test_a_label_is_not_guessed_for_scans_of_one_name(tmp_path):
    root = tree(tmp_path / "scans", "p1/T1.nii.gz", "p2/T1.nii.gz")
    assert [row.subject for row in layouts.folder(root, subject_regex=r"p\d")] == ["p1", "p2"]
    with pytest.raises(InputError, match="another scan is called T1 too"):
        layouts.folder(root, tree(tmp_path / "seg", "T1_seg.nii.gz"), subject_regex=r"p\d")


def test_names_that_do_not_tell_leave_it_to_the_subject(tmp_path):
    root = tree(tmp_path / "scans", "sub-01_T1w.nii.gz", "sub-02/T1.nii.gz", "sub-03/T1.nii.gz", "sub-04/T1.nii.gz", "sub-5_T1w.nii.gz")
    files = ("sub-01_seg.nii.gz", "sub-02/T1_seg.nii.gz", "sub-03/aseg.mgz", "sub-06_seg.nii.gz", "phantom.nii.gz", "sub-5_T1w_seg.nii.gz")
    labels = tree(tmp_path / "seg", *files, "sub-5_old.nii.gz")
    rows = layouts.folder(root, labels, subject_regex=r"(sub-\d+)")
    assert short(rows, tmp_path) == [
        ("sub-01", "", "scans/sub-01_T1w.nii.gz", "seg/sub-01_seg.nii.gz"),
        ("sub-02", "", "scans/sub-02/T1.nii.gz", "seg/sub-02/T1_seg.nii.gz"),
        ("sub-03", "", "scans/sub-03/T1.nii.gz", "seg/sub-03/aseg.mgz"),
        ("sub-04", "", "scans/sub-04/T1.nii.gz"),
        ("sub-5", "", "scans/sub-5_T1w.nii.gz", "seg/sub-5_T1w_seg.nii.gz"),  # its name comes first
    ]


def test_a_name_does_not_count_where_the_path_tells_of_somebody_else(tmp_path):
    root = tree(tmp_path / "scans", "p1/T1.nii.gz", "p2/brain.nii.gz")
    labels = tree(tmp_path / "seg", "p2/T1_seg.nii.gz")
    assert [len(row.labels) for row in layouts.folder(root, labels)] == [1, 0]
    assert [len(row.labels) for row in layouts.folder(root, labels, subject_regex=r"p\d")] == [0, 1]
    # An expression that suits the scans only does not undo what names tell.
    root, labels = tree(tmp_path / "b", "x.nii.gz"), tree(tmp_path / "c", "x_seg.nii.gz")
    assert [len(row.labels) for row in layouts.folder(root, labels, subject_regex=r"(.*)\.nii")] == [1]


@pytest.mark.parametrize(
    ("scans", "labels", "reason"),
    [
        (
            "s1_a s1_b",
            "s1_seg",
            r"s1_seg\.nii: is of subject 's1', who has 2 scans \(s1_a\.nii, s1_b\.nii\), and its name .*; let it begin",
        ),
        ("s1_a s1_b", "s1_a_seg s1_x", r"s1_x\.nii: is of subject 's1', who has 2 scans"),
        ("s1_a", "s1_x s1_y", r"s1_a\.nii: 2 label files fit \(s1_x\.nii, s1_y\.nii\); give a label folder with one kind only"),
        (
            "s1/T1 s2/T1",
            "s1/T1 T1_seg",
            r"s1/T1\.nii: another scan is called T1 too, so the label .*/T1_seg\.nii may be either's; give each",
        ),
    ],
)
def test_a_subject_that_does_not_tell_is_refused(tmp_path, scans, labels, reason):
    root, labels = (tree(tmp_path / side, *(f"{name}.nii" for name in names.split())) for side, names in (("t1", scans), ("seg", labels)))
    with pytest.raises(InputError, match=reason) as refusal:
        layouts.folder(root, labels, subject_regex=r"s\d")
    assert "\n" not in str(refusal.value)


def test_labels_among_the_scans_are_told_by_their_own_folder(tmp_path):
    root = tree(tmp_path / "t1", "a.nii", "seg/a.nii")
    around = Path(os.path.relpath(root / "seg", Path.cwd())) / ".." / "seg"
    assert short(layouts.folder(root, around), tmp_path) == [("a", "", "t1/a.nii", "t1/seg/a.nii")]
    for labels in (root, tmp_path):
        with pytest.raises(InputError, match="holds the scans as well; move the label maps into a folder of their own"):
            layouts.folder(root, labels)
    tree(root, "002_S_0295.nii", "MALPEM-002_S_0295.nii")
    assert layouts.adni(root, root) == layouts.adni(root)


def test_an_expression_whose_group_took_no_part_finds_nothing(tmp_path):
    find = layouts.finder("(a)?b")
    assert (find(Path("x/ab")), find(Path("b")), find(Path("c"))) == ("a", "", "")
    with pytest.raises(InputError, match="fits nowhere in b"):
        layouts.folder(tree(tmp_path, "b.nii"), subject_regex="(a)?b")


def test_a_few_names():
    assert layouts.first_few("abc") == "a, b, c" and layouts.first_few(range(5)) == "0, 1, 2 and 2 more" and layouts.first_few([]) == ""


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_nothing_found_says_what_was_looked_for(tmp_path, layout):
    with pytest.raises(InputError, match=rf"{tmp_path}: no scans found; looked for .*(nii|mgz|NIfTI)"):
        layouts.LAYOUTS[layout](tree(tmp_path, "readme.txt"))
    with pytest.raises(InputError, match="no such folder"):
        layouts.LAYOUTS[layout](tmp_path / "none")
    with pytest.raises(InputError, match="is a file, not a folder"):
        layouts.LAYOUTS[layout](tmp_path / "readme.txt")


@pytest.mark.parametrize(
    ("layout", "scan"),
    [
        ("adni", "002_S_0295.nii"),
        ("cc359", "CC0001_ge_3_55_M.nii"),
        ("bids", "sub-1/anat/sub-1_T1w.nii"),
        ("folder", "a.nii"),
    ],
)
def test_a_label_folder_that_fits_no_scan_is_refused(tmp_path, layout, scan):
    root, labels = tree(tmp_path / "scans", scan), tree(tmp_path / "seg", "other.nii")
    assert len(layouts.LAYOUTS[layout](root)) == 1
    with pytest.raises(InputError, match=rf"{labels}: no labels found"):
        layouts.LAYOUTS[layout](root, labels)
