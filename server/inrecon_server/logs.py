"""How log lines look: as text for people, or as JSON for those who collect them."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["text", "json"]


class _Json(logging.Formatter):
    """One object a line: time (UTC), level, logger, message, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told)


def log_to_stderr(level: int | str, form: LogFormat) -> None:
    """Log from `level` on, for this process."""
    handler = logging.StreamHandler()
    text = "%(asctime)s %(levelname)-8s %(name)s: %(message)s"
    handler.setFormatter(_Json() if form == "json" else logging.Formatter(text))
    logging.basicConfig(level=level, handlers=[handler])
