"""Manifests and splits: what is read, what is refused by name, and that no person stands on two sides."""

import hashlib
import random
from pathlib import Path

import pytest

from brainseg_jax.core.errors import InputError
from brainseg_jax.data.manifest import FRACTIONS, Row, apply_splits, assign_splits, read_manifest, write_manifest, write_splits


def people(n, scans=1, dataset="A"):
    return [
        Row(f"p{i:03}", f"s{j}", Path(f"/scans/{dataset}/p{i:03}_{j}.nii.gz"), (), (), dataset, "") for i in range(n) for j in range(scans)
    ]


def sizes(rows):
    return [len({row.person for row in rows if row.split == split}) for split in ("train", "val", "test")]


def manifest(folder, text, encoding="utf-8"):
    path = folder / "people.csv"
    path.write_bytes(text.encode(encoding))
    return path


FULL = Row("1", "a", Path("/d/x, 1.nii.gz"), (Path("/d/l35.nii.gz"), Path("/elsewhere/l4.nii.gz")), ("seg35", "seg4"), "OASIS", "train")


@pytest.mark.parametrize(
    "text",
    [
        "subject,session,image,labels,scheme,dataset,split\n1,a,{d}/x.nii.gz,l.nii.gz;../m.nii.gz,seg35;seg4,OASIS,train\n",
        "subject\tsession\timage\tlabels\tscheme\tdataset\tsplit\n1\ta\tx.nii.gz\tl.nii.gz;../m.nii.gz\tseg35;seg4\tOASIS\ttrain",
        "\ufeffsplit,subject,session,image,labels,scheme,dataset\r\ntrain,1,a,x.nii.gz,l.nii.gz; ../m.nii.gz ,seg35;seg4,OASIS\r\n,\r\n",
        '"subject", session ,image,labels,scheme,dataset,split\n1,"a","./x.nii.gz","l.nii.gz;../m.nii.gz","seg35;seg4","OASIS",train\n',
    ],
    ids=["csv", "tsv", "BOM CRLF blank lines", "quotes"],
)
def test_reads(tmp_path, text):
    (row,) = read_manifest(manifest(tmp_path, text.replace("{d}", str(tmp_path))))
    labels = (tmp_path / "l.nii.gz", tmp_path.parent / "m.nii.gz")
    assert row == Row("1", "a", tmp_path / "x.nii.gz", labels, ("seg35", "seg4"), "OASIS", "train")


def test_only_subject_and_image_are_required_and_quotes_hold_commas(tmp_path):
    rows = read_manifest(manifest(tmp_path, 'image,subject\n"x, 1.nii.gz",é\ny.nii.gz,"2"\n'))
    assert rows[0] == Row("é", "", tmp_path / "x, 1.nii.gz", (), (), "", "")
    assert rows[1].subject == "2"


def test_paths_are_taken_from_the_manifest_not_from_here(tmp_path, monkeypatch):
    path = manifest(tmp_path, "subject,image\n1,x.nii.gz\n")
    monkeypatch.chdir(tmp_path)
    assert read_manifest(path.name)[0].image == tmp_path / "x.nii.gz"


