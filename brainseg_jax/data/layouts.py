"""Manifest rows from the folder layouts of data sets (OASIS-1, ADNI, CC359, BIDS, or any folder). Only names are read, and a label map
that could belong to two scans is refused."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from brainseg_jax.core.errors import InputError, first_few
from brainseg_jax.core.files import read_beginning
from brainseg_jax.data.manifest import Row

VOLUMES = (".nii", ".nii.gz", ".mgz", ".mgh")
NEURITE = ("seg35", "seg4")
# BIDS entities of how labels were made, not of the scan; a space other than the scan's own is another grid.
ABOUT_LABELS = ("desc", "seg", "atlas", "space", "res", "label")
OWN_SPACE = (None, "T1w", "orig", "native")


def oasis1(root: str | Path, dataset: str = "OASIS") -> tuple[Row, ...]:
    """OASIS-1 as neurite-OASIS (OASIS_OAS1_0001_MR1/orig, norm, seg35, seg4) or from FreeSurfer (OAS1_0001_MR1/mri/orig.mgz, aseg.mgz).

    neurite-OASIS has two rows a session, with and without the skull. Raises InputError for the raw discs, whose Analyze files do not
    define left and right, and if nothing is found.
    """
    rows = []
    for folder in sorted(p for p in _folder(root).rglob("*OAS1_*_MR*") if p.is_dir()):
        if not (match := re.fullmatch(r"(?:OASIS_)?(OAS1_\d{4})_(MR\d+)", folder.name)):
            continue
        images = [image for name in ("orig.nii.gz", "norm.nii.gz") if (image := folder / name).exists()]
        pairs = [(label, name) for name in NEURITE if (label := folder / f"{name}.nii.gz").exists()]
        if (image := folder / "mri" / "orig.mgz").exists():
            images = [image]
            pairs = [(label, "freesurfer")] if (label := folder / "mri" / "aseg.mgz").exists() else []
        if not images and any((folder / "RAW").glob("*.img")):
            raise InputError(
                f"{folder}: Analyze images (.img, .hdr) do not say where left and right are; use neurite-OASIS or FreeSurfer's output"
            )
        labels, scheme = tuple(label for label, _ in pairs), tuple(name for _, name in pairs)
        rows += [Row(match[1], match[2], image, labels, scheme, dataset, "") for image in images]
    return _found(rows, root, "OASIS_OAS1_0001_MR1/orig.nii.gz or OAS1_0001_MR1/mri/orig.mgz")


def adni(root: str | Path, labels: str | Path | None = None, dataset: str = "ADNI") -> tuple[Row, ...]:
    """ADNI: each NIfTI with a subject code (002_S_0295) in its name; the session is the date in its folder's name, else the I-number.

    Labels are MALP-EM's, named MALPEM-IMAGE, anywhere below `labels` (default `root`). Raises InputError if nothing is found, if `labels`
    has no labels of the scans, or if a scan has several.
    """
    malpem = _by_stem(p for p in volumes(_folder(labels or root)) if p.name.startswith("MALPEM-"))
    rows = []
    for image in _scans(root, labels):
        code = re.search(r"\d{3}_S_\d{4}", image.name)
        if not code or image.name.startswith("MALPEM-"):
            continue
        days = re.findall(r"(?:^|/)(\d{4}-\d{2}-\d{2})(?=[_/])", image.relative_to(_folder(root)).as_posix())
        session = (days or re.findall(r"_(I\d+)$", stem(image)) or [""])[-1]
        rows.append(_row(code[0], session, image, malpem[f"MALPEM-{stem(image)}"], "malpem", dataset))
    return _found(rows, root, "NIfTI files with a subject code such as 002_S_0295 in their name", labels, "MALPEM-IMAGE.nii.gz")


def cc359(root: str | Path, labels: str | Path | None = None, dataset: str = "CC359") -> tuple[Row, ...]:
    """CC359: images such as CC0001_philips_15_55_M.nii.gz; brain masks IMAGE_ss or IMAGE_staple, anywhere below `labels` (default `root`).

    Raises InputError if nothing is found, or if a scan has both masks: `labels` has to be the folder of one kind.
    """
    masks = _by_stem(volumes(_folder(labels or root)))
    rows = []
    for image in volumes(_folder(root)):
        if match := re.fullmatch(r"(CC\d{4})_[a-z]+_\d+_\d+_[MF]", stem(image)):
            rows.append(_row(match[1], "", image, masks[f"{stem(image)}_ss"] + masks[f"{stem(image)}_staple"], "brain", dataset))
    return _found(rows, root, "CC0001_philips_15_55_M.nii.gz", labels, "IMAGE_ss.nii.gz or IMAGE_staple.nii.gz")


def bids(
    root: str | Path,
    labels: str | Path | None = None,
    scheme: str = "",
    dataset: str | None = None,
    contrast_enhanced: bool = False,
) -> tuple[Row, ...]:
    """A BIDS folder's T1w images; labels are the *_dseg files of the same entities and space below `labels`, a derivatives folder.

    `dataset` is by default the folder's name. Scans after a contrast agent (entity ce) are another contrast, and included only on request.
    Raises InputError if nothing is found, or if a scan has several label files.
    """
    dseg = defaultdict(list)
    for label in volumes(_folder(labels)) if labels else ():
        entities = _entities(label)
        if stem(label).endswith("_dseg") and entities.get("space") in OWN_SPACE:
            dseg[frozenset((k, v) for k, v in entities.items() if k not in ABOUT_LABELS)].append(label)
    rows, left_out = [], [] if contrast_enhanced else enhanced(_folder(root))
    for image in sorted(set(bids_scans(_folder(root))) - set(left_out)):
        entities = _entities(image)
        session = f"ses-{entities['ses']}" if "ses" in entities else ""
        rows.append(_row(f"sub-{entities['sub']}", session, image, dseg[frozenset(entities.items())], scheme, dataset or _name(root)))
    also = f" (the {len(left_out)} that are there are contrast-enhanced, and --contrast-enhanced takes them)" * bool(left_out)
    return _found(rows, root, f"sub-*/[ses-*/]anat/*_T1w.nii.gz{also}", labels, "*_dseg.nii.gz with the entities of the T1w image")


def bids_scans(root: Path) -> Iterator[Path]:
    """The T1w images of a BIDS folder."""
    return (p for ses in ("", "ses-*/") for p in root.glob(f"sub-*/{ses}anat/sub-*_T1w.nii*") if p.name.endswith(VOLUMES))


def enhanced(root: Path) -> list[Path]:
    """The contrast-enhanced T1w images of a BIDS folder (entity ce)."""
    return sorted(image for image in bids_scans(root) if "ce" in _entities(image))


def folder(
    root: str | Path,
    labels: str | Path | None = None,
    subject_regex: str | None = None,
    scheme: str = "",
    dataset: str | None = None,
) -> tuple[Row, ...]:
    """Any folder: each volume below it is a scan, unless `brainseg predict` wrote it. Its label map is the file below `labels` whose name
    begins with the scan's stem.

    The subject is the match of `subject_regex` in the path below `root` (see `finder`), by default the stem; `dataset` is by default the
    folder's name. A label map belongs to the scan with the longest fitting stem; if no name fits, or one of another subject, to the only
    scan of the subject matched in the label map's path below `labels`. Raises InputError if nothing is found, the expression does not match
    a scan's path, a label map could belong to several scans, or a scan has several.
    """
    find = finder(subject_regex) if subject_regex else None
    home, images = _folder(root), [path for path in _scans(root, labels) if not is_output(path)]
    if labels and home.is_relative_to(_folder(labels)):
        raise InputError(f"{labels}: holds the scans as well; move the label maps into a folder of their own")
    subjects = {image: find(image.relative_to(home)) if find else stem(image) for image in images}
    if unmatched := [image for image in images if not subjects[image]]:
        path = unmatched[0].relative_to(home).as_posix()
        raise InputError(f"{unmatched[0]}: --subject-regex '{subject_regex}' fits nowhere in {path}; correct it or move the file away")
    owned = _owned(subjects, _folder(labels), find) if labels else {}
    rows = [_row(subjects[image], "", image, owned.get(image, []), scheme, dataset or _name(root)) for image in images]
    what = f"files ending in {', '.join(VOLUMES)} (DICOM has to be converted first)"
    return _found(rows, root, what, labels, "files whose names begin as the scans' or, by --subject-regex, that are of their subjects")


LAYOUTS: dict[str, Callable[..., tuple[Row, ...]]] = {"oasis1": oasis1, "adni": adni, "cc359": cc359, "bids": bids, "folder": folder}


def volumes(folder: Path) -> list[Path]:
    """The volumes below a folder, sorted, without hidden files and folders (git-annex keeps its objects in .git). Links to content that was
    not fetched are included; reading one raises the error."""
    paths = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(place, name) for name in names if name.endswith(VOLUMES) and not name.startswith(".")]
    return sorted(path for path in paths if path.is_file() or not path.exists())


def is_output(path: Path) -> bool:
    """Whether `brainseg predict` wrote a volume: its sidecar is beside it."""
    sidecar = path.with_name(f"{stem(path)}.json")
    return stem(path).endswith(("_seg", "_post")) and sidecar.is_file() and b'"SpatialReference"' in read_beginning(sidecar, 10_000)


def stem(path: Path) -> str:
    """A volume's name without .nii, .nii.gz, .mgz or .mgh."""
    return path.name.removesuffix(".gz").rpartition(".")[0]


