"""Memory and time of one meta-gradient: mass.inner beside the plain unroll, torchopt, higher, betty and JAX.

    python benchmarks/metagrad.py --plan quick                 # some minutes
    python benchmarks/metagrad.py --plan full --out runs/metagrad   # hours; continues where it stopped
    python benchmarks/metagrad.py --report runs/metagrad       # tables and plots again, from what was measured

The peers are installed from benchmarks/requirements.txt, best in an environment of their own; one that is not there is
shown as such. Every point is a process of its own; see metagrad_run.py for how, metagrad_measure.py for what is
measured, metagrad_problem.py for the problem. The run folder gets points/, results.json, table.md and the plots.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import metagrad_plan
from metagrad_problem import Setting


def main() -> None:
    args = _arguments()
    if args.point or args.reference:
        _work(args.point, args.reference)
        return
    from metagrad_report import report

    if args.report:
        report(args.report)
        return
    from metagrad_run import GIB, Options, run

    base = Setting(device=args.device)
    entries = metagrad_plan.chosen(metagrad_plan.PLANS[args.plan](base), args.settings, args.routes)
    args.out.mkdir(parents=True, exist_ok=True)
    run(entries, Options(args.out, args.repeats, args.threads, args.max_gib * GIB))
    report(args.out)


def _work(point: str, reference: str) -> None:
    """What a process of its own does. Replies go to the real standard output; what libraries print goes to stderr."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as replies:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        from metagrad_measure import Point, serve, write_reference

        if point:
            serve(Point.read(point), sys.stdin, replies)
        else:
            asked = json.loads(reference)
            found = write_reference(Setting(**asked["setting"]), Path(asked["file"]), asked["threads"])
            replies.write(json.dumps(found))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", choices=metagrad_plan.PLANS, default="quick")
    parser.add_argument("--out", type=Path, default=Path("runs/metagrad"), help="run folder")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="measure nothing, report what a run folder holds")
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats of each point")
    parser.add_argument("--threads", type=int, default=1, help="cores that a route may use")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--max_gib", type=float, default=10.0, help="points that need more memory are skipped")
    parser.add_argument("--settings", nargs="*", default=[], help="only settings whose key contains one of these")
    parser.add_argument("--routes", nargs="*", default=[], help="only these routes, and the unroll")
    parser.add_argument("--point", default="", help=argparse.SUPPRESS)
    parser.add_argument("--reference", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
