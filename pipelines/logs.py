"""How every command logs: to stderr, with time, level and module; libraries only what is wrong."""

import logging
import sys

NOISY = ("botocore", "ray.data", "alembic", "mlflow.system_metrics", "pyvips")


def to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr,
                        force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
