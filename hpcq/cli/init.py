"""Write a first manifest, or (--from-sinfo) the profile of the cluster that this machine belongs to."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """PATH, --from-sinfo, --overwrite."""
    parser.add_argument(
        "path",
        metavar="PATH",
        nargs="?",
        help="the file to write; by default manifest.toml, or clusters/NAME.toml by the cluster's name",
    )
    parser.add_argument("--from-sinfo", action="store_true", help="write a cluster profile from what Slurm says")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")


def run(arguments: argparse.Namespace) -> int:
    """Write the file, and say what to read and to type next."""
    from hpcq import api

    path = Path(arguments.path) if arguments.path else None
    if not arguments.from_sinfo:
        written = api.init_manifest(path, overwrite=arguments.overwrite)
        print(f"Wrote {written}: one small model in two number formats, on this machine. Change it, and type:")
        print(f"  hpcq stage {written} && hpcq plan {written} && hpcq submit {written}")
        print("On a cluster, `hpcq init --from-sinfo` writes the profile to name as cluster.profile.")
        return 0
    written = api.init_profile(path, overwrite=arguments.overwrite)
    checks = [line.strip() for line in written.read_text(encoding="utf-8").splitlines() if "CHECK:" in line]
    left_out = [line for line in written.read_text(encoding="utf-8").splitlines() if line.startswith("# Left out:")]
    print(f"Wrote {written}, from what sinfo says. Read it once.")
    for line in (*checks, *left_out):
        print(f"  {line}")
    print(f"Then: hpcq plan MANIFEST -O cluster.profile={written}")
    return 0
