"""What a path stands for, and where each scan's files go: names by hand, and what would be overwritten."""

from pathlib import Path

import pytest

from brainseg_jax.core.errors import InputError
from brainseg_jax.data.case_files import find, output_places, record_file, record_files, share, stem, tasks
from brainseg_jax.data.manifest import Row


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(cases, out):
    return [(c.row.subject, c.row.session, *(path.relative_to(out).as_posix() for path in c[1:4])) for c in cases]


@pytest.mark.parametrize(("name", "ending"), [("a.b.nii.gz", ".nii.gz"), ("a.b.nii", ".nii.gz"), ("a.b.mgz", ".mgz"), ("a.b.mgh", ".mgz")])
def test_one_scan(tmp_path, name, ending):
    source = find(touch(tmp_path, name) / name)
    assert (source.kind, source.rows) == ("scan", (Row("a.b", "", tmp_path / name, (), (), "", ""),))
    (case,) = output_places(source, tmp_path / "out", "four")
    assert names([case], tmp_path / "out") == [("a.b", "", f"a.b_seg{ending}", "a.b_post.nii.gz", "seg_labels.tsv")]
    assert case.sidecar.name == "a.b_seg.json"
    (case,) = output_places(source, tmp_path / "x" / "mine.nii", "four")
    assert names([case], tmp_path) == [("a.b", "", "x/mine.nii", "x/mine_post.nii.gz", "x/mine.tsv")]
    assert case.sidecar == tmp_path / "x" / "mine.json"


def test_further_images_go_with_a_scan_or_lie_in_a_folder_of_the_same_names(tmp_path):
    touch(tmp_path, "t1/a.nii", "t1/deep/b.nii", "flair/a.nii", "t1/t2/a.nii", "x.nii", "y.nii", "z.nii")
    x, y, z = (tmp_path / f"{name}.nii" for name in "xyz")
    assert find(x, [y, z]).rows[0].images == (x, y, z)
    rows = find(tmp_path / "t1", [tmp_path / "flair", tmp_path / "t1" / "t2"]).rows
    assert [[path.relative_to(tmp_path).as_posix() for path in row.images] for row in rows] == [
        ["t1/a.nii", "flair/a.nii", "t1/t2/a.nii"],
        ["t1/deep/b.nii", "flair/deep/b.nii", "t1/t2/deep/b.nii"],
    ]
    with pytest.raises(InputError, match=r"y\.nii would be written over a scan"):
        output_places(find(x, [y]), y, "four")


@pytest.mark.parametrize(
    ("given", "also", "message"),
    [
        ("x.nii", ["none.nii"], "--also .*none.nii: no such file; beside --i .*x.nii it has to be one"),
        ("x.nii", ["t1"], "t1: no such file"),
        ("x.nii", ["x.nii"], "x.nii: is given twice"),
        ("x.nii", ["y.nii", "y.nii"], "y.nii: is given twice"),
        ("t1", ["x.nii"], "x.nii: no such folder"),
        ("t1", ["."], "no scans found outside --also"),
        ("list.csv", ["x.nii"], "goes with a scan or a folder; give a list that names a subject's images, separated by ';'"),
    ],
)
def test_further_images_that_do_not_fit_are_refused(tmp_path, given, also, message):
    touch(tmp_path, "t1/a.nii", "x.nii", "y.nii")
    (tmp_path / "list.csv").write_text("subject,image\n1,x.nii\n")
    with pytest.raises(InputError, match=message):
        find(tmp_path / given, [tmp_path / name for name in also])


def test_a_folder_becomes_its_own_tree_again(tmp_path):
    touch(tmp_path, "in/a.nii.gz", "in/deep/er/a.mgz", "in/.hidden.nii", "in/notes.txt", "in/b.nii")
    cases = output_places(find(tmp_path / "in"), tmp_path / "out", "four")
    assert names(cases, tmp_path / "out") == [
        ("a", "", "a_seg.nii.gz", "a_post.nii.gz", "seg_labels.tsv"),
        ("b", "", "b_seg.nii.gz", "b_post.nii.gz", "seg_labels.tsv"),
        ("a", "", "deep/er/a_seg.mgz", "deep/er/a_post.nii.gz", "seg_labels.tsv"),
    ]


