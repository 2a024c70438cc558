"""Where the time of one request goes: its phases from the edge through the queue to the engine, told in OpenTelemetry's terms."""
