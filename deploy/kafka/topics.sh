#!/bin/sh
# Make the agent's topics: deploy/kafka/topics.sh BOOTSTRAP [PARTITIONS] [REPLICATION]
# A VM's records are all in one partition, so partitions bound how many consumers share the work. Events and alerts are kept a week, samples a day.
set -eu
bootstrap=$1 partitions=${2:-12} replication=${3:-3}
make() {
    kafka-topics.sh --bootstrap-server "$bootstrap" --create --if-not-exists --topic "$1" --partitions "$partitions" \
        --replication-factor "$replication" --config min.insync.replicas="$((replication > 1 ? replication - 1 : 1))" --config retention.ms="$2"
}
make qemu.events 604800000
make qemu.alerts 604800000
make qemu.samples 86400000
