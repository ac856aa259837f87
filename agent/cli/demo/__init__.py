"""`qmp-agent demo`: runs small real guests in QEMU. The tests use the same guests."""
