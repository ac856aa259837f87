"""Transport over libvirt: discovers and polls domains by libvirt's own calls, or by QMP passed through libvirt.

`discovery` connects to one libvirtd and lists its domains. `domain_registry` keeps the domains' monitors and connections, and `domain`
is a connection to one domain. `executors` execute QMP commands for a domain, with the tables of `qmp_translation`, the statistics of
`stats_batcher`, and `devices`, which reads the XML. `library`, `connection_pool` and `event_connection` run libvirt's blocking library
outside the event loop.
"""
