#!/bin/sh
# Create the agent's topics: deploy/kafka/topics.sh BOOTSTRAP [PARTITIONS] [REPLICATION]
# Needs Kafka's kafka-topics.sh in PATH. Existing topics are left unchanged.
#
# Partitions: the key is the VM's UUID, so all records of a VM are in one partition, in order. The number of partitions limits how many
# consumers of a group share the work; 12 divides evenly among 2, 3, 4, 6 or 12. Partitions that are added later move VMs between
# partitions, and their order is lost at that moment: start with enough.
# Retention: a week for events and alerts, a day for samples, which Prometheus has too. A sample of a disk has some 1.2 kB, every ten
# seconds: 10 MB a day for each disk.
# Compaction: none. Compaction keeps the last record of each key, and the key is a VM. So it would keep only one event of each VM.
# Replication: 3. Two replicas must have a record before the agent deletes it (acks=all), so one broker may be down.
# Record size: 1 MB at most (`kafka.max_message_bytes`), which topics accept by default (max.message.bytes).
set -eu
bootstrap=${1:?give the address of a broker, such as kafka-1:9092} partitions=${2:-12} replication=${3:-3}
day=86400000
create() {
    kafka-topics.sh --bootstrap-server "$bootstrap" --create --if-not-exists --topic "$1" \
        --partitions "$partitions" --replication-factor "$replication" \
        --config min.insync.replicas="$((replication > 1 ? replication - 1 : 1))" \
        --config cleanup.policy=delete --config retention.ms="$2"
}
create qemu.events $((7 * day))
create qemu.alerts $((7 * day))
create qemu.samples $day
