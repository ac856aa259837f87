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

-- The bytes counter of each disk in the first and in the last record of a minute. `sequence` sorts as text in the order of the records.
-- So MIN and MAX of the text `sequence/counter` select the counters of the first and of the last record. Repetitions do not matter.
CREATE VIEW disk_minutes AS
SELECT window_start, window_end, source, vmuuid, vmname, host, subject,
  CAST(SPLIT_INDEX(MIN(`sequence` || '/' || counter), '/', 1) AS BIGINT) AS first_bytes,
  CAST(SPLIT_INDEX(MAX(`sequence` || '/' || counter), '/', 1) AS BIGINT) AS last_bytes
FROM (
  SELECT *, CAST(data.read_bytes_total + data.write_bytes_total AS STRING) AS counter
  FROM TABLE(TUMBLE(TABLE qemu_samples, DESCRIPTOR(arrived), INTERVAL '1' MINUTE))
  WHERE `type` = 'qemu.sample.block')
GROUP BY window_start, window_end, source, vmuuid, vmname, host, subject;

-- If the last counter is lower than the first, the VM was restarted and its counters began at 0 again.
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
