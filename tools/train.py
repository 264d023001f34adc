"""Trains a detector, or a classifier (a config with `task: classify`).

Example:
    python tools/train.py --data my_images --minutes 30                   # any labelled images; --plan only shows
    python tools/train.py yolov4-tiny --data my_images --weights yolov4-tiny       # a public model, for your classes
    python tools/train.py configs/quickstart.yaml train.max_steps=100 run_dir=/tmp/run
    python tools/train.py configs/csppelee_efm.yaml --resume
    python tools/train.py configs/csppelee_efm_bccd.yaml --replay 120     # the batch of step 120 as an image
    torchrun --nproc-per-node 2 tools/train.py configs/csppelee_efm.yaml --resume
    python tools/train.py yolov4-tiny.cfg data.root=data/bccd data.train=trainval --names bccd.names
"""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.cli import Parser, print_json, print_note, run
from detector.config import ClassifyConfig, DetectConfig, RunConfig, build_config, load_run_config, to_yaml
from detector.errors import InputError
from detector.runtime.threads import share_processors
from detector.zoo.table import cfg_of, weights_of

if TYPE_CHECKING:
    import argparse

PROJECT_ROOT = Path(__file__).resolve().parents[1]


def load_experiment(path: str, overrides: list[str], names: str | None) -> RunConfig:
    """The config from a YAML file, a Darknet cfg, or the name of a public model."""
    path = cfg_of(path)
    if not path.endswith(".cfg"):
        return load_run_config(path, overrides)

    from detector.darknet import load_darknet
    from detector.darknet.names import find_names, read_names
    from detector.darknet.recipe import experiment_tree

    network = load_darknet(path)
    num_classes = network.yolo_sections[0].num_classes if network.yolo_sections else 0
    class_names = read_names(Path(names)) if names else find_names(Path(path), num_classes)
    return build_config(experiment_tree(network, class_names), Path(path), overrides)


def config_for_data(options: argparse.Namespace) -> RunConfig:
    """The config of a run on the user's data: that of the run to resume, or a new plan, which is printed."""
    from detector.config.load import apply_overrides, read_tree

    if options.minutes is not None and not 0 < options.minutes < 10**5:
        raise InputError(f"--minutes: expected a number above 0, got {options.minutes:g}")
    if options.names is not None:
        raise InputError("--names: with --data the names are those of the data; model.class_names=[...] replaces them")
    overrides = list(options.overrides)
    if options.config is not None and "=" in options.config:  # no config was named
        overrides.insert(0, options.config)
        options.config = None
    default = PROJECT_ROOT / "configs/detector.yaml"
    path = Path(cfg_of(options.config)) if options.config else default
    tree = darknet_tree(path, read_tree(default)) if path.suffix == ".cfg" else read_tree(path)
    tree = apply_overrides(tree, overrides)
    note = share_processors()
    from detector.train.plan import make_plan, run_folder

    resolved = run_folder(tree, options.data) / "config.yaml"
    if options.resume and resolved.is_file():
        return load_run_config(resolved, overrides)
    plan = make_plan(tree, path, options.data, overrides, minutes=options.minutes)
    for line in (note, *plan.lines):
        if line:
            print_note(line)
    return plan.config


