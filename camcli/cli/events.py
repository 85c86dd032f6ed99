"""Messages as JSON lines."""

from __future__ import annotations

import json
from datetime import UTC, datetime


def event_line(event: str, **fields: object) -> str:
    """A JSON object on one line; time: ISO 8601 in UTC."""
    return json.dumps({"event": event, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields})
