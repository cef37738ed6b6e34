"""Write an example manifest, or (--from-sinfo) a profile of this Slurm cluster."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add PATH, --from-sinfo and --overwrite."""
    parser.add_argument(
        "path",
        metavar="PATH",
        nargs="?",
        help="the file to write (default: manifest.toml, or clusters/NAME.toml with the cluster's name)",
    )
    parser.add_argument("--from-sinfo", action="store_true", help="write a cluster profile from the output of sinfo")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print the next steps."""
    import hpcq

    if not arguments.from_sinfo:
        written = hpcq.init_manifest(arguments.path or "manifest.toml", overwrite=arguments.overwrite)
        print(f"Wrote {written}: one small model with two schemes, on this machine. Edit it, then run:")
        print(f"  hpcq stage {written} && hpcq submit {written}")
        print("On a cluster, `hpcq init --from-sinfo` writes a profile for cluster.profile.")
        return 0
    written = hpcq.init_profile(arguments.path, overwrite=arguments.overwrite)
    checks = [line.strip() for line in written.read_text(encoding="utf-8").splitlines() if "CHECK:" in line]
    skipped = [line for line in written.read_text(encoding="utf-8").splitlines() if line.startswith("# Skipped:")]
    print(f"Wrote {written} from the output of sinfo. Check these lines:")
    for line in (*checks, *skipped):
        print(f"  {line}")
    print(f"Then run: hpcq plan MANIFEST -O cluster.profile={written}")
    return 0
