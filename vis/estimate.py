"""What a run would do and what it would cost."""

from omegaconf import DictConfig


def dry_run(config: DictConfig) -> str:
    return ""