@pytest.mark.parametrize("out", [".", "sub/.."])
def test_what_was_written_beside_the_scans_is_no_scan(tmp_path, out):
    touch(tmp_path, "a.nii.gz", "d/b_seg.nii.gz")
    first = output_places(find(tmp_path), tmp_path / out, "four")
    assert [c.row.subject for c in first] == ["a", "b_seg"]
    touch(tmp_path, *(path.name if path.parent == tmp_path else f"d/{path.name}" for c in first for path in (c.labels, c.soft)))
    assert output_places(find(tmp_path), tmp_path / out, "four") == first


def test_nor_is_what_lies_in_the_output_folder(tmp_path):
    touch(tmp_path, "a.nii.gz", "out/gone_seg.nii.gz", "outer/b.nii")
    assert [c.row.subject for c in output_places(find(tmp_path), tmp_path / "out", "four")] == ["a", "b"]
    with pytest.raises(InputError, match=r"no scans found outside .*out; give another --o"):
        output_places(find(touch(tmp_path / "x", "out/a.nii")), tmp_path / "x" / "out", "four")


def test_a_list(tmp_path):
    text = "dataset,subject,session,image\n,bert,,bert/mri/orig.mgz\n,p 1,s1,p1.nii\n,p 1,s2,p1.nii.gz\nA B,X1,,X1_T1.nii.gz\n"
    (tmp_path / "list.csv").write_text(text)
    source = find(tmp_path / "list.csv")
    assert source.kind == "list"
    assert names(output_places(source, tmp_path / "o", "four"), tmp_path / "o") == [
        ("bert", "", "bert_orig_seg.mgz", "bert_orig_post.nii.gz", "seg_labels.tsv"),
        ("p 1", "s1", "p-1_s1_p1_seg.nii.gz", "p-1_s1_p1_post.nii.gz", "seg_labels.tsv"),
        ("p 1", "s2", "p-1_s2_p1_seg.nii.gz", "p-1_s2_p1_post.nii.gz", "seg_labels.tsv"),
        ("X1", "", "A-B/X1_T1_seg.nii.gz", "A-B/X1_T1_post.nii.gz", "seg_labels.tsv"),
    ]


@pytest.mark.parametrize("described", [False, True])
def test_bids(tmp_path, described):
    """Entities in the specification's order: seg after all of the image's own, before res and desc."""
    raw = touch(tmp_path / "raw", *["dataset_description.json"] * described, "sub-01/ses-a/anat/sub-01_ses-a_run-2_T1w.nii.gz")
    touch(raw, "sub-02/anat/sub-02_acq-x_res-1_desc-clean_T1w.nii", "sub-02/anat/sub-02_T2w.nii.gz", "sub-02/func/sub-02_bold.nii.gz")
    source = find(raw)
    assert source.kind == "bids"
    out = raw / "derivatives" / "us"
    assert names(output_places(source, out, "my-four_labels"), out) == [
        (
            "sub-01",
            "ses-a",
            "sub-01/ses-a/anat/sub-01_ses-a_run-2_seg-myfourlabels_dseg.nii.gz",
            "sub-01/ses-a/anat/sub-01_ses-a_run-2_seg-myfourlabels_probseg.nii.gz",
            "sub-01/ses-a/anat/sub-01_ses-a_run-2_seg-myfourlabels_dseg.tsv",
        ),
        (
            "sub-02",
            "",
            "sub-02/anat/sub-02_acq-x_seg-myfourlabels_res-1_desc-clean_dseg.nii.gz",
            "sub-02/anat/sub-02_acq-x_seg-myfourlabels_res-1_desc-clean_probseg.nii.gz",
            "sub-02/anat/sub-02_acq-x_seg-myfourlabels_res-1_desc-clean_dseg.tsv",
        ),
    ]
    with pytest.raises(InputError, match=r"is the data set itself; give a folder for derivatives, e\.g\. "):
        output_places(source, raw, "four")


def test_a_session_that_is_first_found_below_a_later_subject(tmp_path):
    raw = touch(tmp_path, "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz", "sub-01/func/x.txt")
    assert [row.subject for row in find(raw).rows] == ["sub-02"]


