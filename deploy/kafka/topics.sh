#!/bin/sh
# Create the agent's topics: deploy/kafka/topics.sh BOOTSTRAP [PARTITIONS] [REPLICATION]
# With DEAD_LETTERS=TOPIC in the environment, it also creates a topic for dead letters.
# Needs Kafka's kafka-topics.sh in PATH. Existing topics are left unchanged.
#
# Partitions: the key is the VM's UUID, so all records of a VM are in one partition, in order. The number of partitions limits the number
# of consumers in a group that share the work; 12 divides evenly among 2, 3, 4, 6 or 12 consumers. If you add partitions later, VMs move
# to other partitions, and consumers can read their records out of order at that moment. So start with enough partitions.
# Retention: a week for events and alerts, a day for samples, which Prometheus has too. A sample of a disk has 1.2 to 1.5 kB. With
# one sample every ten seconds, each disk needs 10 to 13 MB a day before compression and replication.
# Compaction: only qemu.state. Compaction keeps the last record of each key. A key of the other topics is a VM, so only one event of each VM
# would remain. Tombstones of qemu.state stay for a day, so a consumer may stop for a day and still learn what was deleted.
# Replication: 3. Two replicas must have a record before the agent deletes it from its journal (acks=all), so one broker may be down.
# Timestamps: the broker's (LogAppendTime). So no clock of a host makes a record unacceptable, or delays or ends windows of all hosts in a
# stream processor. The time of the event is in the record.
# Record size: 1 MB at most (`kafka.max_message_bytes`), which topics accept by default (max.message.bytes).
set -eu
bootstrap=${1:?give the address of a broker, such as kafka-1:9092} partitions=${2:-12} replication=${3:-3}
day=86400000
create() {
    topic=$1
    shift
    kafka-topics.sh --bootstrap-server "$bootstrap" --create --if-not-exists --topic "$topic" \
        --partitions "$partitions" --replication-factor "$replication" \
        --config min.insync.replicas="$((replication > 1 ? replication - 1 : 1))" \
        --config message.timestamp.type=LogAppendTime "$@"
}
create qemu.events --config cleanup.policy=delete --config retention.ms=$((7 * day))
create qemu.alerts --config cleanup.policy=delete --config retention.ms=$((7 * day))
create qemu.samples --config cleanup.policy=delete --config retention.ms=$day
create qemu.state --config cleanup.policy=compact --config delete.retention.ms=$day
# For `kafka.topics.dead_letters`, if it is set. A record that qemu.events rejects is whole here up to 16 MiB.
if [ -n "${DEAD_LETTERS:-}" ]; then
    create "$DEAD_LETTERS" --config cleanup.policy=delete --config retention.ms=$((7 * day)) --config max.message.bytes=16777216
fi