def darknet_tree(cfg: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe of configs/detector.yaml for the network of a cfg. Raises: InputError."""
    from detector.darknet import load_darknet
    from detector.darknet.recipe import experiment_tree

    tree = experiment_tree(load_darknet(cfg), ("object",))
    model = {"darknet_cfg": tree["model"]["darknet_cfg"], "class_names": "auto"}
    return {**recipe, "model": model, "preprocess": tree["preprocess"]}


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("config", nargs="?", help="a YAML file, see configs/, or a Darknet cfg")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="replace a field of the config")
    parser.add_argument("--resume", action="store_true", help="continue the run in run_dir, or start it")
    parser.add_argument("--allow-change", action="store_true", help="resume also with other settings; recorded")
    parser.add_argument("--weights", help="start from what fits in this file (.safetensors, or .weights for a cfg)")
    parser.add_argument("--names", help="file of class names, for a cfg (default: a *.names beside it)")
    parser.add_argument("--json", action="store_true", help="print the final metrics as JSON on stdout")
    parser.add_argument("--replay", type=int, metavar="STEP", help="draw the batch of a step instead of training")
    parser.add_argument("--show-config", action="store_true", help="print the resolved config and stop")
    parser.add_argument("--data", type=Path, metavar="PATH", help="train on this data set, see data/README.md")
    parser.add_argument("--minutes", type=float, help="with --data: how long the run may take (default 30)")
    parser.add_argument("--plan", action="store_true", help="with --data: show what was decided, and stop")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.data is not None:
        config = config_for_data(options)
        if options.plan:
            return 0
    elif options.config is None:
        raise InputError("train: give --data PATH, or name a config such as configs/quickstart.yaml")
    else:
        config = load_experiment(options.config, options.overrides, options.names)
    if options.show_config:
        print_json(asdict(config)) if options.json else print(to_yaml(config), end="")
        return 0
    if options.replay is not None:
        check_folder(config)
        config = with_parts(config)
        if isinstance(config, ClassifyConfig):
            return replay_classifier(config, options.replay, as_json=options.json)
        return replay(config, options.replay, as_json=options.json)

    note = share_processors()
    if note:
        print_note(note)

    from detector.train.distributed import first_process
    from detector.train.loop import InterruptedRunError, train

    try:
        metrics = train(
            config,
            resume=options.resume,
            allow_change=options.allow_change,
            weights=options.weights and weights_of(options.weights),
            progress=True,
        )
    except InputError:
        if first_process():
            raise
        return 2
    except InterruptedRunError as stop:
        if first_process():
            print_note(f"{stop}: {resume_command(options, config)}")
        return 130
    except KeyboardInterrupt:
        if first_process():
            print_note(f"interrupted; the last saved state is in {config.run_dir}; continue with --resume")
        return 130
    if first_process():
        print_metrics({**metrics, "run_dir": config.run_dir}, as_json=options.json)
    return 0


def resume_command(options: argparse.Namespace, config: RunConfig) -> str:
    """The command that continues an interrupted run."""
    if options.data is not None:  # all that was decided is in the run's own config
        source = [f"{config.run_dir}/config.yaml"]
    else:
        names = ["--names", options.names] if options.names else []
        source = [options.config, *options.overrides, *names]
    return shlex.join(["python", "tools/train.py", *source, "--resume"])


def print_metrics(metrics: dict[str, Any], *, as_json: bool) -> None:
    """Prints the final metrics of a training run."""
    from detector.evaluate.table import metrics_table

    if as_json:
        print_json(metrics)
        return
    print(metrics_table(metrics))
    speed = ""
    if metrics["images_per_second"]:
        waited = 100 * metrics["share_of_steps_that_waited"]
        speed = f"{metrics['images_per_second']:.1f} images/s, {waited:.1f} % of the steps waited for the loader; "
    run_dir = metrics["run_dir"]
    print(f"{speed}weights and report.html in {run_dir}")
    if "per_class" in metrics:
        quoted = shlex.quote(str(run_dir))
        print(f"next: python tools/demo.py {quoted} --video cam0")
        print(f"      python tools/eval.py {quoted}")
        print(f"      python tools/export.py {quoted} --to openvino --out {quoted}/model.xml")


def check_folder(config: RunConfig) -> None:
    """Raises: InputError when the run's folder holds a run with another network."""
    stored = Path(config.run_dir or ".") / "config.yaml"
    if stored.is_file() and load_run_config(stored).model != config.model:
        raise InputError(
            f"{stored.parent}: holds a run with another model; replay with its config.yaml, or set run_dir"
        )


def with_parts(config: RunConfig) -> RunConfig:
    """The config with the number of parts that a run here has or would have."""
    import torch

    from detector.train.parts import resolve_subdivisions

    return resolve_subdivisions(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def replay(config: DetectConfig, step: int, *, as_json: bool) -> int:
    """Draws the batch of a step into the run's folder."""
    from detector.data.synthetic import ensure_synthetic_dataset
    from detector.train.detection import open_split
    from detector.train.replay import rebuild_batch, save_batch_image

    if config.data.synthetic is not None:
        ensure_synthetic_dataset(Path(config.data.root), config.data.synthetic)
    batch = rebuild_batch(config, open_split(config, config.data.train), step)
    image = Path(config.run_dir or ".") / f"replay_{step}.jpg"
    save_batch_image(image, batch, config.model.class_names)
    if as_json:
        print_json({"step": step, "image_ids": batch.image_ids, "image": str(image)})
    else:
        print(f"step {step}: images {', '.join(map(str, batch.image_ids))}; {image}")
    return 0


def replay_classifier(config: ClassifyConfig, step: int, *, as_json: bool) -> int:
    """Writes the images of a classifier's batch into the run's folder."""
    from detector.train.replay import rebuild_class_batch, save_class_batch

    batch = rebuild_class_batch(config, step)
    folder = Path(config.run_dir or ".") / f"replay_{step}"
    save_class_batch(folder, batch)
    if as_json:
        print_json({"step": step, "image_ids": batch.image_ids, "folder": str(folder)})
    else:
        print(f"step {step}: images {', '.join(map(str, batch.image_ids))}; {folder}")
    return 0


if __name__ == "__main__":
    run(main)