@pytest.mark.parametrize(
    ("files", "given", "out", "reason"),
    [
        ((), "none", "o", "none: no such file or folder"),
        (("a.dcm",), "a.dcm", "o", r"a\.dcm: give a scan \(\.nii, .*a folder, a list"),
        (("in/a.txt",), "in", "o", "no scans found"),
        (("in/dataset_description.json",), "in", "o", "no scans found; looked for sub-"),
        (("in/a.nii",), "in", "o.nii.gz", "is the name of one file, and --i may hold many"),
        (("in/a.nii", "o"), "in", "o", "o: is a file; give a folder"),
        (("a.nii",), "a.nii", "a.nii", "would be written over a scan"),
    ],
)
def test_refused_in_one_line(tmp_path, files, given, out, reason):
    touch(tmp_path, *files)
    with pytest.raises(InputError, match=reason) as refusal:
        output_places(find(tmp_path / given), tmp_path / out, "four")
    assert "\n" not in str(refusal.value)


def test_a_scan_whose_content_was_not_fetched_is_called_that(tmp_path):
    (tmp_path / "a.nii.gz").symlink_to(".git/annex/objects/aa/bb/MD5E.nii.gz")
    with pytest.raises(InputError, match=r"^--i .*a\.nii\.gz: its content was not fetched.* datalad get"):
        find(tmp_path / "a.nii.gz")


def test_two_scans_of_one_label_map_have_a_fault_and_the_others_none(tmp_path):
    touch(tmp_path, "in/a.nii", "in/a.nii.gz", "in/b.nii", "bids/sub-1/anat/sub-1_T1w.nii", "bids/sub-1/anat/sub-1_T1w.nii.gz")
    (tmp_path / "list.csv").write_text("subject,image\nx y,in/a.nii\nx-y,in/a.nii.gz\nz,in/b.nii\n")
    a, b = str(tmp_path / "in" / "a.nii"), str(tmp_path / "in" / "a.nii.gz")
    for given in ("in", "list.csv"):
        cases = output_places(find(tmp_path / given), tmp_path / "out", "four")
        assert [case.fault for case in cases] == [
            f"{a}: {b} would have the same label map; rename or remove one of the two",
            f"{b}: {a} would have the same label map; rename or remove one of the two",
            "",
        ]
    # Before its network is known, the name of a BIDS data set's label map is not.
    cases = output_places(find(tmp_path / "bids"), tmp_path / "out", "")
    assert all(case.fault and "seg-" not in case.fault for case in cases)


def test_nothing_of_a_list_is_written_outside_the_output_folder(tmp_path):
    touch(tmp_path, "a.nii", "b.nii")
    text = "subject,session,dataset,image\n../../x,/etc,../..,a.nii\n..\\y,..z,.../,b.nii\n"
    (tmp_path / "list.csv").write_text(text)
    cases = output_places(find(tmp_path / "list.csv"), tmp_path / "o", "four")
    assert [case.labels.relative_to(tmp_path / "o").as_posix() for case in cases] == [
        "-../-..-x_-etc_a_seg.nii.gz",
        "-/-y_..z_b_seg.nii.gz",
    ]
    for case in cases:
        assert all((tmp_path / "o").resolve() in path.resolve().parents for path in case[1:4])
    (tmp_path / "list.csv").write_text("subject,dataset,image\nx,..,a.nii\n")
    with pytest.raises(InputError, match=r"list\.csv: '\.\.' of .* is no name"):
        find(tmp_path / "list.csv")


