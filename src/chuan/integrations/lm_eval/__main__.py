"""`python -m chuan.integrations.lm_eval ...` is `lm_eval ...` that knows `--model chuan`.

The harness finds models by names that somebody has registered before its command line is read; it has no entry points.
"""

from lm_eval.__main__ import cli_evaluate

cli_evaluate()
