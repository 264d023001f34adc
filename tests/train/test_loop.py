"""Training: exact resume, safe stops, schedule."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.checkpoint import load_checkpoint
from detector.config import DetectConfig
from detector.data.open import open_dataset
from detector.errors import InputError
from detector.models.layers import ConvBN
from detector.models.precision import compute_dtype, to_network_input
from detector.structures import Detections
from detector.train.detection import _collapse
from detector.train.distributed import Ranks
from detector.train.ema import ExponentialMovingAverage, decay_at
from detector.train.lock import run_lock
from detector.train.loop import InterruptedRunError, train
from detector.train.optim import build_optimizer, learning_rate_at

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., DetectConfig]
SHORT = ["train.max_steps=6", "train.save_every=2", "train.log_every=2", "evaluate.every=3"]


def digest(run_dir: str | None, name: str = "last.safetensors") -> str:
    assert run_dir is not None
    return hashlib.sha256((Path(run_dir) / name).read_bytes()).hexdigest()


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Sends this process a real SIGINT in the middle of a step."""
    import detector.train.loop as module

    original, sent = module.learning_rate_at, []

    def rate(at: int, config: object) -> float:
        if at == step and not sent:
            sent.append(at)
            os.kill(os.getpid(), signal.SIGINT)
        return original(at, config)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "learning_rate_at", rate)