def longest_start(name: str, known: Collection[str]) -> str | None:
    """The longest known name that a name starts with, ending at a word boundary: "sub1" does not start "sub10_seg"."""
    starts = (name[:end] for end in range(len(name), 0, -1) if not name[end : end + 1].isalnum())
    return next((start for start in starts if start in known), None)


def finder(regex: str) -> Callable[[Path], str]:
    """A function from a path to its subject: the match of the expression's first group, or of all of it without groups, or ""."""
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise InputError(f"--subject-regex '{regex}': {error}; correct the expression") from None

    def find(path: Path) -> str:
        match = pattern.search(path.as_posix())
        return match[min(pattern.groups, 1)] or "" if match else ""

    return find


def _row(subject: str, session: str, image: Path, labels: list[Path], scheme: str, dataset: str) -> Row:
    if len(labels) > 1:
        raise InputError(
            f"{image}: {len(labels)} label files fit ({first_few(p.name for p in labels)}); give a label folder with one kind only"
        )
    return Row(subject, session, image, tuple(labels), (scheme,) if labels and scheme else (), dataset, "")


def _found(rows: list[Row], root: str | Path, what: str, labels: str | Path | None = None, label: str = "") -> tuple[Row, ...]:
    if not rows:
        raise InputError(f"{root}: no scans found; looked for {what}, so check the folder and its layout")
    if labels and not any(row.labels for row in rows):
        raise InputError(f"{labels}: no labels found for the scans in {root}; looked for {label}, so check the folder and the names in it")
    return tuple(rows)


