"""Transport over libvirt: discovers and polls domains by libvirt's own calls, or by QMP passed through libvirt.

Start at `discovery`, which connects to one libvirtd and lists its domains. `domain_registry` keeps the domains' monitors and connections.
`domain` is a connection to one domain. `executors` executes QMP commands for a domain, with the tables of `qmp_translation`, the
statistics from `stats_batcher`, and the devices that `devices` parses from the XML. `client_library`, `connection_pool` and
`event_connection` call libvirt's blocking library in threads. `auto_discovery` finds the libvirt daemons of a host, `lifecycle` follows a
domain's start, end and migration, `storage_pools` lists pools for agent.host.pools, and `guest_info` queries guest
agents.
"""
