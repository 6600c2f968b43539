"""`python -m brainseg_jax.predict --i SCAN|FOLDER|LIST.csv|BIDS --o OUT --checkpoint C`: label maps, each on its scan's own grid.

What is done is not done again, one bad scan does not lose the others (exit code 3), and with `--part` any number of jobs share a folder.
`--qc` writes the QC report of all cases in that folder. JAX is imported only where there is something to do. From Python the same is a
function, `brainseg_jax.predict(scan, checkpoint)`.
"""

import argparse
import errno
import hashlib
import importlib.metadata
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import brainseg_jax
from brainseg_jax.cli.predict_options import parser
from brainseg_jax.core import runtime
from brainseg_jax.core.errors import InputError, exit_code, exit_process, one_line, warnings
from brainseg_jax.core.files import (
    SEAL,
    check_own,
    check_place,
    check_regular,
    read_beginning,
    read_text,
    without_formulas,
    write_table,
    write_text,
)
from brainseg_jax.data import inputs
from brainseg_jax.data.inputs import Case, Source
from brainseg_jax.data.layouts import VOLUMES, stem
from brainseg_jax.pretrained import DEFAULT, NETWORKS, network_file

VERSION = 4  # of what is written: raise it whenever the same scan and checkpoints would give other labels
NAMES = ("index", "name", "abbreviation", "color")  # as BIDS calls them
COLUMNS = ("subject", "session", "scan", "structure", "id", "voxel_ml", "soft_ml")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # what ends the run, since nothing more can be written
MOMENT = 5.0  # seconds within which a label map's sidecar is written
SHOWN = 5  # failures that are printed; all stand in failures.csv

Sidecar = dict[str, Any]  # a sidecar's content


class Job(NamedTuple):
    """What stays the same during a run: what is asked for, where scans come from and results go, and what tells the checkpoints apart.

    `by`, the predictor, and `table`, whose ids are written, are only there where something is to be done.
    """

    options: argparse.Namespace
    source: Source
    folder: Path
    digests: tuple[str, ...]
    by: Any = None
    table: Any = None


