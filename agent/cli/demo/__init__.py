"""`qmp-agent demo`: runs small real guests in QEMU. The tests use the same guests.

Start at `demo_run`, the demo itself, and at `guest`, one guest.
"""