def _folder(root: str | Path) -> Path:
    folder = Path(os.path.normpath(Path(root).absolute()))
    if not folder.is_dir():
        raise InputError(f"{folder}: {'is a file, not a folder' if folder.exists() else 'no such folder'}; check the path")
    return folder


def _name(root: str | Path) -> str:
    return _folder(root).resolve().name


def _scans(root: str | Path, labels: str | Path | None) -> list[Path]:
    """The volumes below `root` without those of a label folder within it."""
    home, label_home = _folder(root), _folder(labels) if labels else None
    if label_home is None or home.is_relative_to(label_home):
        return volumes(home)
    return [path for path in volumes(home) if not path.is_relative_to(label_home)]


def _owned(subjects: dict[Path, str], home: Path, find: Callable[[Path], str] | None) -> dict[Path, list[Path]]:
    """The label maps below `home` of each scan: by name, and otherwise by subject. `subjects` maps scans to their subjects."""
    stems, scans = _by_stem(subjects), defaultdict(list)
    for image, subject in subjects.items():
        scans[subject].append(image)
    owned, unnamed = defaultdict(list), defaultdict(list)
    for label in volumes(home):
        name = longest_start(stem(label), stems)
        subject = find(label.relative_to(home)) if find else ""
        namesakes = stems[name] if name else []
        if len(namesakes) == 1 and (subject not in scans or subject == subjects[namesakes[0]]):
            owned[namesakes[0]].append(label)
        elif subject:
            unnamed[subject].append(label)
        elif namesakes:
            remedy = "give each its own name, or tell people apart in both folders by --subject-regex"
            raise InputError(f"{namesakes[0]}: another scan is called {name} too, so the label {label} may be either's; {remedy}")
    for subject in sorted(unnamed.keys() & scans.keys()):
        labels, bare = unnamed[subject], [image for image in scans[subject] if image not in owned]
        if bare and len(scans[subject]) > 1:
            names = first_few(path.name for path in scans[subject])
            raise InputError(
                f"{labels[0]}: is of subject {subject!r}, who has {len(scans[subject])} scans ({names}), and its name begins with none "
                "of theirs; let it begin with its scan's name"
            )
        if bare:
            owned[bare[0]] = labels
    return owned


def _by_stem(paths: Iterable[Path]) -> defaultdict[str, list[Path]]:
    stems = defaultdict(list)
    for path in paths:
        stems[stem(path)].append(path)
    return stems


def _entities(path: Path) -> dict[str, str]:
    return dict(part.split("-", 1) for part in stem(path).split("_") if "-" in part)