class _Callable(ModuleType):
    """Importing this module makes it `brainseg_jax.predict`, which is a function to those who use it from Python: so it is one."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from brainseg_jax.inference.prediction import predict

        return predict(*args, **options)


sys.modules[__name__].__class__ = _Callable


def main(argv: list[str] | None = None) -> int:
    """Segments as the command line says. Returns 0, 3 if some scans could not be segmented, 130 for Ctrl-C, or 2 after a line on what the
    user can mend."""
    return exit_code(lambda: run(parser().parse_args(argv)), "stopped; the same command goes on from there")


def run(options: argparse.Namespace) -> int:
    """Segments every scan that is not done, writes the tables and the QC report, and says what could not be segmented."""
    source, networks = inputs.find(options.i, options.also, options.contrast_enhanced), checkpoints(options)
    out = options.o.parent if options.o.name.endswith(VOLUMES) else options.o
    job = Job(options, source, Path(os.path.normpath(out.absolute())), tuple(map(digest, networks)))
    check_places(job)
    if (results := finished(job)) is None:
        job = load(job, networks)
        job.by.check_images(len(source.rows[0].images), f"--i {options.i}")
        cases = cases_of(job, job.by.table.name)
        before = {} if options.overwrite else {case: sidecar for case in cases if (sidecar := done(job, case))}
        cases = tuple(case._replace(fault=damage(job, case, before[case])) if case in before else case for case in cases)
        results = {case: before[case] for case in cases if case in before}  # a damaged case has a fault now, and is none of them
        for case, sidecar in results.items():
            if lost_names(case, sidecar):
                write_names(case.names, job.table)
    else:
        cases = tuple(results)
    before, reasons = len(results), of_part(job.folder / inputs.FAILURES[0], options.part)
    if source.kind == "bids":
        write_dataset_description(source, job.folder)
    failures = segment_all(job, cases, results, reasons)
    sidecars = {case: results[case] for case in cases if case in results}
    print(f"{options.o}: {len(results) - before} segmented" + (f", {before} were done before" if before else ""))
    if source.left_out:
        print(f"contrast-enhanced scans left out: {len(source.left_out)}; --contrast-enhanced takes them too")
    if options.vol:
        write_volumes(volumes := of_part(options.vol, options.part), sidecars)
        print(f"{volumes}: volumes of {len(sidecars)}")
    from brainseg_jax.qc.findings import SERIOUS

    for line in warnings([remark for one in sidecars.values() for remark in one["Remarks"]], SHOWN):
        print(line)
    if wrong := [case.labels for case, one in sidecars.items() if one["Score"] >= SERIOUS]:
        shown = ", ".join(map(str, wrong[:SHOWN])) + ", …" * (len(wrong) > SHOWN)
        where = "see the QC report" if options.qc else "--qc shows why"
        print(f"looks wrong, or is of another kind than the network knows: {shown}; {where}")
    if options.qc:
        from brainseg_jax.qc import case_records

        print(f"{options.qc}: {case_records.write_report(options.qc, job.folder, cases)}")
    if failures:
        print(f"{len(failures)} of {len(cases)} scans could not be segmented, reasons in {reasons}:", file=sys.stderr)
        print("\n".join([*failures[:SHOWN], *["…"] * (len(failures) > SHOWN)]), file=sys.stderr)
    return 3 if failures else 0


def check_places(job: Job) -> None:
    """Raises InputError where something of the run cannot be written, or would be written over what is not its own."""
    options = job.options
    check_place(options.o)
    if options.vol:
        file = of_part(options.vol, options.part)
        check_place(file)
        check_free(job, file)
        check_own(f"--vol {file}", file, "table", _delimiter(file).join(COLUMNS))
    if options.qc:
        from brainseg_jax.qc import report

        report.check_place_of_report(options.qc, job.folder)


def check_free(job: Job, file: Path) -> None:
    """Raises InputError where the table of volumes has the name of another table that is written in the run."""
    reasons = file.parent.resolve() == job.folder.resolve() and any(map(file.match, inputs.FAILURES))
    names = {case.names.resolve() for case in inputs.output_places(job.source, job.options.o, "")}
    # BIDS has the task in the name, which only the network knows: none may be there.
    spelt = re.sub("_seg-[0-9a-zA-Z]*_", "_seg-_", file.name) if job.source.kind == "bids" else file.name
    if reasons or file.resolve().with_name(spelt) in names:
        holds = "why scans could not be segmented" if reasons else "the names of structures"
        raise InputError(f"--vol {file}: is the file that says {holds}; give another name, e.g. {file.with_name('volumes.tsv')}")


def load(job: Job, networks: list[str]) -> Job:
    """The job with its networks."""
    start(job.options)
    from brainseg_jax.inference.prediction import output_table, predictor

    by = predictor(networks).asked(job.options.task, job.options.tta, job.options.keep_small_components)
    return job._replace(by=by, table=output_table(by.table, job.options.ids))


def start(options: argparse.Namespace) -> None:
    """Settles what JAX reads when it is imported: where it computes, on how many cores, and that it takes of a GPU only what it needs."""
    runtime.for_prediction()
    if options.cpu:
        os.environ["JAX_PLATFORMS"] = "cpu"
    if options.threads and hasattr(os, "sched_setaffinity"):
        # XLA has no setting for its threads: it starts as many as there are cores for the process.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    elif options.threads:
        os.environ["NPROC"] = str(options.threads)  # what it goes by instead, where a process has no cores of its own


def checkpoints(options: argparse.Namespace) -> list[str]:
    """The ensemble's checkpoints; without any the network that comes with the package."""
    own = [str(network_file(name)) for name in options.checkpoint.split(",") if name]
    if own and options.network:
        raise InputError(f"--network {options.network} and --checkpoint {options.checkpoint}: two networks are named; leave one out")
    return own or [str(NETWORKS[options.network] if options.network else DEFAULT)]


def digest(checkpoint: str) -> str:
    """What tells a checkpoint, or any file, from others, wherever it lies; "" where there is none."""
    try:
        file = Path(checkpoint)
        file = file / SEAL if file.is_dir() else file
        check_regular(file)
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, InputError):
        return ""


# ---- what is done


def cases_of(job: Job, task: str) -> tuple[Case, ...]:
    """This part's scans, and where their outputs go."""
    return inputs.share(inputs.output_places(job.source, job.options.o, task), job.folder, *job.options.part)


def finished(job: Job) -> dict[Case, Sidecar] | None:
    """The cases and their sidecars, if earlier runs have left nothing to do, which can be sidecar without the networks."""
    for task in inputs.tasks(job.source, job.folder):
        cases = cases_of(job, task)
        sidecar = {case: done(job, case) for case in cases}
        sound = (one and not damage(job, case, one) and not lost_names(case, one) and recorded(job, case) for case, one in sidecar.items())
        if not job.options.overwrite and all(sound):
            return sidecar
    return None


