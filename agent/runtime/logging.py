"""The agent's own log: text for a terminal or for systemd's journal, else JSON. Each entry is exactly one line."""

import logging
import os
import sys
from datetime import UTC, datetime
from typing import Literal

import orjson

from agent.model.record import sanitize

_MAX_LINE_CHARACTERS = 8192

_SYSLOG_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_COLOURS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.CRITICAL: "\x1b[31;1m"}


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        colour = _COLOURS.get(record.levelno, "")
        return f"{when} {colour}{record.levelname.lower():7} {_one_line_text(record)}{colour and chr(27) + '[0m'}"


class _JournaldFormatter(logging.Formatter):
    """Formats text with the priority prefix that journald reads (sd-daemon(3)). journald adds the time."""

    def format(self, record: logging.LogRecord) -> str:
        return f"<{_SYSLOG_PRIORITIES.get(record.levelno, 6)}>{_one_line_text(record)}"


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC)
        entry = {
            "time": when,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _one_line_text(record),
        }
        return orjson.dumps(entry, option=orjson.OPT_UTC_Z).decode()


def _one_line_text(record: logging.LogRecord) -> str:
    """Return the message as one line without control characters. Append the exception, if any, and the file and line that raised it."""
    text = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        trace, error = record.exc_info[2], record.exc_info[1]
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
        text += f": {type(error).__name__}: {error}{where}"
    return sanitize(text, _MAX_LINE_CHARACTERS)


def configure_logging(level: str, form: Literal["auto", "text", "json"]) -> None:
    """Log to standard error.

    Args:
        level: the least severe level to log, such as `info`.
        form: the format, as in the config key `log.format`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_choose_formatter(form))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # aiokafka logs a traceback at each failed attempt. The sink logs each failure once, so aiokafka's logs are not needed.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def _choose_formatter(form: Literal["auto", "text", "json"]) -> logging.Formatter:
    if "JOURNAL_STREAM" in os.environ and form != "json":
        return _JournaldFormatter()
    return _TextFormatter() if form == "text" or (form == "auto" and sys.stderr.isatty()) else _JsonFormatter()
