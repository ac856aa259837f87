"""Prometheus alert rules about monitors and about the agent itself, which cannot report its own failure. A row for each rule."""

from typing import Final

from deploy.prometheus.alert_rule import PrometheusRule

HEALTH_RULES: Final = (
    PrometheusRule(
        alert="QemuMonitorStalled",
        group="qemu-monitors",
        expr="qemu_vm_up == 0",
        hold="1m",
        severity="critical",
        summary="{{ $labels.vm }}: QEMU has not responded for a minute; its main loop hangs, and the guest may hang "
        "too",
        cause="QEMU's main loop hangs, most often on the host's storage, or the process is stopped. The agent sends"
        " no further command until QEMU answers.",
        action="`GET /` and `qmp_agent_monitor_state` show which of the two "
        "([states](monitors.md#states)). Check the VM's storage (NFS, multipath, Ceph) and the"
        " QEMU process: `ps -o stat,wchan -L -p PID`.",
    ),
    PrometheusRule(
        alert="QemuMonitorBusy",
        group="qemu-monitors",
        expr='qmp_agent_monitor_state{state="busy"} == 1',
        hold="5m",
        severity="warning",
        summary="{{ $labels.monitor }} accepts connections but sends no greeting: another client uses it, or QEMU "
        "hangs",
        cause="Another client holds this monitor; one QMP socket serves one client. A QEMU that hangs before its "
        "greeting looks the same.",
        action="Give the agent [a monitor of its own](../how-to/install.md#connect-the-vms).",
    ),
    PrometheusRule(
        alert="QemuMonitorDenied",
        group="qemu-monitors",
        expr='qmp_agent_monitor_state{state="denied"} == 1',
        hold="5m",
        severity="warning",
        summary="{{ $labels.monitor }}: the agent has no permission to connect",
        cause="The agent's user is not in the group that owns the socket.",
        action="Add the user to the group, and restart the agent. `qmp-agent check` tries each monitor.",
    ),
    # Each attempt passes through both states. An address on which no process listens is `gone`.
    PrometheusRule(
        alert="QemuMonitorNotConnected",
        group="qemu-monitors",
        expr='max by (instance, job, monitor) (qmp_agent_monitor_state{state=~"connecting|negotiating"}) == 1',
        hold="5m",
        severity="warning",
        summary="{{ $labels.monitor }}: the agent has tried to connect for five minutes; the VM may run, but is not "
        "monitored",
        cause="Each attempt to connect fails, although a process listens: libvirtd may be unreachable, or QEMU's "
        "replies cannot be read, so that the agent does not know which VM it is.",
        action="The page and the log give the cause.",
    ),
    # Five minutes are 30 default poll intervals. A VM that does not respond is reported as stalled instead.
    PrometheusRule(
        alert="QemuSamplesStale",
        group="qemu-monitors",
        expr="time() - qemu_vm_last_response_timestamp_seconds > 300 and on (instance, vm_uuid) qemu_vm_up == 1",
        hold="1m",
        severity="warning",
        summary="{{ $labels.vm }}: the metrics are {{ $value | humanizeDuration }} old",
        cause="The VM is up, but no sample has arrived for five minutes, which is longer than any poll takes.",
        action="Check the agent's log. If `intervals.poll` is longer than a minute, raise this rule's threshold.",
    ),
    # The agent retries the collector with growing delays. If the collector is still off after five minutes, the cause is permanent.
    PrometheusRule(
        alert="QemuCollectorDegraded",
        group="qemu-monitors",
        expr="qmp_agent_collector_degraded == 1",
        hold="5m",
        severity="warning",
        summary="{{ $labels.vm }}: collector {{ $labels.collector }} is off because its answers cannot be read",
        cause="QEMU's answers to one collector are not valid JSON, too long, or not of the expected type. The VM "
        "stays attached, and its other collectors and events continue. The agent retries the collector with "
        "growing delays. Meanwhile its metrics are absent, because their last values are out of date.",
        action="The page, `/readyz` and the log give the cause. Report it with a capture ([report a wrong "
        "value](../how-to/troubleshooting.md#report-a-wrong-value)).",
    ),
    PrometheusRule(
        alert="QmpAgentDown",
        group="qmp-agent",
        expr='up{job="qmp-agent"} == 0',
        hold="2m",
        severity="critical",
        summary="{{ $labels.instance }}: Prometheus cannot scrape the agent, and no VM on this host is monitored",
        cause="The agent has ended, or the network between it and Prometheus is down. VMs are not affected. Events "
        "of this time are missed; the next `qemu.vm.attached` of each VM reports since when.",
        action="Check `systemctl status qmp-agent` and `journalctl -u qmp-agent`.",
    ),
    # A target that service discovery no longer has is not down: its series `up` ends.
    PrometheusRule(
        alert="QmpAgentMissing",
        group="qmp-agent",
        expr='max by (instance, job) (max_over_time(up{job="qmp-agent"}[1h]))\n'
        '  unless on (instance, job) up{job="qmp-agent"}',
        hold="5m",
        severity="warning",
        summary="{{ $labels.instance }}: Prometheus no longer has the agent as a target, and no VM on this host is "
        "monitored",
        cause="Prometheus has scraped this agent within the last hour, and its service discovery no longer returns it.",
        action="If the host was removed, the alert ends within the hour. Otherwise check the service discovery and "
        "the host.",
    ),
    PrometheusRule(
        alert="QmpAgentHeartbeatsUndelivered",
        group="qmp-agent",
        expr="time() - qmp_agent_heartbeat_delivered_timestamp_seconds > 90",
        severity="critical",
        summary="{{ $labels.instance }}: the agent has delivered no heartbeat for {{ $value | humanizeDuration }}; "
        "consumers of its records see a silent host",
        cause="The agent runs, but none of its heartbeats has reached Kafka for three intervals. Consumers treat "
        "this host as silent.",
        action="The causes are those of [QmpAgentKafkaLagging](#qmpagentkafkalagging).",
    ),
    # A series begins at its first dropped record. `increase` does not count the first value of a series, so `unless` detects it.
    PrometheusRule(
        alert="QmpAgentDropping",
        group="qmp-agent",
        expr="sum by (instance, job, queue, reason) (increase(qmp_agent_records_dropped_total[10m])) > 0\n"
        "  or sum by (instance, job, queue, reason) (qmp_agent_records_dropped_total > 0 "
        "unless qmp_agent_records_dropped_total offset 10m)",
        severity="critical",
        summary="{{ $labels.instance }}: the agent dropped {{ $value | humanize }} {{ $labels.queue }} records ({{ "
        "$labels.reason }})",
        cause="The label `reason` has the cause; [guarantees](../explanation/guarantees.md#reports-of-dropped-records) explains "
        "each one. `queue_full`: Kafka was unreachable for longer than the journal's limit allows. `journal_unavailable`: the journal's "
        "disk is full, broken or slower than the events arrive. `rejected`: Kafka never accepts the record, "
        "for example because it is larger than the topic allows. `corrupt`: the journal's disk damaged the "
        "record. `shutdown`: the agent ended before it could deliver or journal the record.",
        action="Repair the cause. `qmp-agent journal export --dead-letters` has the rejected records.",
    ),
    PrometheusRule(
        alert="QmpAgentEventsLost",
        group="qmp-agent",
        expr="sum by (instance, job, reason) (increase(qmp_agent_events_dropped_total[10m])) > 0\n"
        "  or sum by (instance, job, reason) (qmp_agent_events_dropped_total > 0 unless qmp_agent_events_dropped_total offset 10m)",
        severity="warning",
        summary="{{ $labels.instance }}: the agent dropped {{ $value | humanize }} events before they became records "
        "({{ $labels.reason }})",
        cause="A VM sent events faster than the agent can buffer, or QEMU sent something that is not a valid event.",
        action="The agent polled the VM's whole state afterwards, so its state is correct; single events are "
        "missing. Check what the VM does.",
    ),
    PrometheusRule(
        alert="QmpAgentJournalGrowing",
        group="qmp-agent",
        expr="predict_linear(qmp_agent_queue_disk_bytes[30m], 14400) > qmp_agent_queue_disk_limit_bytes\n"
        "  and qmp_agent_queue_disk_bytes > qmp_agent_queue_disk_limit_bytes * 0.05",
        hold="5m",
        severity="warning",
        summary="{{ $labels.instance }}: the journal's {{ $labels.queue }} exceed their limit within four hours; the "
        "agent then drops the oldest",
        cause="Kafka accepts fewer records than the VMs produce, or none.",
        action="Repair Kafka, or raise `journal.max_size` in the config if the disk has room.",
    ),
    PrometheusRule(
        alert="QmpAgentJournalFailed",
        group="qmp-agent",
        expr="qmp_agent_journal_up == 0",
        hold="1m",
        severity="critical",
        summary="{{ $labels.instance }}: the journal is not written; undelivered records are lost if the agent ends",
        cause="The journal's disk is full, read-only or missing. The agent still delivers records from memory and "
        "retries by itself.",
        action="`qmp-agent journal` and the log have the cause.",
    ),
    PrometheusRule(
        alert="QmpAgentKafkaLagging",
        group="qmp-agent",
        expr="qmp_agent_queue_oldest_record_age_seconds > 60",
        hold="2m",
        severity="warning",
        summary="{{ $labels.instance }}: the oldest undelivered {{ $labels.queue }} are {{ $value | humanizeDuration "
        "}} old",
        cause="The oldest waiting record is more than a minute old: brokers are down, a topic has too few in-sync"
        " replicas, a password or certificate has expired, or the disk of the journal hangs.",
        action="`GET /readyz` has the error of Kafka or of the journal. No record is lost while the journal has room.",
    ),
    PrometheusRule(
        alert="QmpAgentSinkDown",
        group="qmp-agent",
        expr="qmp_agent_sink_up == 0",
        hold="5m",
        severity="critical",
        summary="{{ $labels.instance }}: no record has been delivered for five minutes",
        cause="The causes are those of [QmpAgentKafkaLagging](#qmpagentkafkalagging).",
        action="`GET /readyz` has Kafka's error. No record is lost while the journal has room.",
    ),
    PrometheusRule(
        alert="QmpAgentConfigRefused",
        group="qmp-agent",
        expr="qmp_agent_config_last_reload_successful == 0",
        severity="warning",
        summary="{{ $labels.instance }}: the config reload failed; the previous config stays in use",
        cause="The config has an error, and the agent continues with the previous config.",
        action="`qmp-agent check --syntax` and `GET /readyz` show the error.",
    ),
    PrometheusRule(
        alert="QmpAgentSubjectsLeftOut",
        group="qmp-agent",
        expr="qmp_agent_series_limit_dropped_subjects > 0",
        hold="15m",
        severity="warning",
        summary="{{ $labels.instance }}: {{ $value }} devices have no series because their VMs exceed the series limit",
        cause="A VM has more disks, vCPUs or jobs than `limits` allows, or creates new names all the time. `limits`"
        " does not affect records. A poll emits at most the first 4,096 samples of a collector.",
        action="`qemu_vm_series_limit_dropped_subjects` names the VM. Raise `limits` if the number is legitimate.",
    ),
)
"""All rules about monitors and the agent."""
