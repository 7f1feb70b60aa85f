"""lm-eval's command line with our model registered: `python -m noisyrl.evaluation run --model noisyrl ...`.

It is needed for dialogues played to their end, which `--model hf` cannot do: lm-eval looks models up by name before it
loads the task files, and knows no way to name a package to import. One verb is ours: `regrade runs/NAME` grades stored
answers again (regrade.py).
"""

import sys

if __name__ == "__main__":
    if sys.argv[1:2] == ["regrade"]:
        from noisyrl.evaluation.regrade import main

        main(sys.argv[2:])
    else:
        from lm_eval.__main__ import cli_evaluate

        from noisyrl.evaluation import sampler_lm  # noqa: F401 - the import registers the model

        cli_evaluate()
