"""`brainseg predict --i SCAN|FOLDER|LIST.csv|BIDS --o OUT --checkpoint C`: label maps, each on its scan's own grid.

Finished scans are skipped, a scan that fails does not stop the others (exit code 3), and with `--part` any number of jobs share a folder.
`--qc` writes the QC report of all cases in that folder. JAX is imported only where there is something to do. From Python, call
`brainseg_jax.predict(scan, checkpoint)`.
"""

import argparse
import os
import re
import sys
from pathlib import Path

from brainseg_jax.cli.predict_options import parser
from brainseg_jax.core import runtime
from brainseg_jax.core.errors import InputError, exit_code, exit_process, warnings
from brainseg_jax.core.files import check_own, check_place
from brainseg_jax.data import case_files
from brainseg_jax.data.layouts import VOLUMES
from brainseg_jax.inference.outputs import COLUMNS, delimiter_of, of_part, write_dataset_description, write_names, write_volumes
from brainseg_jax.inference.resume import Job, cases_of, checkpoints, damage, digest, done, finished, lost_names

SHOWN = 5  # failures that are printed; failures.csv has all


def main(argv: list[str] | None = None) -> int:
    """The command's exit code: 0, 3 if some scans could not be segmented, 130 for Ctrl-C, or 2 after one line on a user error."""
    return exit_code(lambda: run(parser().parse_args(argv)), "stopped; the same command goes on from there")


def run(options: argparse.Namespace) -> int:
    """Segments every scan that is not done, writes the tables and the QC report, and prints failures. Returns the exit code."""
    source, networks = case_files.find(options.i, options.also, options.contrast_enhanced), checkpoints(options)
    out = options.o.parent if options.o.name.endswith(VOLUMES) else options.o
    job = Job(options, source, Path(os.path.normpath(out.absolute())), tuple(map(digest, networks)))
    check_places(job)
    cases = results = finished(job)
    if results is None:
        job = load(job, networks)
        job.by.check_images(len(source.rows[0].images), f"--i {options.i}")
        cases, results = [], {}
        for case in cases_of(job, job.by.table.name):
            sidecar = None if options.overwrite else done(job, case)
            cases.append(case._replace(fault=damage(job, case, sidecar)) if sidecar else case)
            if sidecar and not cases[-1].fault:
                results[case] = sidecar
                if lost_names(case, sidecar):
                    write_names(case.names, job.table)
    cases, before = tuple(cases), len(results)
    reasons = of_part(job.folder / case_files.FAILURES[0], options.part)
    if source.kind == "bids":
        write_dataset_description(source, job.folder)
    failures = []
    if job.by is None:  # all was done before
        reasons.unlink(missing_ok=True)
    else:
        from brainseg_jax.inference.batch import segment_all

        failures = segment_all(job, cases, results, reasons)
    sidecars = {case: results[case] for case in cases if case in results}
    print(f"{options.o}: {len(results) - before} segmented" + (f", {before} were done before" if before else ""))
    if source.left_out:
        print(f"contrast-enhanced scans left out: {len(source.left_out)}; --contrast-enhanced takes them too")
    if options.vol:
        write_volumes(volumes := of_part(options.vol, options.part), sidecars)
        print(f"{volumes}: volumes of {len(sidecars)}")
    from brainseg_jax.qc.findings import SERIOUS

    for line in warnings([remark for sidecar in sidecars.values() for remark in sidecar["Remarks"]], SHOWN):
        print(line)
    if wrong := [case.labels for case, sidecar in sidecars.items() if sidecar["Score"] >= SERIOUS]:
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
    """Raises InputError where an output cannot be written, or would overwrite a file that is not of this command."""
    options = job.options
    check_place(options.o)
    if options.vol:
        file = of_part(options.vol, options.part)
        check_place(file)
        check_free(job, file)
        check_own(f"--vol {file}", file, "table", delimiter_of(file).join(COLUMNS))
    if options.qc:
        from brainseg_jax.qc import report

        report.check_place_of_report(options.qc, job.folder)


def check_free(job: Job, file: Path) -> None:
    """Raises InputError where the table of volumes has the name of another table of the run."""
    is_failures = file.parent.resolve() == job.folder.resolve() and any(map(file.match, case_files.FAILURES))
    names = {case.names.resolve() for case in case_files.output_places(job.source, job.options.o, "")}
    # In BIDS the name holds the task, which only the network knows: no task's name may be used.
    without_task = re.sub("_seg-[0-9a-zA-Z]*_", "_seg-_", file.name) if job.source.kind == "bids" else file.name
    if is_failures or file.resolve().with_name(without_task) in names:
        holds = "why scans could not be segmented" if is_failures else "the names of structures"
        raise InputError(f"--vol {file}: is the file that says {holds}; give another name, e.g. {file.with_name('volumes.tsv')}")


def load(job: Job, networks: list[str]) -> Job:
    """The job with its predictor and output table."""
    start(job.options)
    from brainseg_jax.inference.prediction import output_table
    from brainseg_jax.inference.predictor import predictor

    by = predictor(networks).asked(job.options.task, job.options.tta, job.options.keep_small_components)
    return job._replace(by=by, table=output_table(by.table, job.options.ids))


def start(options: argparse.Namespace) -> None:
    """Sets what JAX reads when it is imported: the device, the number of cores, and GPU memory on demand."""
    runtime.for_prediction()
    if options.cpu:
        os.environ["JAX_PLATFORMS"] = "cpu"
    if options.threads and hasattr(os, "sched_setaffinity"):
        # XLA has no setting for its threads: it starts one per core of the process.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    elif options.threads:
        os.environ["NPROC"] = str(options.threads)  # what XLA reads where there is no CPU affinity


def command() -> None:
    """Entry point."""
    runtime.with_huge_pages()
    exit_process(main())
