#!/bin/sh
# Create the topics of the jobs' results: deploy/flink/topics.sh BOOTSTRAP [PARTITIONS] [REPLICATION]
# Needs Kafka's kafka-topics.sh in PATH. Existing topics are left unchanged.
#
# fleet.vms and fleet.silent_hosts are compacted: the last message of each key is the present state. The others are kept for a week,
# except fleet.clock, which has the ticks of silent_hosts.sql.
set -eu
bootstrap=${1:?give the address of a broker, such as kafka-1:9092} partitions=${2:-3} replication=${3:-3}
create() {
    topic=$1
    shift
    kafka-topics.sh --bootstrap-server "$bootstrap" --create --if-not-exists --topic "$topic" \
        --partitions "$partitions" --replication-factor "$replication" "$@"
}
create fleet.vms --config cleanup.policy=compact
create fleet.silent_hosts --config cleanup.policy=compact
create fleet.clock --config retention.ms=3600000
create fleet.top_talkers --config retention.ms=604800000
create fleet.filling_pools --config retention.ms=604800000
