"""The process itself: systemd notification, logging, garbage collection."""
