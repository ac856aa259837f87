"""What we know about QEMU, as tables: metrics (field to name, unit, type, help) and events (event to category, severity, subject)."""
