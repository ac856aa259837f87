-- The agent's topics as tables of Flink SQL. The other files of this directory use them:
--   sql-client.sh -i tables.sql -f silent_hosts.sql
-- Replace kafka-1:9092 with your brokers. The tables read CloudEvents in structured mode (`kafka.content_mode: structured`).
-- The tables skip messages that are not JSON, because such a message would stop the job.

CREATE TABLE qemu_events (
  id STRING,
  source STRING,
  `type` STRING,
  host STRING,
  vmuuid STRING,
  vmname STRING,
  subject STRING,
  arrived TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL,
  WATERMARK FOR arrived AS arrived
) WITH (
  'connector' = 'kafka',
  'topic' = 'qemu.events',
  'properties.bootstrap.servers' = 'kafka-1:9092',
  'properties.group.id' = 'qemu-flink-events',
  'scan.startup.mode' = 'earliest-offset',
  'scan.watermark.idle-timeout' = '5 s',
  'format' = 'json',
  'json.ignore-parse-errors' = 'true'
);

CREATE TABLE qemu_samples (
  id STRING,
  source STRING,
  `type` STRING,
  host STRING,
  vmuuid STRING,
  vmname STRING,
  subject STRING,
  `sequence` STRING,
  data ROW<
    device STRING,
    read_bytes_total BIGINT,
    write_bytes_total BIGINT,
    pool STRING,
    kind STRING,
    `type` STRING,
    size_bytes BIGINT,
    free_bytes BIGINT,
    growth_bytes_per_second DOUBLE>,
  arrived TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL,
  WATERMARK FOR arrived AS arrived - INTERVAL '5' SECOND
) WITH (
  'connector' = 'kafka',
  'topic' = 'qemu.samples',
  'properties.bootstrap.servers' = 'kafka-1:9092',
  'properties.group.id' = 'qemu-flink-samples',
  'scan.startup.mode' = 'latest-offset',
  'scan.watermark.idle-timeout' = '30 s',
  'format' = 'json',
  'json.ignore-parse-errors' = 'true'
);

CREATE TABLE qemu_state (
  `key` STRING,
  `type` STRING,
  host STRING,
  vmuuid STRING,
  vmname STRING,
  `time` STRING,
  data ROW<
    run_state STRING,
    `running` BOOLEAN,
    qemu_version STRING,
    monitor_state STRING,
    alert STRING,
    fingerprint STRING>,
  PRIMARY KEY (`key`) NOT ENFORCED
) WITH (
  'connector' = 'upsert-kafka',
  'topic' = 'qemu.state',
  'properties.bootstrap.servers' = 'kafka-1:9092',
  'properties.group.id' = 'qemu-flink-state',
  'key.format' = 'raw',
  'value.format' = 'json',
  'value.json.ignore-parse-errors' = 'true',
  'value.fields-include' = 'EXCEPT_KEY'
);
