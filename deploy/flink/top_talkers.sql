-- Top talkers of the fleet: every minute, the ten VMs that read and wrote most.

CREATE TABLE top_talkers (
  minute_start TIMESTAMP_LTZ(3),
  place BIGINT,
  vmuuid STRING,
  vmname STRING,
  host STRING,
  bytes_per_second DOUBLE,
  PRIMARY KEY (minute_start, place) NOT ENFORCED
) WITH (
  'connector' = 'upsert-kafka',
  'topic' = 'fleet.top_talkers',
  'properties.bootstrap.servers' = 'kafka-1:9092',
  'key.format' = 'json',
  'value.format' = 'json'
);

-- The counter of each disk in the first and in the last record of a minute. The order of `sequence` as text is that of the records, so MIN
-- and MAX of it, with the counter behind it, select the first and the last record. A repetition changes nothing.
CREATE VIEW disk_minutes AS
SELECT window_start, window_end, source, vmuuid, vmname, host, subject,
  CAST(SPLIT_INDEX(MIN(`sequence` || '/' || counter), '/', 1) AS BIGINT) AS first_bytes,
  CAST(SPLIT_INDEX(MAX(`sequence` || '/' || counter), '/', 1) AS BIGINT) AS last_bytes
FROM (
  SELECT *, CAST(data.read_bytes_total + data.write_bytes_total AS STRING) AS counter
  FROM TABLE(TUMBLE(TABLE qemu_samples, DESCRIPTOR(arrived), INTERVAL '1' MINUTE))
  WHERE `type` = 'qemu.sample.block')
GROUP BY window_start, window_end, source, vmuuid, vmname, host, subject;

-- A counter that is lower than before has started again, because the VM was restarted.
CREATE VIEW vm_minutes AS
SELECT window_start, window_end, vmuuid, MAX(vmname) AS vmname, MAX(host) AS host,
  SUM(CASE WHEN last_bytes >= first_bytes THEN last_bytes - first_bytes ELSE last_bytes END) / 60.0E0 AS bytes_per_second
FROM disk_minutes
GROUP BY window_start, window_end, vmuuid;

INSERT INTO top_talkers
SELECT window_start, place, vmuuid, vmname, host, bytes_per_second
FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY window_start, window_end ORDER BY bytes_per_second DESC) AS place
  FROM vm_minutes)
WHERE place <= 10;
