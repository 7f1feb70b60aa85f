"""Train a language model under reward noise: `python src/train.py algo=ppo noise=flip0.3`, or `--help`."""

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(cfg: DictConfig) -> dict[str, float]:
    from noisyrl.launch import train  # heavy imports stay out of --help and --cfg

    return train(cfg)


if __name__ == "__main__":
    main()
