"""Train a language model under reward noise: `python src/train.py algo=ppo noise=flip0.3`, or `--help`."""

import gc
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from noisyrl.hints import refuse_unknown_keys


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(cfg: DictConfig) -> dict[str, float]:
    from noisyrl.launch import train  # heavy imports stay out of --help and --cfg

    return train(cfg)


if __name__ == "__main__":
    gc.disable()  # saves a tenth of a second of start-up; on again once the experiment is built
    try:
        refuse_unknown_keys(Path(__file__).parents[1] / "conf", "train", sys.argv[1:])
        main()
    finally:
        gc.enable()
