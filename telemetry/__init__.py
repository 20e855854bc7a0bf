"""Names, spans, metrics and logs, on the OpenTelemetry API alone; the server chooses the SDK."""
