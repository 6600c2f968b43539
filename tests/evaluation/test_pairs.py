"""Which files belong together: by name, by an expression, by a list; and that nothing is guessed."""

from pathlib import Path

import pytest

from brainseg_jax.core.errors import InputError
from brainseg_jax.evaluation.pairs import Pair, pair, read_pairs


@pytest.fixture
def folders(tmp_path):
    """`folders(predictions, references)`: two folders with these files, separated by spaces, "~" standing for .nii.gz."""

    def make(*sides):
        for folder, names in zip(("p", "r"), sides, strict=True):
            for name in names.replace("~", ".nii.gz").split():
                path = tmp_path / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        return tmp_path / "p", tmp_path / "r"

    return make


def named(found):
    pairs, alone = found
    return [(one.subject, one.prediction.name, one.reference.name) for one in pairs], [path.name for path in alone]


@pytest.mark.parametrize(
    ("predictions", "references", "pairs", "alone"),
    [
        ("b~ a~", "a~ b.mgz", ["a a~ a~", "b b~ b.mgz"], ""),
        ("a_seg~ a.b_seg~", "a~ a.b.nii", ["a a_seg~ a~", "a.b a.b_seg~ a.b.nii"], ""),
        ("a~ b~", "a_DLMUSE~ b~", ["a a~ a_DLMUSE~", "b b~ b~"], ""),
        ("s1/aseg.mgz s2/aseg.mgz", "s1/aseg.mgz s2~", ["s1/aseg aseg.mgz aseg.mgz", "s2 aseg.mgz s2~"], ""),
        ("s1_seg~ s10_seg~", "s1~ s10~", ["s1 s1_seg~ s1~", "s10 s10_seg~ s10~"], ""),
        ("s1_run2_seg~ s1_seg~", "s1~ s1_run2~", ["s1 s1_seg~ s1~", "s1_run2 s1_run2_seg~ s1_run2~"], ""),
        ("s10~ a~", "s1~ a~ z~ .a_hidden~ a_notes.txt", ["a a~ a~"], "s10~ s1~ z~"),
    ],
)
def test_names_that_go_together(folders, predictions, references, pairs, alone):
    expected = [tuple(line.replace("~", ".nii.gz").split()) for line in pairs]
    assert named(pair(*folders(predictions, references))) == (expected, alone.replace("~", ".nii.gz").split())


def test_an_expression_tells_subjects_and_which_files_count(folders):
    sides = folders("s1/mri/aseg.mgz s1/mri/brain.mgz s2/mri/aseg.mgz", "s1_dseg~ s2_dseg~ s2_T1w~ s3_dseg~")
    found = named(pair(*sides, r"(s\d+)(?:/mri/aseg|_dseg)"))
    assert found == ([("s1", "aseg.mgz", "s1_dseg.nii.gz"), ("s2", "aseg.mgz", "s2_dseg.nii.gz")], ["s3_dseg.nii.gz"])


def test_without_a_group_all_that_is_found_counts_and_is_exact(folders):
    found = named(pair(*folders("b1~ b1_x~ notes~", "b1~ b10~"), r"b\d+(?:_x)?"))
    assert found == ([("b1", "b1.nii.gz", "b1.nii.gz")], ["b1_x.nii.gz", "b10.nii.gz"])


def test_two_files(tmp_path):
    for name in ("p.nii", "s1.nii.gz"):
        (tmp_path / name).touch()
    found = pair(tmp_path / "p.nii", tmp_path / "s1.nii.gz")
    assert found == ([Pair("s1", tmp_path / "p.nii", tmp_path / "s1.nii.gz")], [])


@pytest.mark.parametrize(
    ("predictions", "references", "regex", "reason"),
    [
        ("a_x~ a_y~", "a~", "", r"r/a\.nii\.gz: a_x and a_y both fit its name; tell subjects"),
        ("a~", "a_x~ a_y~", "", r"p/a\.nii\.gz: a_x and a_y both fit its name"),
        ("a~ a_seg~", "a~", "", r"r/a\.nii\.gz: a and a_seg both fit its name"),
        ("a~ a.nii", "a~", "", r"a\.nii\.gz and .*a\.nii are both of 'a'"),
        ("s1_x~ s1_y~", "s1~", r"s\d", r"s1_y\.nii\.gz and .*s1_x\.nii\.gz are both of 's1'"),
        ("a~", "b~", "", "no two names go together; tell subjects with --subject-regex, or give a list"),
        ("a~", "b.txt", "", r"r: no files ending in \.nii, .*; check the folder"),
        ("a~", "b~", "c", "p: no files .* in whose path 'c' is found; check the folder"),
        ("a~", "b~", r"\d+", r"p: no files .* in whose path '\\d\+' is found"),
        ("a~", "a~", "(", r"--subject-regex '\(': .*; correct the expression"),
    ],
)
def test_what_is_not_clear_is_refused(folders, predictions, references, regex, reason):
    with pytest.raises(InputError, match=reason) as refusal:
        pair(*folders(predictions, references), regex)
    assert "\n" not in str(refusal.value)


def test_a_file_and_a_folder_or_nothing_are_refused(folders):
    predictions, references = folders("a~", "a~")
    with pytest.raises(InputError, match="are a file and a folder; give two"):
        pair(predictions / "a.nii.gz", references)
    with pytest.raises(InputError, match="none: no such file or folder"):
        pair(predictions, references / "none")


@pytest.mark.parametrize("text", ["subject,pred,ref\n1,x.nii,/r/y.mgz\n", "ref\tsubject\tpred\r\n/r/y.mgz\t1\tx.nii\r\n\r\n"])
def test_a_list(tmp_path, text):
    (tmp_path / "list").write_text(text)
    assert read_pairs(tmp_path / "list") == [Pair("1", tmp_path / "x.nii", Path("/r/y.mgz"))]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the first line is empty; it names the columns, of subject, pred, ref"),
        ("subject,prediction,ref\n", "column 'prediction' is unknown; known are subject, pred, ref"),
        ("subject,pred,ref\n", "no pairs; add"),
        ("subject,pred,ref\n1,x.nii\n", "line 2: a cell each is expected"),
        ("subject,pred,ref\n1,x.nii,\n", "line 2: a cell each is expected"),
        ("subject,pred\n1,x.nii\n", "column 'ref' is missing"),
        ("subject,pred,ref\n1,x.nii,y.nii,z\n", "line 2: 4 cells for 3 columns; quote"),
        ("subject,pred,ref\n1,x.nii,y.nii\n1,a.nii,b.nii\n", "subject '1' is listed twice"),
        ("subject,pred,ref\né,x.nii,y.nii\n", "is not UTF-8 text"),
        ("subject,pred,ref\n1,x\0.nii,y.nii\n", "holds a zero byte"),
    ],
)
def test_a_bad_list_is_refused(tmp_path, text, reason):
    path = tmp_path / "list.csv"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=reason) as refusal:
        read_pairs(path)
    assert str(refusal.value).startswith(f"{path}: ")
