"""Transport over libvirt: domains are discovered and polled by libvirt's own calls, or by QMP passed through libvirt.

`discovery` connects to one libvirtd and lists its domains, `domain_registry` keeps their monitors and connections, and `domain` is a
connection to one of them. `executors` execute QMP commands for it, with the tables of `qmp_translation`, the statistics of
`stats_batcher` and the XML read by `devices`. `library`, `connection_pool` and `event_connection` keep libvirt's blocking library off
the event loop.
"""