@pytest.mark.parametrize("option", ["train.precision=fp32", "train.precision=bf16", "train.optimizer.name=muon"])
def test_resuming_is_bit_for_bit(tiny: Make, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    options = [*SHORT, option]
    straight = tiny(options, run="run")
    metrics = train(straight)
    assert straight.run_dir is not None
    record = Path(straight.run_dir, "metrics.jsonl").read_text()
    weights, best = digest(straight.run_dir), digest(straight.run_dir, "best.safetensors")
    Path(straight.run_dir).rename(Path(straight.run_dir).with_name("first"))  # run_dir is in the config: use it again

    stopped = tiny(options, run="run")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(InterruptedRunError, match="step 4"):
            train(stopped)
    resumed = train(stopped, resume=True)
    assert digest(stopped.run_dir) == weights
    assert digest(stopped.run_dir, "best.safetensors") == best
    assert Path(stopped.run_dir or "", "metrics.jsonl").read_text() == record
    for name in ("ap", "ap50", "per_class"):
        assert resumed[name] == metrics[name]


def test_training_on_nothing_is_refused_before_the_first_step(tiny: Make, tiny_data: Path, tmp_path: Path) -> None:
    content = json.loads((tiny_data / "train.json").read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    (tmp_path / "crowd.json").write_text(json.dumps(content))
    (tmp_path / "val.json").write_text((tiny_data / "val.json").read_text())
    (tmp_path / "images").symlink_to(tiny_data / "images")
    config = tiny([f"data.root={tmp_path}", "data.train=crowd.json", "data.val=val.json", "data.synthetic=null"])
    with pytest.raises(InputError, match=r"\(crowd.json\): no object to learn .* all \d+ of them crowd"):
        train(config)
    assert not Path(config.run_dir or "").exists()


def test_a_signal_during_the_last_evaluation_stops_before_the_report(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import detector.train.loop as module

    original = module._evaluate

    def interrupted(*arguments: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)  # type: ignore[arg-type]

    config = tiny(["train.max_steps=1", "train.num_workers=0"])
    with monkeypatch.context() as patch:
        patch.setattr(module, "_evaluate", interrupted)
        with pytest.raises(InterruptedRunError, match="stopped before the report"):
            train(config)
    assert not (Path(config.run_dir or "") / "report.html").exists()
    assert "ap50" in train(config, resume=True)
    assert (Path(config.run_dir or "") / "report.html").exists()


def test_a_second_training_in_the_same_folder_is_refused(tiny: Make) -> None:
    config = tiny(["train.max_steps=1", "evaluate.every=0", "train.num_workers=0"])
    run_dir = Path(config.run_dir or "")
    with run_lock(run_dir, Ranks(0, 1, torch.device("cpu"))):
        with pytest.raises(InputError, match="another training is running in it; wait for it"):
            train(config)
        assert [path.name for path in run_dir.iterdir()] == [".lock"]
    assert not run_dir.exists(), "a folder in which nothing came to be goes with its lock"
    train(config)
    assert not (run_dir / ".lock").exists()


def test_a_run_is_not_overwritten(tiny: Make) -> None:
    config = tiny(["train.max_steps=1", "evaluate.every=0"])
    train(config)
    with pytest.raises(InputError, match="holds a run already; add --resume"):
        train(config)
    again = train(config, resume=True)  # already finished: only evaluates
    assert "ap50" in again


def test_best_weights_without_their_run_are_not_deleted(tiny: Make) -> None:
    config = tiny(["train.max_steps=1"])
    best = Path(config.run_dir or "") / "best.safetensors"
    best.parent.mkdir()
    best.write_bytes(b"precious")
    with pytest.raises(InputError, match="exists without its run"):
        train(config)
    assert best.read_bytes() == b"precious"


def test_an_image_that_stops_the_evaluation_loses_no_training(tiny: Make, tiny_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(tiny_data, root)
    image = root / "images/val_00003.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    config = tiny(["train.max_steps=2", f"data.root={root}"])
    with pytest.raises(InputError, match=r"val_00003.jpg: is not a readable image"):
        train(config)
    assert load_checkpoint(Path(config.run_dir or "") / "last.safetensors").info["step"] == 2
    image.write_bytes(whole)
    assert "ap50" in train(config, resume=True)


def test_resume_refuses_another_network(tiny: Make) -> None:
    train(tiny(["train.max_steps=1"]))
    with pytest.raises(InputError, match="its model section differs"):
        train(tiny(["train.max_steps=1", "model.neck.attention=none"]), resume=True)


def test_resume_with_other_settings_is_refused_or_recorded(tiny: Make) -> None:
    config = tiny(["train.max_steps=1", "evaluate.every=0"])
    train(config)
    changed = tiny(["train.max_steps=2", "evaluate.every=0", "train.batch_size=4", "train.num_workers=0"])
    with pytest.raises(InputError, match=r"train.batch_size: 8 -> 4; train.max_steps: 1 -> 2\); .*--allow-change"):
        train(changed, resume=True)
    train(changed, resume=True, allow_change=True)
    saved = load_checkpoint(Path(config.run_dir or "", "last.safetensors"))
    assert saved.info["step"] == 2
    assert saved.info["changes"] == ["step 1: train.batch_size: 8 -> 4", "step 1: train.max_steps: 1 -> 2"]


def test_one_image_is_learnt_by_heart_without_augmentation(tiny: Make, tiny_data: Path, tmp_path: Path) -> None:
    """Without any noise the first steps overshoot; the loss must bring the boxes back."""
    content = json.loads((tiny_data / "train.json").read_text())
    image = content["images"][0]
    content["images"] = [image]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] == image["id"]]
    (tmp_path / "one.json").write_text(json.dumps(content))
    (tmp_path / "images").symlink_to(tiny_data / "images")
    still = ["mosaic=0", "jitter=0", "horizontal_flip=0", "multi_scale=null", "hue=0", "saturation=1", "exposure=1"]
    config = tiny(
        [
            *(f"data.root={tmp_path / 'one.json'}", "data.train=all", "data.val=all", "data.synthetic=null"),
            *("train.max_steps=300", "train.batch_size=4", "train.subdivisions=1", "evaluate.every=0"),
            *("train.precision=fp32", "train.num_workers=0", *(f"augment.{one}" for one in still)),
        ]
    )
    assert train(config)["ap50"] > 0.7, "0.00 where the boxes run away"


def test_a_collapse_is_said() -> None:
    flat = Detections(np.array([[1, 1, 1, 9]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    healthy = Detections(np.array([[1, 1, 5, 9]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    message = _collapse({"ap50": 0.0}, [(0, flat), (1, flat), (2, healthy)])
    assert "2 of 3 boxes have no width or height: the network has collapsed" in message
    assert not _collapse({"ap50": 0.0}, [(0, flat), (1, healthy)])
    assert not _collapse({"ap50": 0.1}, [(0, flat)])
    assert not _collapse({"ap50": 0.0}, [])


def test_a_value_that_is_not_finite_names_step_place_and_images_and_saves_the_batch(tiny: Make) -> None:
    config = tiny(["train.learning_rate=1e30", "train.burn_in=0", "train.precision=fp32", "train.max_steps=9"])
    with pytest.raises(InputError, match=r"step \d+: the first value .* is in .*, images \[\d+.*, saved in") as caught:
        train(config)
    (folder,) = Path(config.run_dir or "").glob("nonfinite_step_*")
    assert str(folder) in str(caught.value)
    saved = open_dataset(folder / "instances.json")
    assert len(saved) == config.train.batch_size // config.train.subdivisions
    assert set(saved.class_names) == set(config.model.class_names)
    assert saved.read(0).image.shape[0] in {64, 96, 128}, "a size of this multi-scale run"


def test_what_a_run_leaves_behind(trained_run: Path) -> None:
    assert {path.name for path in trained_run.iterdir()} == {
        "best.safetensors",
        "config.yaml",
        "last.safetensors",
        "metrics.jsonl",
        "predictions.jpg",
        "report.html",
        "tensorboard",
    }
    lines = [json.loads(line) for line in (trained_run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 6
    assert "val/ap50" in lines[-1]
    checkpoint = load_checkpoint(trained_run / "last.safetensors")
    assert checkpoint.group("momentum").keys() == {name for name, _ in _parameters(checkpoint)}
    assert checkpoint.group("ema").keys() == checkpoint.group("model").keys()


def _parameters(checkpoint: object) -> list[tuple[str, torch.Tensor]]:
    from detector.models.build import build_detector

    return list(build_detector(checkpoint.model).named_parameters())  # type: ignore[attr-defined]


def test_training_learns(tiny: Make, tmp_path: Path) -> None:
    """Eight images, over and over: the loss must fall below half, or the parts of training do not work together."""
    config = tiny(
        [
            f"data.root={tmp_path / 'eight'}",
            "data.synthetic={num_train: 8, num_val: 1, image_hw: [128, 128]}",
            "augment={jitter: 0.0, hue: 0.0, saturation: 1.0, exposure: 1.0, horizontal_flip: 0.0, vertical_flip: 0.0,"
            " rotate90: 0.0, blur: 0.0, noise: 0.0, mosaic: 0.0, multi_scale: null}",
            "train.max_steps=50",
            "train.log_every=5",
            "train.burn_in=5",
            "evaluate.every=0",
        ]
    )
    train(config)
    lines = [json.loads(x) for x in Path(config.run_dir or "", "metrics.jsonl").read_text().splitlines()]
    totals = [line["loss/total"] for line in lines if "loss/total" in line]
    assert totals[-1] < 0.5 * totals[0], totals


SCHEDULE_OPTIONS = ["train.policy={name: steps, steps: [400, 450], scales: [0.1, 0.1]}", "train.max_steps=500"]


@pytest.mark.parametrize(
    ("step", "share", "reason"),
    [
        (0, (1 / 100) ** 4, "burn-in starts low"),
        (49, (50 / 100) ** 4, "burn-in, power 4"),
        (99, 1, "burn-in is over"),
        (398, 1, "before the first decay"),
        (399, 0.1, "batch 400"),
        (449, 0.01, "batch 450"),
    ],
)
def test_paper_schedule(tiny: Make, step: int, share: float, reason: str) -> None:
    config = tiny([*SCHEDULE_OPTIONS, "train.burn_in=100", "train.learning_rate=0.001"]).train
    assert learning_rate_at(step, config) == pytest.approx(0.001 * share), reason


def test_cosine_schedule(tiny: Make) -> None:
    config = tiny(
        ["train.burn_in=0", "train.max_steps=100", "train.policy.final_scale=0.1", "train.learning_rate=1.0"]
    ).train
    assert learning_rate_at(49, config) == pytest.approx(0.55)
    assert learning_rate_at(99, config) == pytest.approx(0.1)


def test_weight_decay_applies_to_convolutions_only(tiny: Make) -> None:
    network = torch.nn.Sequential(ConvBN(3, 4, 3), torch.nn.Conv2d(4, 2, 1))
    decayed, free = build_optimizer(network, tiny().train).param_groups
    assert [p.ndim for p in decayed["params"]] == [4, 4]
    assert [p.ndim for p in free["params"]] == [1, 1, 1]
    assert (decayed["weight_decay"], free["weight_decay"]) == (5e-4, 0.0)


def test_subdivisions_do_not_change_the_gradient(tiny: Make) -> None:
    """Without batch statistics the parts add up to the whole batch; checked here on the loss terms."""
    from detector.data.loader import training_batches
    from detector.models.build import build_detector
    from detector.train.detection import build_loss, open_split

    sums = []
    for parts in (1, 4):
        config = tiny([f"train.subdivisions={parts}", "train.num_workers=0", "train.max_steps=1"])
        torch.manual_seed(0)
        network = build_detector(config.model).eval()
        loss = build_loss(config, network)
        loader = training_batches(open_split(config, "train"), config, start_step=0)
        with torch.no_grad():
            terms = [
                loss(
                    network(to_network_input(b.images, torch.device("cpu"))),
                    b.boxes_xyxy,
                    b.labels,
                    batch_size=config.train.batch_size,
                )
                for b in loader
            ]
        assert len(terms) == parts
        sums.append(float(sum(t.total() for t in terms)))
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)


def test_ema_follows() -> None:
    assert decay_at(0, 0.999) == pytest.approx(0.1)
    assert decay_at(10**6, 0.999) == 0.999
    network = torch.nn.BatchNorm2d(1)
    ema = ExponentialMovingAverage(network, 0.5)
    with torch.no_grad():
        network.weight.fill_(3.0)
        network.num_batches_tracked.fill_(7)  # type: ignore[union-attr, operator]
    ema.update(network, 10**6)
    average = ema.average.state_dict()
    assert average["weight"].item() == pytest.approx(2.0)  # halfway from 1 to 3
    assert average["num_batches_tracked"].item() == 7


def test_precision_names() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert compute_dtype("bf16", cpu) == torch.bfloat16
    assert compute_dtype("fp32", gpu) == compute_dtype("tf32", gpu) == torch.float32
    assert compute_dtype("fp16", gpu) == torch.float16


@pytest.mark.parametrize(("native", "supported"), [(True, True), (True, False), (False, True)])
def test_auto_takes_bf16_where_the_processor_computes_it(
    monkeypatch: pytest.MonkeyPatch, native: bool, supported: bool
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    expected = torch.bfloat16 if native and supported else torch.float32
    assert compute_dtype("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_auto_takes_bf16_where_the_gpu_computes_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert compute_dtype("auto", torch.device("cuda")) == dtype