@pytest.mark.parametrize("letter", ["x", "é", "脳"])
def test_long_names_fit_a_file_system(tmp_path, letter):
    name = letter * (240 // len(letter.encode()))
    touch(tmp_path, f"in/{name}1.nii.gz", f"in/{name}2.nii.gz", f"raw/sub-1/anat/sub-1_acq-{'x' * 230}_T1w.nii.gz")
    (tmp_path / "list.csv").write_text(f"subject,dataset,image\n{letter * 300},{letter * 300},in/{name}1.nii.gz\n")
    for given in ("in", f"in/{name}1.nii.gz", "list.csv", "raw"):
        cases = output_places(find(tmp_path / given), tmp_path / "out", "four")
        for case in cases:
            for path in (*case[1:4], case.sidecar, record_file(case.sidecar, tmp_path / "out")):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            assert not case.fault


def test_contrast_enhanced_scans_are_left_out_and_counted_unless_asked_for(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_ce-gadolinium_T1w.nii", "sub-2/anat/sub-2_ce-gd_T1w.nii")
    source = find(tmp_path)
    assert [row.image.name for row in source.rows] == ["sub-1_T1w.nii"] and len(source.left_out) == 2
    source = find(tmp_path, contrast_enhanced=True)
    assert len(source.rows) == 3 and source.left_out == ()
    (tmp_path / "sub-1/anat/sub-1_T1w.nii").unlink()
    with pytest.raises(
        InputError, match=r"no scans found; .*the 2 that are there are contrast-enhanced, and --contrast-enhanced takes them"
    ):
        find(tmp_path)


def test_parts_are_all_of_it_and_know_nothing_of_each_other(tmp_path):
    touch(tmp_path, *(f"s{i}/T1.nii.gz" for i in range(60)))
    cases = output_places(find(tmp_path), tmp_path / "o", "four")
    parts = [share(cases, tmp_path / "o", i, 4) for i in (1, 2, 3, 4)]
    assert sorted(case for part in parts for case in part) == sorted(cases) and min(map(len, parts)) > 5
    assert share(cases[20:], tmp_path / "o", 2, 4) == tuple(case for case in parts[1] if case in cases[20:])
    moved = output_places(find(tmp_path), tmp_path / "elsewhere", "four")
    assert [c.row for c in share(moved, tmp_path / "elsewhere", 2, 4)] == [c.row for c in parts[1]]
    assert share(cases, tmp_path / "o", 1, 1) == cases


def test_what_a_page_shows_lies_in_a_folder_of_its_own(tmp_path):
    touch(tmp_path, "in/a.nii.gz", "in/deep/a.mgz", "in/qc/a.nii")
    out = tmp_path / "out"
    cases = output_places(find(tmp_path / "in"), out, "four")
    found = [record_file(case.sidecar, out) for case in cases]
    assert [path.relative_to(out).as_posix() for path in found] == ["qc/a_seg_qc.json", "qc/deep/a_seg_qc.json", "qc/qc/a_seg_qc.json"]
    assert list(record_files(out)) == []
    touch(out, *(path.relative_to(out).as_posix() for path in [*found, *(case.sidecar for case in cases)]))
    assert list(record_files(out)) == list(zip(found, [case.sidecar for case in cases], strict=True))


def test_the_task_of_earlier_runs_is_in_bids_names(tmp_path):
    raw, out = touch(tmp_path / "raw", "sub-1/anat/sub-1_T1w.nii.gz"), tmp_path / "out"
    assert tasks(find(raw), out) == [""]
    for task in ("my-four", "skull"):
        touch(out, *(case.sidecar.relative_to(out).as_posix() for case in output_places(find(raw), out, task)))
    assert tasks(find(raw), out) == ["", "myfour", "skull"]
    assert tasks(find(raw / "sub-1"), out) == [""]


def test_stems():
    assert [stem(Path(name)) for name in ("a.nii.gz", "a.nii", "a.mgz", "a.b.mgh")] == ["a", "a", "a", "a.b"]


def test_labels_only_of_a_manifest_are_nothing_to_segment(tmp_path):
    (tmp_path / "people.tsv").write_text("subject,image,labels,scheme,source\n1,x.nii,,,\n2,,l.nii,seg35,synth\n")
    assert [row.subject for row in find(tmp_path / "people.tsv").rows] == ["1"]
    (tmp_path / "people.tsv").write_text("subject,image,labels,scheme,source\n2,,l.nii,seg35,synth\n")
    with pytest.raises(InputError, match=r"--i .*people\.tsv: lists labels only, and no image to segment; add scans"):
        find(tmp_path / "people.tsv")


def test_what_predict_wrote_is_no_scan(tmp_path):
    """A label map and soft maps with their sidecars; one without is somebody's scan, whatever its name."""
    for name in ("a.nii.gz", "a_seg.nii.gz", "a_post.nii.gz", "b_seg.nii.gz"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("a_seg.json", "a_post.json"):
        (tmp_path / name).write_text('{"Sources": ["a.nii.gz"], "SpatialReference": "a.nii.gz"}')
    assert [row.image.name for row in find(tmp_path).rows] == ["a.nii.gz", "b_seg.nii.gz"]
    with pytest.raises(InputError, match=r"a_seg\.nii\.gz: is a label map that this command wrote, .*; give the scan"):
        find(tmp_path / "a_seg.nii.gz")
