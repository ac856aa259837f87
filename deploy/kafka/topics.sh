#!/bin/sh
# Make the agent's topics: deploy/kafka/topics.sh BOOTSTRAP [PARTITIONS] [REPLICATION]
# Takes Kafka's own kafka-topics.sh, from PATH. Topics that are there are left as they are.
#
# Partitions: the key is the VM's UUID, so a VM's records are all in one partition, in order. Partitions bound how many consumers of a
# group share the work; 12 is shared evenly by 2, 3, 4, 6 or 12. Adding some later moves VMs between partitions, and their order is lost
# at that moment: begin with enough.
# Retention: events and alerts a week, for whoever looks into what happened on Sunday on Friday; samples a day, since Prometheus has them
# too. A sample of a disk is some 1.2 kB, each ten seconds: 10 MB a day for each disk.
# Compaction: none. Compaction keeps the last record of each key, and the key is a VM: it would keep one event of each.
# Replication: 3, of which two must have a record before the agent lets go of it (acks=all): one broker may be away.
# A record is at most 1 MB (`kafka.max_record`), which is what a topic takes by default (max.message.bytes).
set -eu
bootstrap=${1:?say which broker, such as kafka-1:9092} partitions=${2:-12} replication=${3:-3}
day=86400000
make() {
    kafka-topics.sh --bootstrap-server "$bootstrap" --create --if-not-exists --topic "$1" \
        --partitions "$partitions" --replication-factor "$replication" \
        --config min.insync.replicas="$((replication > 1 ? replication - 1 : 1))" \
        --config cleanup.policy=delete --config retention.ms="$2"
}
make qemu.events $((7 * day))
make qemu.alerts $((7 * day))
make qemu.samples $day
