"""What noise did to the rewards of a run, on one page and in one figure: `python src/ledger.py run=NAME`."""

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="../conf", config_name="ledger")
def main(cfg: DictConfig) -> None:
    from noisyrl.launch import reported  # heavy imports stay out of --help
    from noisyrl.ledger_page import page_from_config

    print(reported(lambda: page_from_config(cfg)))


if __name__ == "__main__":
    main()