def done(job: Job, case: Case) -> Sidecar | None:
    """The sidecar of a scan whose files are there, made from the same scan by the same checkpoints with the same options."""
    try:
        if case.fault or not case.labels.exists() or (job.options.post and not case.soft.exists()):
            return None
        sidecar = json.loads(read_text(case.sidecar))
        kinds = {"Entropy": (int, float), "Score": (int, float), "Remarks": list, "SHA256": dict}
        whole = all(isinstance(sidecar[key], kind) for key, kind in kinds.items())
        whole = whole and all(tuple(volume) == COLUMNS[3:] for volume in sidecar["Volumes"])
        return sidecar if whole and sidecar["MadeFrom"] == fingerprint(job, case) else None
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def damage(job: Job, case: Case, sidecar: Sidecar) -> str:
    """What is wrong with the files of a scan whose sidecar says that it is done, and the remedy, or "".

    A label map that was corrected by hand is sound. As long as its bytes are those that were written, no file is unpacked.
    """
    written = sidecar["SHA256"]
    if job.options.post and written.get(case.soft.name, now := digest(str(case.soft))) != now:
        return f"{case.soft}: is not as it was written; delete it and run again"
    if digest(str(case.labels)) == written.get(case.labels.name):
        return ""
    try:
        from brainseg_jax.data.nifti import read_labels

        read_labels(case.labels)
    except InputError as refusal:
        return f"{_cause(refusal)}; delete it and run again"
    except Exception as error:
        return f"{case.labels}: cannot be read ({type(error).__name__}); delete it and run again"
    return ""


def lost_names(case: Case, sidecar: Sidecar) -> bool:
    """Whether the table of names is not as it was written with the label map."""
    return sidecar["SHA256"].get(case.names.name) != digest(str(case.names))


def _cause(refusal: InputError) -> str:
    """What an error says up to its remedy, which is one for scans."""
    return str(refusal).partition(";")[0]


def recorded(job: Job, case: Case) -> bool:
    """Whether the QC report has what it needs of a scan that is done; not where the label map was corrected since."""
    if not job.options.qc:
        return True
    from brainseg_jax.qc import case_records

    file = inputs.record_file(case.sidecar, job.folder)
    return case_records.valid_record(file, case.sidecar) is not None and file.stat().st_mtime_ns >= case.labels.stat().st_mtime_ns


