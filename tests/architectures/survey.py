"""Run every check on every case, print what is not right, and keep the table."""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
from transformers.utils import logging

from tests.architectures.cases import CASES, is_right
from tests.architectures.checks import survey
from tests.architectures.plain import PLAIN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path)
    parser.add_argument("names", nargs="*", help="cases to run again, the rest of the table kept")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    kept = arguments.to and arguments.names and arguments.to.exists()
    table = json.loads(arguments.to.read_text()) if kept else {}
    if arguments.to:
        arguments.to.parent.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        if arguments.names and case.name not in arguments.names:
            continue
        begun = time.perf_counter()
        results, subject = survey(case)
        seconds = time.perf_counter() - begun
        table[case.name] = {
            "kind": case.kind,
            "family": getattr(getattr(subject.base, "config", None), "model_type", "") if case not in PLAIN else "",
            "one_by_one": subject.one_by_one,
            "checks": {n: asdict(r) | {"right": is_right(case, n, r)} for n, r in results.items()},
        }
        failed = {name: result for name, result in results.items() if not is_right(case, name, result)}
        print(f"{case.name}: {'right' if not failed else ''} ({seconds:.1f} s)", flush=True)
        for name, result in failed.items():
            print(f"    {name}: {result.outcome}: {result.detail[:300]}", flush=True)
        if arguments.to:
            arguments.to.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
