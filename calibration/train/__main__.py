"""Trains the tokenizer and both models: `python -m calibration.train`."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import Idefics3ForConditionalGeneration

from calibration.train.loop import Schedule, Trainer
from calibration.train.model import CLOUD, EDGE, build, build_processor, save
from calibration.train.tokenizer import train_tokenizer

logger = logging.getLogger(__name__)

MODELS = Path(__file__).resolve().parent.parent / "models"
RUNS = {
    "edge": (EDGE, Schedule(400, 2e-3, 600, 1.5e-3, 0.3, 20.0, 100, 16)),
    "cloud": (CLOUD, Schedule(500, 2e-3, 3000, 1.2e-3, 0.3, 60.0, 200, 16)),
}


@dataclass(frozen=True)
class Options:
    """What the command line says about a run."""

    out: Path
    minutes: float | None
    rate: float | None
    seed: int
    resume: bool
    threads_file: Path | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and trains the chosen models, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m calibration.train", description=__doc__)
    parser.add_argument("--only", choices=list(RUNS), help="train this model alone")
    parser.add_argument("--minutes", type=float, help="deadline per model, in place of its own")
    parser.add_argument("--rate", type=float, help="highest rate per model, in place of its own")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--resume", action="store_true", help="go on from the weights in --out (with another --seed)")
    parser.add_argument("--out", type=Path, default=MODELS, help="folder for shapes-edge and shapes-cloud")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--threads-file", type=Path, help="a file with a thread count, read again at every log line")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    options = Options(given.out, given.minutes, given.rate, given.seed, given.resume, given.threads_file)
    for name in [given.only] if given.only else list(RUNS):
        train(name, options)


def train(name: str, options: Options) -> None:
    """Trains one model and saves it, with its processor, on the way and at the end."""
    widths, schedule = RUNS[name]
    folder = options.out / f"shapes-{name}"
    if options.minutes is not None:
        schedule = replace(schedule, minutes=options.minutes)
    if options.rate is not None:
        schedule = replace(schedule, answer_rate=options.rate)
    torch.manual_seed(options.seed)
    tokenizer = train_tokenizer()
    model = build(widths, tokenizer)
    if options.resume:
        trained = Idefics3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        model.load_state_dict(trained.state_dict())
        schedule = replace(schedule, seeing_steps=0)
    logger.info("%s: %.2f M parameters", name, sum(parameter.numel() for parameter in model.parameters()) / 1e6)

    def follow_threads() -> None:
        if options.threads_file is not None and options.threads_file.exists():
            torch.set_num_threads(int(options.threads_file.read_text(encoding="utf-8")))

    trainer = Trainer(model, build_processor(tokenizer), schedule, options.seed)
    trainer.train(lambda: save(model, tokenizer, folder), follow_threads)


if __name__ == "__main__":
    main()