def test_a_scheme_without_labels_says_nothing_and_labels_may_lack_a_scheme(tmp_path):
    rows = read_manifest(manifest(tmp_path, "subject,image,labels,scheme\n1,x.nii,,seg35\n2,y.nii,l.nii,\n"))
    assert [row.scheme for row in rows] == [(), ()]
    assert rows[1].labels == (tmp_path / "l.nii",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the first line is empty"),
        ("\nsubject,image\n", "the first line is empty"),
        ("subject,image\n", "no scans"),
        ("subject,image\n,\n\n", "no scans"),
        ("subject,session\n1,a\n", "column 'image' is missing"),
        ("subject,image,lables\n1,x.nii,l.nii\n", r"column 'lables' is unknown \(did you mean 'labels'\?\); known are subject, session"),
        ("Subject,image\n1,x.nii\n", r"column 'Subject' is unknown \(did you mean 'subject'"),
        ("subject;image\n1;x.nii\n", "column 'subject;image' is unknown"),
        ("subject,image,image\n1,x.nii,y.nii\n", "column 'image' stands twice"),
        ("subject,image\n1,x.nii\n,y.nii\n", "line 3: subject is empty"),
        ("subject,image\n1,\n", "line 2: image is empty"),
        ("subject,image\n1,x.nii,oops\n", "line 2: 3 cells for 2 columns"),
        ("subject,image,labels\n1,x.nii,a.nii;;b.nii\n", "line 2: labels is empty"),
        ("subject,image,labels,scheme\n1,x.nii,a.nii;b.nii,seg35\n", "line 2: 2 labels but 1 schemes"),
        ('subject,image\n1,"x.nii\n2,y.nii\n', "check the quotes"),
        ("subject,image\n1,x.nii\n2,y\0.nii\n", "line 3: holds a zero byte"),
        ("subject,image\n1,x.nii\n2,./x.nii\n", "x.nii is listed twice"),
        ("subject,image,dataset\n1,x.nii,..\n", r"'\.\.' of .*x\.nii is no name of a subject, session or data set; give it another"),
        ("subject,image\n.,x.nii\n", r"'\.' of .*x\.nii is no name"),
        ("subject,image\n1,x.nii;\n", "line 2: image is empty"),
        ("subject,image\n1,x.nii;./x.nii\n", "x.nii is listed twice"),
        ("subject,image\n1,x.nii;f.nii\n2,f.nii;y.nii\n", "f.nii is listed twice"),
        ("subject,image\n1,x.nii;f.nii\n2,y.nii\n", "column image has 1 files with .*y.nii and 2 with .*x.nii; give every row as many"),
        ("subject,image\n1,a/x.nii\n1,b/x.nii\n", "subject '1' has two scans called x.nii in session ''"),
        (
            "subject,image,split\n1,x.nii,training\n",
            r"split 'training' .* is unknown \(did you mean 'train'\?\); use one of train, val, test",
        ),
        ("subject,image,source\n1,x.nii,\n2,y.nii,made\n", "line 3: source 'made' is unknown; leave it empty, or use synth"),
        (
            "subject,image,labels,scheme,source\n1,x.nii,l.nii,seg35,synth\n",
            "line 2: source synth is for labels and their scheme without an image; fill in these two only",
        ),
        ("subject,image,labels,scheme,source\n1,,l.nii,,synth\n", "line 2: source synth is for labels and their scheme without an image"),
        ("subject,image,labels,scheme,source\n1,,,seg35,synth\n", "line 2: source synth is for labels and their scheme without an image"),
        ("subject,image,labels,scheme,source\n1,,l.nii;m.nii,seg35,synth\n", "line 2: 2 labels but 1 schemes"),
        ("subject,image,labels,scheme,source\n1,,l.nii,seg35,synth\n1,,l.nii,seg35,synth\n", "l.nii is listed twice; remove one"),
        ("subject,image,labels,scheme\n1,,l.nii,seg35\n", "line 2: image is empty"),
        ("subject,image,split\n1,x.nii,train\n1,y.nii,test\n", "subject '1' of dataset '' is in both train and test"),
    ],
)
def test_refused(tmp_path, text, reason):
    path = manifest(tmp_path, text)
    with pytest.raises(InputError, match=reason) as refusal:
        read_manifest(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)


