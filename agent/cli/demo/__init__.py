"""`qmp-agent demo`: runs small guests in QEMU. The tests use the same guests.

Start at `demo_run`, which runs the demo, and at `guest`, which starts and stops one guest.
"""