def fingerprint(job: Job, case: Case) -> str:
    """A hash of all that decides the labels: the checkpoints, the options that bear on them, and size and time of the scan's files."""
    options, files = job.options, [image.stat() for image in case.row.images]
    facts = [VERSION, job.digests, options.task, options.tta, options.keep_small_components, options.ids]
    facts += [fact for status in files for fact in (status.st_size, status.st_mtime_ns)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


# ---- scans


def segment_all(job: Job, cases: tuple[Case, ...], results: dict[Case, Sidecar], reasons: Path) -> list[str]:
    """Segments the cases that have no result, gives them one, and returns why others have none, which also stands in the file `reasons`.

    A case that only lacks what the QC report shows gets it from the label map that is there.
    """
    todo = [case for case in cases if case not in results or not recorded(job, case)]
    if not todo:
        reasons.unlink(missing_ok=True)
        return []
    from brainseg_jax.core.progress import progress
    from brainseg_jax.data.cache import Failure, write_failures
    from brainseg_jax.inference import prediction

    if lacking := sum(case in results for case in todo):
        print(f"label maps that are there already and are taken as they are for the QC report: {lacking}")
    show, failures = progress("segmenting scans"), []
    show(len(cases) - len(todo), len(cases))
    scans = prefetch(partial(read_case, job, results), todo)
    if lacking < len(todo):
        with suppress(Exception):  # what is too large for the machine is said of each scan
            prediction.compile_ahead(job.by)  # meanwhile the first scan is read
    for n, (case, coming) in enumerate(scans, len(cases) - len(todo) + 1):
        try:
            results[case] = finish_case(job, case, results.get(case), *coming.result())
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise  # the others would be computed for nothing
            failures.append(Failure(case.row, one_line(case.row.image, error)))
            reasons.parent.mkdir(parents=True, exist_ok=True)
            write_failures(reasons, failures)
            with suppress(OSError):  # of a name that no file can have
                inputs.record_file(case.sidecar, job.folder).unlink(missing_ok=True)  # it may be of an earlier scan or label map
        show(n, len(cases))
    if not failures:
        reasons.unlink(missing_ok=True)
    return [failure.reason for failure in failures]


def prefetch(read: Callable[[Case], Any], cases: Iterable[Case]) -> Iterator[tuple[Case, Future]]:
    """Each case with what `read` gives for it, the next one being read meanwhile, and the first one from now on."""
    pool, cases = ThreadPoolExecutor(1), iter(cases)
    submit = lambda case: (case, pool.submit(read, case))  # noqa: E731
    first = next(map(submit, cases), None)

    def each() -> Iterator[tuple[Case, Future]]:
        with pool:
            waiting = first
            while waiting:
                coming = next(map(submit, cases), None)
                yield waiting
                waiting = coming

    return each()


def read_case(job: Job, results: dict[Case, Sidecar], case: Case) -> tuple[str, Any, Any]:
    """What labels are made from, the scan for its pictures, and it standardised; or, where there is a result, its label map's classes.

    Raises InputError for what cannot be segmented, and where somebody else's file would be overwritten.
    """
    from brainseg_jax.data.nifti import read
    from brainseg_jax.inference.prediction import prepare

    if case.fault:
        raise InputError(case.fault)
    if not case.sidecar.exists() and not job.options.overwrite:
        # Of the table of names no sidecar tells: many scans share it, and an earlier run may have been stopped before the first was done.
        own = [case.labels] if shared_names(case.names) else [case.labels, case.names]
        others = [file for file in own if file.exists()]
        if others and not followed(others[0], case.sidecar):
            lacks = f"without {case.sidecar.name} is not from this command"
            raise InputError(f"{others[0]}: exists, and {lacks}; move it away, or add --overwrite")
    images = case.row.images
    try:
        mark = fingerprint(job, case)
    except OSError:
        mark = ""  # reading says what is wrong
    scan = read(images[0])
    if case in results:
        ready = classes_of(job, case, scan)
    else:
        ready = prepare(job.by, [scan, *map(read, images[1:])], list(map(str, images)))
    return mark, scan if job.options.qc else None, ready


def shared_names(file: Path) -> bool:
    """Whether a file is a table of names as this command writes it."""
    return read_beginning(file, 1000).startswith("\t".join(NAMES).encode())


def classes_of(job: Job, case: Case, scan: Any) -> Any:
    """The classes of a label map that is there, be it as written or corrected by hand. Raises InputError where it cannot be used."""
    import numpy as np

    from brainseg_jax.data.labels import lookup
    from brainseg_jax.data.nifti import read_labels

    try:
        labels = read_labels(case.labels)
    except InputError as refusal:
        raise InputError(f"{_cause(refusal)}; delete it and run again") from None
    if labels.voxels.shape != scan.voxels.shape or not np.allclose(labels.affine, scan.affine, atol=0.01):
        raise InputError(f"{case.labels}: lies on another grid than its scan; delete it, and it is made again")
    return lookup(labels.voxels, job.table, job.table, str(case.labels))


def followed(file: Path, sidecar: Path) -> bool:
    """Whether the sidecar comes after a file that was written a moment ago, by another process that predicts into the same folder."""
    while not sidecar.exists():
        if not 0 <= time.time() - file.stat().st_mtime < MOMENT:
            return False
        time.sleep(0.1)
    return True


def finish_case(job: Job, case: Case, sidecar: Sidecar | None, mark: str, scan: Any, ready: Any) -> Sidecar:
    """Writes what a scan lacks, each file wholly or not at all, and last its sidecar, which is returned: what has one is done.

    `sidecar` is the sidecar that is there already; `mark`, `scan` and `ready` are what `read_case` gives. Raises InputError where there is
    no brain; nothing is written then.
    """
    import numpy as np

    from brainseg_jax.data import nifti_write
    from brainseg_jax.inference import input_checks, prediction
    from brainseg_jax.qc import case_records
    from brainseg_jax.qc.findings import examine

    image, table, cohort = case.row.image, job.table, job.by.cohort()
    if sidecar:
        findings = examine(ready, scan.affine, table, cohort, sidecar["Entropy"])
        now = sidecar | qc_fields(findings, table, [one["soft_ml"] for one in sidecar["Volumes"]])
        now["SHA256"] = sidecar["SHA256"] | {case.labels.name: digest(str(case.labels))}
        if now != sidecar:
            write_json(case.sidecar, now)
        sidecar = now
        case_records.write(case, job.folder, sidecar, scan, ready, table, findings, cohort)
        return sidecar
    classes, ml, found = prediction.segment(job.by, ready)
    input_checks.check_not_empty(job.by.table, ml, str(image))
    findings = examine(classes, np.array(ready.record["source_affine"]), table, cohort, found.entropy)
    raw = job.source.root if job.source.kind == "bids" else None
    of = [f"bids:raw:{path.relative_to(raw).as_posix()}" if raw else str(path) for path in case.row.images]
    about = {"Sources": of, "SpatialReference": of[0]}
    sidecar = about | {
        "Description": description(job),
        "MadeFrom": mark,
        "Entropy": round(found.entropy, 4),
        "Remarks": ready.record["remarks"],
    }
    sidecar |= qc_fields(findings, table, found.volumes[1:].tolist())
    if job.options.post:
        nifti_write.write_soft(case.soft, prediction.soft_maps(found, ready), len(found.soft), image)
        names = ["BG", *(s.abbreviation for s in table.structures)]
        write_json(case.soft.with_name(stem(case.soft) + ".json"), about | {"LabelMap": names})
    named = write_names(case.names, table)
    nifti_write.write_like(case.labels, prediction.as_ids(classes, table), image)
    try:
        if job.options.qc:
            case_records.write(case, job.folder, sidecar, scan, classes, table, findings, cohort)
        written = (case.labels, *[case.soft] * job.options.post)
        sidecar["SHA256"] = {file.name: digest(str(file)) for file in written} | {case.names.name: named}
        write_json(case.sidecar, sidecar)
    except BaseException:  # a full disk, Ctrl-C: without a sidecar it would be somebody else's
        case.labels.unlink(missing_ok=True)
        raise
    return sidecar


def qc_fields(findings: Any, table: Any, soft: list[float]) -> Sidecar:
    """What a sidecar says of the label map that is there now, which may have been corrected by hand, beside the sums of probabilities."""
    volumes = [
        {"structure": structure.name, "id": structure.id, "voxel_ml": round(float(ml), 4), "soft_ml": round(ml_of_soft, 4)}
        for structure, ml, ml_of_soft in zip(table.structures, findings.measures.ml[1:], soft, strict=True)
    ]
    return {"Volumes": volumes, "Score": round(findings.score, 2), "Flags": [flag.words for flag in findings.flags]}


def description(job: Job) -> str:
    """What made the labels, in a sentence without its end."""
    versions = f"brainseg_jax {brainseg_jax.__version__}, JAX {importlib.metadata.version('jax')}"
    of = job.options.checkpoint or Path(checkpoints(job.options)[0]).name
    mirror = ", left-right flips too" * job.options.tta + ", small components kept" * job.options.keep_small_components
    return f"{len(job.table.structures)} structures ({job.table.name}) by {of}{mirror}; {versions}"


# ---- files of the run


def write_names(file: Path, table: Any) -> str:
    """Writes the table of structures' names, for one label map or for all of a folder, and returns its SHA-256."""
    text = write_table(file, NAMES, without_formulas((s.id, s.name, s.abbreviation, s.colour) for s in table.structures))
    return hashlib.sha256(text.encode()).hexdigest()


def write_volumes(file: Path, results: dict[Case, Sidecar]) -> None:
    """One table of all volumes, a line for each scan and structure: those of its voxels, and the sums of its probability."""
    scans = (((row.subject, row.session, row.image.name), sidecar["Volumes"]) for (row, *_), sidecar in results.items())
    lines = ((*scan, *volume.values()) for scan, volumes in scans for volume in volumes)
    write_table(file, COLUMNS, without_formulas(lines), _delimiter(file))


def _delimiter(file: Path) -> str:
    return "," if file.suffix == ".csv" else "\t"


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes JSON, all or nothing."""
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_dataset_description(source: Source, folder: Path) -> None:
    """Says that a folder holds BIDS derivatives, and of which data set, unless it says something already."""
    file = folder / "dataset_description.json"
    if not file.exists():
        write_json(
            file,
            {
                "Name": "brainseg_jax segmentations",
                "BIDSVersion": "1.10.0",
                "DatasetType": "derivative",
                "GeneratedBy": [{"Name": "brainseg_jax", "Version": brainseg_jax.__version__}],
                "DatasetLinks": {"raw": Path(os.path.relpath(source.root, folder)).as_posix()},
            },
        )


def of_part(file: Path, part: tuple[int, int]) -> Path:
    """A file of the run by the name that parts of a run do not share."""
    return file if part == (1, 1) else file.with_name(f"{file.stem}_part-{part[0]}-of-{part[1]}{file.suffix}")


def command() -> None:
    """This process as the command."""
    runtime.with_huge_pages()
    exit_process(main())
