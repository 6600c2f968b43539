"""The flags of `brainseg predict`."""

import argparse
from pathlib import Path

from brainseg_jax.cli.arguments import Parser, path_ending
from brainseg_jax.pretrained import NETWORKS


def _part(text: str) -> tuple[int, int]:
    numbers = text.split("/")
    if len(numbers) != 2 or not all(map(str.isdecimal, numbers)) or not 1 <= int(numbers[0]) <= int(numbers[1]):
        raise argparse.ArgumentTypeError(f"{text} is no part; give i/N with i from 1 to N, e.g. 1/4")
    return int(numbers[0]), int(numbers[1])


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of cores; give 1 or more")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command's argument parser, whose errors are InputErrors."""
    parser = Parser("brainseg predict", description="Segments brain MRI, on each scan's own grid.", allow_abbrev=False)
    parser.add_argument("--i", type=Path, required=True, metavar="PATH", help="a scan, a folder of scans, a list (.csv, .tsv), or BIDS")
    enhanced = "for a BIDS data set: includes scans after a contrast agent (ce-…)"
    parser.add_argument("--contrast-enhanced", action="store_true", help=enhanced)
    also = "a further image of each subject, for a network with several channels: a file with a scan, a folder with a folder; repeatable"
    parser.add_argument("--also", type=Path, action="append", default=[], metavar="PATH", help=also)
    parser.add_argument("--o", type=Path, required=True, metavar="PATH", help="the output folder; for a single scan, the label map")
    which = "a network of the package: any (the default), for any contrast, skull-stripped or not; or t1, for T1 only"
    parser.add_argument("--network", choices=tuple(NETWORKS), help=which)
    network = "a network of your own; several, with commas, are an ensemble"
    parser.add_argument("--checkpoint", default="", metavar="FOLDERS", help=network)
    parser.add_argument("--task", default="", help="the structures: skull, four, thirtythree, or a label table (all of the network's)")
    table, vol = path_ending(".tsv", ".csv", kind="a table"), "writes the volumes of all structures and scans to this .tsv or .csv"
    parser.add_argument("--vol", type=table, metavar="TABLE", help=vol)
    report = "writes the QC report of all cases of the output folder: pictures, flags, ratings"
    parser.add_argument("--qc", type=path_ending(".html", kind="a QC report"), metavar="REPORT", help=f"{report} (.html)")
    parser.add_argument("--post", action="store_true", help="also writes the probability of each class, as one 4-D file")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation by a left-right flip; takes twice as long")
    small = "keeps small connected components apart from their structure, which otherwise get the label of the voxels around them"
    parser.add_argument("--keep-small-components", "--islands", action="store_true", help=small)
    ids = "ids of FreeSurfer or of the label table (FreeSurfer's, if every structure has one)"
    parser.add_argument("--ids", choices=("freesurfer", "table"), default="auto", help=ids)
    parser.add_argument("--cpu", action="store_true", help="computes on the CPU")
    parser.add_argument("--threads", type=_count, metavar="N", help="the number of cores to use at most (all)")
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="i/N", help="segments the i-th of N parts, for N jobs with one --o")
    parser.add_argument("--overwrite", action="store_true", help="segments finished scans again")
    return parser