def test_refuses_what_is_no_text(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_manifest(tmp_path / "none.tsv")
    with pytest.raises(InputError, match="not UTF-8"):
        read_manifest(manifest(tmp_path, "subject,image\né,x.nii\n", "latin-1"))
    with pytest.raises(InputError, match="cannot be read"):
        read_manifest(tmp_path)


def test_the_same_subject_number_in_two_datasets_is_two_people(tmp_path):
    text = "subject,image,dataset,split\n1,x.nii,A,train\n1,y.nii,B,test\n1,z.nii,A,excluded\n"
    assert len(read_manifest(manifest(tmp_path, text))) == 3


def test_write_then_read(tmp_path):
    home = tmp_path / "lists"
    rows = (FULL, FULL._replace(session="b", image=home / "x" / "é.nii.gz", labels=(tmp_path / "labels" / "l.nii",), scheme=("dl muse",)))
    write_manifest(home / "people.tsv", rows)
    assert read_manifest(home / "people.tsv") == rows
    lines = (home / "people.tsv").read_text().splitlines()
    assert lines[2].split("\t")[2:4] == ["x/é.nii.gz", "../labels/l.nii"]
    assert lines[1].split("\t")[2] == "/d/x, 1.nii.gz"
    assert [p.name for p in home.iterdir()] == ["people.tsv"]
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert read_manifest(moved / "lists" / "people.tsv")[1].labels == (moved / "labels" / "l.nii",)


def test_images_of_one_subject_keep_their_order(tmp_path):
    (row,) = read_manifest(manifest(tmp_path, "subject,image\n1,t1.nii; ../f.nii ;a.nii\n"))
    assert row.images == (tmp_path / "t1.nii", tmp_path.parent / "f.nii", tmp_path / "a.nii") and row.image == row.images[0]
    assert row.key == ("", "1", "", "t1.nii")
    write_manifest(tmp_path / "out.tsv", [row])
    assert "t1.nii;../f.nii;a.nii" in (tmp_path / "out.tsv").read_text()
    assert read_manifest(tmp_path / "out.tsv") == (row,)


def test_labels_of_which_scans_are_made_have_no_image(tmp_path):
    text = "subject,image,labels,scheme,split,source\n1,x.nii,l.nii,seg35,train,\n1,,l.nii;m.nii,seg35;head,train,synth\n"
    real, made = read_manifest(manifest(tmp_path, text))
    assert not real.labels_only and real.image == tmp_path / "x.nii"
    labels = (tmp_path / "l.nii", tmp_path / "m.nii")
    assert made == Row("1", "", labels[0], labels, ("seg35", "head"), "", "train", (), True) and made.images == labels[:1]
    write_manifest(tmp_path / "out.tsv", [real, made])
    assert (tmp_path / "out.tsv").read_text().splitlines()[2].split("\t") == [
        "1",
        "",
        "",
        "l.nii;m.nii",
        "seg35;head",
        "",
        "train",
        "synth",
    ]
    assert read_manifest(tmp_path / "out.tsv") == (real, made)
    write_manifest(tmp_path / "plain.tsv", [real])
    assert "source" not in (tmp_path / "plain.tsv").read_text()  # which others, that do not know the column, can read
    write_splits(tmp_path / "split.tsv", [real, made])
    assert apply_splits([real._replace(split=""), made._replace(split="")], tmp_path / "split.tsv") == (real, made)


def test_a_label_table_of_the_users_is_taken_from_the_manifests_folder(tmp_path, monkeypatch):
    home = tmp_path / "lists"
    tables = (str(tmp_path / "tables" / "mine.tsv"), "seg4")
    write_manifest(home / "people.tsv", [FULL._replace(scheme=tables)])
    assert (home / "people.tsv").read_text().splitlines()[1].split("\t")[4] == "../tables/mine.tsv;seg4"
    monkeypatch.chdir(home)
    assert read_manifest("people.tsv")[0].scheme == tables


def test_write_refuses_what_could_not_be_read(tmp_path):
    with pytest.raises(InputError, match="listed twice"):
        write_manifest(tmp_path / "a.tsv", [FULL, FULL])
    with pytest.raises(InputError, match="rename the file"):
        write_manifest(tmp_path / "a.tsv", [FULL._replace(image=Path("/d/a;b.nii"))])
    with pytest.raises(InputError, match="no scans"):
        write_manifest(tmp_path / "a.tsv", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("n", "fractions", "expected"),
    [
        (10, (0.7, 0.1, 0.2), [7, 1, 2]),
        (100, (0.7, 0.1, 0.2), [70, 10, 20]),
        (141, (0.8, 0.1, 0.1), [113, 14, 14]),
        (3, (0.7, 0.1, 0.2), [1, 1, 1]),
        (4, (0.9, 0.05, 0.05), [2, 1, 1]),
        (2, (0.7, 0.1, 0.2), [1, 0, 1]),
        (1, (0.7, 0.1, 0.2), [1, 0, 0]),
        (5, (1, 0, 0), [5, 0, 0]),
        (5, (0.9, 0, 0.1), [4, 0, 1]),
    ],
)
def test_people_are_cut_by_fractions(n, fractions, expected):
    assert sizes(assign_splits(people(n, scans=2), seed=0, fractions=fractions)) == expected


def test_a_split_knows_people_not_scans_rows_or_folders():
    rows = [*people(40, scans=3), *people(30, dataset="B")]
    split = assign_splits(rows, seed=3)
    assert [row._replace(split="") for row in split] == rows
    for dataset, n in (("A", [28, 4, 8]), ("B", [21, 3, 6])):
        assert sizes([row for row in split if row.dataset == dataset]) == n
    assert len({(row.person, row.split) for row in split}) == 70
    random.Random(0).shuffle(rows)
    moved = [row._replace(image=Path("/other") / row.image.name) for row in rows if row.dataset == "A"]
    again = {row.key: row.split for row in assign_splits(moved, seed=3)}
    assert again == {row.key: row.split for row in split if row.dataset == "A"}
    assert assign_splits(rows, seed=4) != assign_splits(rows, seed=3)


def test_the_split_of_a_seed_never_changes():
    # By hand: the order of sha256("SEED\tDATASET\tSUBJECT").
    order = sorted((f"p{i:03}" for i in range(5)), key=lambda p: hashlib.sha256(f"7\tA\t{p}".encode()).hexdigest())
    split = {row.subject: row.split for row in assign_splits(people(5), seed=7, fractions=(0.6, 0.2, 0.2))}
    assert [split[p] for p in order] == ["train"] * 3 + ["val", "test"]


def test_rows_that_carry_a_split_keep_it_all_or_none():
    rows = tuple(row._replace(split="test") for row in people(4))
    assert assign_splits(rows, seed=0) == rows
    with pytest.raises(InputError, match=r"1 of 4 rows have a split, e.g. /scans/A/p000_0.nii.gz"):
        assign_splits([rows[0], *people(4)[1:]], seed=0)


@pytest.mark.parametrize("fractions", [(0.7, 0.2), (0.7, 0.2, 0.2), (1.2, -0.1, -0.1), (70, 10, 20), (float("nan"), 0.5, 0.5)])
def test_fractions_are_three_parts_of_one(fractions):
    with pytest.raises(InputError, match="sum to 1"):
        assign_splits(people(4), seed=0, fractions=fractions)


def test_the_paper_rule_divides_images_of_each_dataset():
    assert FRACTIONS["paper"] == pytest.approx((0.7, 0.3 * 858 / 2575, 0.3 * 1717 / 2575))
    split = assign_splits([*people(1000), *people(200, dataset="B")], seed=0, rule="paper")
    # One image a person: nothing to exclude. 0.3 * 858 / 2575 is 0.09996.
    assert sizes([row for row in split if row.dataset == "A"]) == [700, 100, 200]
    assert sizes([row for row in split if row.dataset == "B"]) == [140, 20, 40]


def test_the_paper_rule_tests_on_unseen_people_only():
    rows = people(200, scans=4)
    split = assign_splits(rows, seed=0, rule="paper")
    count = {name: sum(row.split == name for row in split) for name in ("train", "val", "test", "excluded")}
    assert count["train"] == 560
    assert sum(count.values()) == 800
    people_of = {name: {row.person for row in split if row.split == name} for name in count}
    assert not people_of["train"] & (people_of["val"] | people_of["test"])
    assert not people_of["val"] & people_of["test"]
    assert all(row.person in people_of["train"] | people_of["test"] for row in split if row.split == "excluded")
    shuffled = random.Random(1).sample(rows, len(rows))
    assert sorted(assign_splits(shuffled, seed=0, rule="paper")) == sorted(split)


def test_the_paper_rule_on_people_by_hand():
    # Nobody trains: a person's scans fall into val and test, and test keeps the person.
    split = assign_splits(people(30, scans=2), seed=0, fractions=(0, 0.5, 0.5), rule="paper")
    sides = {}
    for row in split:
        sides.setdefault(row.subject, []).append(row.split)
    assert {tuple(sorted(names)) for names in sides.values()} == {("val", "val"), ("test", "test"), ("excluded", "test")}


def test_split_files_are_equal_for_equal_splits(tmp_path):
    rows = assign_splits(people(10), seed=0)
    digest = write_splits(tmp_path / "a.tsv", rows)
    content = (tmp_path / "a.tsv").read_bytes()
    assert digest == hashlib.sha256(content).hexdigest()
    assert content.startswith(b"dataset\tsubject\tsession\timage\tsplit\nA\tp000\ts0\tp000_0.nii.gz\t")
    moved = [row._replace(image=Path("/other") / row.image.name, labels=(Path("/l.nii"),)) for row in reversed(rows)]
    assert write_splits(tmp_path / "b.tsv", moved) == digest
    assert write_splits(tmp_path / "b.tsv", assign_splits(people(10), seed=1)) != digest
    with pytest.raises(InputError, match="1 rows have no split"):
        write_splits(tmp_path / "c.tsv", [rows[0]._replace(split="")])


def test_splits_apply_to_the_same_scans_elsewhere_and_to_no_others(tmp_path):
    rows = assign_splits(people(10), seed=0)
    path = tmp_path / "split.tsv"
    write_splits(path, rows)
    moved = [row._replace(image=Path("/other") / row.image.name, split="val") for row in rows[2:]]
    assert [row.split for row in apply_splits(moved, path)] == [row.split for row in rows[2:]]
    with pytest.raises(InputError, match=r"split\.tsv: 1 of 11 scans are not in it, e\.g\. /scans/B"):
        apply_splits([*rows, *people(1, dataset="B")], path)
    with pytest.raises(InputError, match="column 'labels' is unknown"):
        apply_splits(rows, manifest(tmp_path, "dataset,subject,session,labels,split\nA,1,,l.nii,train\n"))
    path.write_text(path.read_text().replace("\ttrain\n", "\ttrian\n", 1))
    with pytest.raises(InputError, match="did you mean 'train'"):
        apply_splits(rows, path)
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    with pytest.raises(InputError, match=r"line 12: p009_0\.nii\.gz is listed twice"):
        apply_splits(rows, path)
