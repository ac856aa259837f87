"""The config of `qmp-agent capture` and `replay`."""

import argparse

from agent.config.loader import load_config
from agent.config.model import Config
from agent.monitors import DialConfig
from agent.runtime.logging import configure_logging


def load_config_and_configure_logging(parsed: argparse.Namespace) -> Config:
    """Return the config that --config names, or else the default config, and configure the log.

    The subcommands `capture` and `replay` do not use the config's monitors, sinks, endpoint or Alertmanager.
    """
    configure_logging("warning", "auto")
    return load_config(parsed.config) if parsed.config is not None else Config(monitors=[DialConfig(dial="/nowhere")])
