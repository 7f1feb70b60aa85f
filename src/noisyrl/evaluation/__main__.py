"""lm-eval's command line with our model registered: `python -m noisyrl.evaluation run --model noisyrl ...`.

Everything else is lm-eval's own. It is needed for dialogues played to their end, which `--model hf` cannot do:
lm-eval looks models up by name before it loads the task files, and knows no way to name a package to import.
"""

from noisyrl.evaluation import sampler_lm  # noqa: F401 - the import registers the model

if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
