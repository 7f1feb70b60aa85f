"""Score a finished run: `python src/eval.py run=NAME [eval=testbed]`.

Not called evaluate.py: lm-eval imports a Hugging Face module of that name.
"""

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="../conf", config_name="eval")
def main(cfg: DictConfig) -> None:
    from noisyrl.evaluation.run_folder import score_from_config  # heavy imports stay out of --help
    from noisyrl.launch import reported

    for name, value in reported(lambda: score_from_config(cfg)).items():
        print(f"{name:40} {value:.4f}")


if __name__ == "__main__":
    main()
