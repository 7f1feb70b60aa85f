"""Screen noise regimes on a run's rollouts, without training: `python src/probe.py run=NAME 'noises=[none,het3]'`."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from noisyrl.hints import refuse_unknown_keys

CONF = Path(__file__).parents[1] / "conf"


@hydra.main(version_base="1.3", config_path="../conf", config_name="probe")
def main(cfg: DictConfig) -> None:
    from noisyrl.alignment import screen_from_config  # heavy imports stay out of --help
    from noisyrl.launch import reported

    print(reported(lambda: screen_from_config(cfg, CONF)))


if __name__ == "__main__":
    refuse_unknown_keys(CONF, "probe", sys.argv[1:])
    main()
