"""Transport over libvirt: discovers and polls domains by libvirt's own calls, or by QMP passed through libvirt.

Start at `discovery`, which connects to one libvirtd and lists its domains.

- `daemon_discovery` finds the libvirt daemons of a host.
- `domain_registry` keeps the domains' monitors and connections, and `domain_connection` is a connection to one domain.
- `executors` executes QMP commands for a domain. `stats_batcher` fetches libvirt's statistics, and `devices` parses the domain's XML.
  `qmp_results_from_stats` makes QMP results from the statistics and the devices.
- `libvirt_python`, `connection_pool` and `event_connection` call libvirt's blocking library in threads.
- `lifecycle` follows a domain's start, end and migration.
- `guest_info` queries guest agents, and `storage_pools` lists storage pools for agent.host.pools.
"""
