"""Trains a detector.

Example:
    python tools/train.py configs/quickstart.yaml train.max_steps=100 run_dir=/tmp/run
    python tools/train.py configs/csppelee_efm.yaml --resume
"""

from __future__ import annotations

import argparse

from detector.cli import print_json, run, say
from detector.config import load_config


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="replace a field of the config")
    parser.add_argument("--resume", action="store_true", help="go on with the run in run_dir, or start it")
    parser.add_argument("--json", action="store_true", help="print the final metrics as JSON on stdout")
    options = parser.parse_intermixed_args(arguments)
    config = load_config(options.config, options.overrides)

    from detector.engine.train import InterruptedRunError, train
    from detector.metrics.table import metrics_table

    try:
        metrics = train(config, resume=options.resume, progress=True)
    except InterruptedRunError as stop:
        say(f"{stop}: python tools/train.py {options.config} {' '.join([*options.overrides, '--resume'])}")
        return 130
    if options.json:
        print_json({**metrics, "run_dir": config.run_dir})
    else:
        print(metrics_table(metrics))
        print(f"{metrics['images_per_second']:.1f} images/s; weights in {config.run_dir}")
    return 0


if __name__ == "__main__":
    run(main)
